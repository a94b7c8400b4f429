"""Image files of any kind as uint8 arrays of one size.

The files may come from anywhere: only the formats of `jaxattn.data.formats` are tried,
and whatever is wrong with one is one line.
"""

import functools
import io
import logging
import os
import re
import stat
import struct
import warnings
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO, TypeVar

import numpy as np

from jaxattn.data import formats
from jaxattn.data.source import BadImageError
from jaxattn.errors import UserError, reason, reraise_machine_fault
from jaxattn.text import printable

if TYPE_CHECKING:
    from PIL import Image

T = TypeVar("T")

# Tags of TIFF.
_BITS_PER_SAMPLE = 258
_PHOTOMETRIC = 262
_SAMPLE_FORMAT = 339
_ORIENTATION = 274

# The EXIF orientations that swap height and width.
_SIDEWAYS = (5, 6, 7, 8)

_PNG = b"\x89PNG\r\n\x1a\n"
_MAX_CHUNK = 2**31 - 1  # bytes, by the standard
# Of PNG: what Pillow unpacks in part alone, texts and a profile.
_BULKY = (b"iCCP", b"tEXt", b"zTXt", b"iTXt")

Box = tuple[float, float, float, float]
"""Left, top, right and bottom of a rectangle, in pixels from the upper left corner."""


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads an image file, upright as its EXIF data say.

    Grey images become RGB; those with 16 or 32 bits are scaled to 8 over the whole
    range of their type. Of an animation this is the first frame. Transparency is
    dropped, as `convert("RGB")` of Pillow and so the loader of torchvision do: a
    transparent pixel shows the colour that is stored beneath.

    Args:
        path: The file, of a format of `jaxattn.data.formats`.

    Returns:
        The pixels, uint8 `[H, W, 3]`.

    Raises:
        BadImageError: The file is damaged, cut short, larger than Pillow thinks safe,
            or none of these formats.
        UserError: The file cannot be opened.
    """

    def convert(image: "Image.Image") -> np.ndarray:
        pixels = _to_rgb(image)
        # After the pixels: TIFF has turned them by now, and PNG may say so last.
        return np.ascontiguousarray(_upright(pixels, _orientation(image)))

    return decode(path, path, convert)


def read_crop(
    file: str | os.PathLike[str] | bytes,
    choose_box: Callable[[int, int], Box],
    size: int | tuple[int, int] | Callable[[int, int], tuple[int, int]],
    *,
    origin: str | None = None,
    reduce: bool = False,
) -> np.ndarray:
    """Reads a rectangle of an image file, scaled: bilinear, with antialiasing.

    The image is what `read_image` returns, but no more of it is converted than needed.

    Args:
        file: The file, or its content.
        choose_box: From the upright image's height and width to the rectangle.
        size: Height and width in pixels of the result, or one number for both, or a
            function to them from the upright image's.
        origin: What errors call the file; by default its path.
        reduce: Decodes a JPEG at 1/2, 1/4 or 1/8 of its size where the rectangle stays
            at least as large as the result. Several times faster on large photographs,
            and differs a little, for the decoder averages before the scaling.

    Returns:
        uint8 `[height, width, 3]`.

    Raises:
        BadImageError: As `read_image`.
        UserError: As `read_image`.
    """
    from PIL import Image

    def convert(image: "Image.Image") -> np.ndarray:
        is_jpeg = image.format in ("JPEG", "MPO")  # MPO: photographs of some phones
        if not is_jpeg:
            image.load()  # only now TIFF is turned, and PNG's orientation known
        orientation = _orientation(image)
        width, height = image.size
        if orientation in _SIDEWAYS:
            width, height = height, width
        out = size(height, width) if callable(size) else size
        out_height, out_width = (out, out) if isinstance(out, int) else out
        # The crop alone is turned, not the whole image.
        box = _stored_box(choose_box(height, width), orientation, height, width)
        if is_jpeg and reduce:
            box = _reduce(image, box, max(out_height, out_width))
        rgb = image if image.mode == "RGB" else Image.fromarray(_to_rgb(image))
        # The crop is scaled as it is stored, and turned after that.
        is_sideways = orientation in _SIDEWAYS
        stored = (out_height, out_width) if is_sideways else (out_width, out_height)
        crop = rgb.resize(stored, Image.Resampling.BILINEAR, box)
        return np.array(_upright(np.asarray(crop), orientation))

    return decode(file, origin or file, convert)


def resize_crop(
    image: np.ndarray,
    choose_box: Callable[[int, int], Box],
    size: int | tuple[int, int],
) -> np.ndarray:
    """Takes a rectangle of an image, scaled: bilinear, with antialiasing.

    Args:
        image: uint8 `[H, W, 3]`.
        choose_box: From the image's height and width to the rectangle.
        size: Height and width in pixels of the result, or one number for both.

    Returns:
        uint8 `[height, width, 3]`; the image itself where that is all of it.
    """
    from PIL import Image

    height, width = (size, size) if isinstance(size, int) else size
    H, W = image.shape[:2]
    box = choose_box(H, W)
    if (height, width) == (H, W) and box == (0, 0, W, H):
        return image
    scaled = Image.fromarray(image).resize(
        (width, height), Image.Resampling.BILINEAR, box
    )
    return np.array(scaled)


def center_box(H: int, W: int, covered: tuple[int, int], size: tuple[int, int]) -> Box:
    """Returns what the centre of a scaled image shows of the image itself.

    Scaling that rectangle alone gives what torchvision's `Resize` and `CenterCrop`
    give, but of a line of pixels the whole would fill the memory.

    Args:
        H: Height of the image in pixels.
        W: Width.
        covered: Height and width that the scaled image just covers.
        size: Height and width of the crop from the scaled image, at most `covered`.
    """
    height, width = covered
    if height * W >= width * H:
        scaled_height, scaled_width = height, W * height // H
    else:
        scaled_height, scaled_width = H * width // W, width
    top = round((scaled_height - size[0]) / 2)
    left = round((scaled_width - size[1]) / 2)
    return (
        left * W / scaled_width,
        top * H / scaled_height,
        (left + size[1]) * W / scaled_width,
        (top + size[0]) * H / scaled_height,
    )


def read_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Returns the height and width in pixels of an image file, upright.

    Little more of it is read than its head.

    Args:
        path: The file.

    Raises:
        BadImageError: As `read_image`.
        UserError: As `read_image`.
    """

    def measure(image: "Image.Image") -> tuple[int, int]:
        width, height = image.size
        is_sideways = _orientation(image) in _SIDEWAYS
        return (width, height) if is_sideways else (height, width)

    return decode(path, path, measure)


def decode(
    file: str | os.PathLike[str] | bytes,
    origin: object,
    convert: Callable[["Image.Image"], T],
) -> T:
    """Returns what a function makes of an image file, opened by Pillow.

    Args:
        file: The file, or its content.
        origin: What errors call it.
        convert: Whatever it raises is a fault of the file.

    Raises:
        BadImageError: As `read_image`.
        UserError: As `read_image`.
    """
    _ignore_pillow_warnings()
    is_path = not isinstance(file, bytes)
    known = formats.formats_of(os.fspath(file) if is_path else "")
    with _open_stream(file, origin) as stream:
        try:
            return _decode(stream, known, convert)
        except Exception as error:  # each format of Pillow raises its own
            reraise_machine_fault(error)
            problem = error
        # Pixels are not lost with what else a PNG says.
        if (bare := bare_png(stream)) is not None:
            try:
                return _decode(io.BytesIO(bare), known, convert)
            except Exception as error:
                reraise_machine_fault(error)
                problem = error
                stream = io.BytesIO(bare)
        why = _explain(problem, stream)
        raise BadImageError(f"{origin}: not a readable image ({why})") from problem


def _decode(
    stream: BinaryIO,
    known: tuple[str, ...],
    convert: Callable[["Image.Image"], T],
) -> T:
    from PIL import Image

    with Image.open(stream, formats=known) as image:
        _check_size(image)
        return convert(image)


def _explain(problem: Exception, stream: BinaryIO) -> str:
    from PIL import UnidentifiedImageError

    if isinstance(problem, UnidentifiedImageError):
        return formats.explain(stream)
    return printable(reason(problem))


def bare_png(stream: BinaryIO) -> bytes | None:
    """Returns a PNG with little more than its pixels.

    It has no texts and no colour profile, and nothing damaged that pixels do not need.
    None is returned of a file that is no PNG or has nothing of that kind.

    Args:
        stream: Its content; may be read from.
    """
    stream.seek(0)
    if (signature := stream.read(8)) != _PNG:
        return None
    kept, is_bare = [signature], True
    while len(head := stream.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if length > _MAX_CHUNK:
            return None
        body = stream.read(length + 4)
        is_needed = not kind[0] & 0x20  # so PNG marks what a reader may leave out
        is_whole = zlib.crc32(kind + body[:-4]).to_bytes(4, "big") == body[-4:]
        if is_needed or (is_whole and kind not in _BULKY):
            kept += [head, body]
        else:
            is_bare = False
        if kind == b"IEND":
            break
    return None if is_bare else b"".join(kept)


def _open_stream(file: str | os.PathLike[str] | bytes, origin: object) -> BinaryIO:
    if isinstance(file, bytes):
        return io.BytesIO(file)
    try:
        # Opening a pipe would wait for who writes into it.
        if not stat.S_ISREG(mode := os.stat(file).st_mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
            raise UserError(f"{origin}: not a readable image (is {kind})")
        return open(file, "rb")
    except OSError as error:
        reraise_machine_fault(error)
        why = error.strerror
        raise UserError(f"{origin}: not a readable image ({why})") from error


def _reduce(image: "Image.Image", box: Box, size: int) -> Box:
    """Makes a JPEG decode smaller if a box stays large enough; returns the new box."""
    spare = min(box[2] - box[0], box[3] - box[1]) / size
    divisor = max(n for n in (1, 2, 4, 8) if n <= max(spare, 1))
    width, height = image.size
    drafted = image.draft(None, (width // divisor, height // divisor))
    factor = 1.0 if drafted is None else drafted[1][2] / width
    left, top, right, bottom = box
    return left * factor, top * factor, right * factor, bottom * factor


def _ignore_pillow_warnings() -> None:
    """Ignores them from now on.

    `warnings.catch_warnings` would not do: the filters are those of the process, and
    threads that read images at the same time would restore each other's.
    """
    _silence_pillow_log()
    module = r"PIL\."
    ours = ("ignore", None, Warning, re.compile(module), 0)
    # Any change of the filters makes Python show old warnings again.
    if not warnings.filters or warnings.filters[0] != ours:
        warnings.filterwarnings("ignore", module=module)


@functools.cache
def _silence_pillow_log() -> None:
    """Of a damaged file it says again what its error says."""
    logging.getLogger("PIL").setLevel(logging.CRITICAL)


def _check_size(image: "Image.Image") -> None:
    """Refuses what Pillow only warns of."""
    from PIL import Image

    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise ValueError(
            f"{image.width} x {image.height} pixels, more than the {limit} that "
            "Pillow thinks safe"
        )


def _orientation(image: "Image.Image") -> int:
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF data do not spoil the pixels
        return 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turns and mirrors an image as its EXIF orientation, 1 to 8, says."""
    if orientation in _SIDEWAYS:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def _stored_box(box: Box, orientation: int, height: int, width: int) -> Box:
    """Where a rectangle of the upright image lies in the stored one."""
    left, top, right, bottom = box
    if orientation in (3, 4, 7, 8):
        top, bottom = height - bottom, height - top
    if orientation in (2, 3, 6, 7):
        left, right = width - right, width - left
    if orientation in _SIDEWAYS:
        return top, left, bottom, right
    return left, top, right, bottom


def _to_rgb(image: "Image.Image") -> np.ndarray:
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is unknown")
    if image.mode.startswith("I"):
        return np.repeat(_to_8_bits(image)[..., None], 3, axis=-1)
    return np.array(image.convert("RGB"))


def _to_8_bits(image: "Image.Image") -> np.ndarray:
    """Scales a grey image of more bits, which Pillow's conversion would clip."""
    # Only TIFF has other ranges; what Pillow reads from the rest goes up to 65535.
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
    is_signed = tags.get(_SAMPLE_FORMAT, (1,))[0] == 2
    largest = 2 ** (bits - is_signed) - 1
    values = np.asarray(image).astype(np.int64)
    if not is_signed:
        values &= largest  # Pillow holds unsigned 32-bit values as signed ones
    grey = np.round(np.clip(values, 0, largest) * (255 / largest)).astype(np.uint8)
    is_white_zero = tags.get(_PHOTOMETRIC, 1) == 0
    return 255 - grey if is_white_zero else grey
