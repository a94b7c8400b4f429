"""Image files of any kind as uint8 arrays of one size.

The files may come from anywhere: only the formats of `SUFFIXES` are tried (Pillow
would run another program for some others), and whatever is wrong with one is one line.
"""

import os
import pathlib
import re
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from jaxattn.data.archives import reason
from jaxattn.data.source import Example
from jaxattn.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".png",
    ".webp",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".ppm",
)
"""The endings, in lower case, by which image files are known."""

_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

# Tags of TIFF.
_BITS_PER_SAMPLE = 258
_PHOTOMETRIC = 262
_SAMPLE_FORMAT = 339
_ORIENTATION = 274


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads an image file, upright as its EXIF data say.

    Grey images become RGB; those with 16 or 32 bits are scaled to 8 over the whole
    range of their type. Of an animation this is the first frame. Transparency is
    dropped, as `convert("RGB")` of Pillow and so the loader of torchvision do: a
    transparent pixel shows the colour that is stored beneath.

    Args:
        path: The file: BMP, GIF, JPEG, PNG, PPM, TIFF or WebP.

    Returns:
        The pixels, uint8 `[H, W, 3]`.

    Raises:
        UserError: The file is not there, damaged, cut short, larger than Pillow
            thinks safe, or none of these formats.
    """
    from PIL import Image, UnidentifiedImageError

    _ignore_pillow_warnings()
    try:
        with open(path, "rb") as file, Image.open(file, formats=_FORMATS) as image:
            _check_size(image)
            pixels = _to_rgb(image)
            # After the pixels: TIFF has turned them by now, and PNG may say so last.
            return np.ascontiguousarray(_upright(pixels, _orientation(image)))
    except UnidentifiedImageError as error:
        why = f"its content is none of {', '.join(_FORMATS)}"
        raise UserError(f"{path}: not a readable image ({why})") from error
    except Exception as error:  # each format of Pillow raises its own
        why = error.strerror if isinstance(error, OSError) else None
        raise UserError(
            f"{path}: not a readable image ({why or reason(error)})"
        ) from error


def resize_and_center_crop(
    image: np.ndarray, size: int | tuple[int, int]
) -> np.ndarray:
    """Scales an image until it just covers a size, and crops its centre.

    For a square this is torchvision's `Resize(size)` and `CenterCrop(size)` of a Pillow
    image: bilinear, with antialiasing.

    Args:
        image: uint8 `[H, W, 3]`.
        size: Height and width in pixels, or one number for both.

    Returns:
        uint8 `[height, width, 3]`; the image itself where it has that size.
    """
    from PIL import Image

    height, width = (size, size) if isinstance(size, int) else size
    if image.shape[:2] == (height, width):
        return image
    H, W = image.shape[:2]
    if height * W >= width * H:
        scaled_height, scaled_width = height, W * height // H
    else:
        scaled_height, scaled_width = H * width // W, width
    top = round((scaled_height - height) / 2)
    left = round((scaled_width - width) / 2)
    # The crop is scaled alone: of a line of pixels the whole would fill the memory.
    box = (
        left * W / scaled_width,
        top * H / scaled_height,
        (left + width) * W / scaled_width,
        (top + height) * H / scaled_height,
    )
    scaled = Image.fromarray(image).resize(
        (width, height), Image.Resampling.BILINEAR, box
    )
    return np.array(scaled)


def find_images(folder: str | os.PathLike[str]) -> list[pathlib.Path]:
    """Finds the image files in a folder and the folders inside it.

    Args:
        folder: The folder.

    Returns:
        The files with a suffix of `SUFFIXES`, in any case, sorted. Hidden files and
        folders are skipped, and links to folders are not followed.

    Raises:
        UserError: There is no such folder, or no image in it.
    """
    if not os.path.isdir(folder):
        raise UserError(f"{folder}: no such folder")
    found = []
    for parent, folders, files in os.walk(folder, onerror=_refuse_folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = [pathlib.Path(parent, n) for n in files if not n.startswith(".")]
        found += [path for path in paths if is_image(path)]
    if not found:
        raise UserError(
            f"{folder}: holds no image; must hold files ending in {', '.join(SUFFIXES)}"
        )
    return sorted(found)


def is_image(path: pathlib.Path) -> bool:
    """Whether a path ends as those of image files do."""
    return path.suffix.lower() in SUFFIXES


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Image files as a source, each read when asked for.

    The label of every example is 0: the files hold none.

    Attributes:
        paths: The files.
        image_size: Height and width in pixels that each is scaled and cropped to.
    """

    paths: tuple[pathlib.Path, ...]
    image_size: tuple[int, int]

    def __len__(self) -> int:
        """The number of files."""
        return len(self.paths)

    def __getitem__(self, index: int) -> Example:
        """The image at a position, uint8 `[height, width, 3]`."""
        image = read_image(self.paths[index])
        return {"image": resize_and_center_crop(image, self.image_size), "label": 0}


def _ignore_pillow_warnings() -> None:
    """Ignores them from now on.

    `warnings.catch_warnings` would not do: the filters are those of the process, and
    threads that read images at the same time would restore each other's.
    """
    module = r"PIL\."
    ours = ("ignore", None, Warning, re.compile(module), 0)
    # Any change of the filters makes Python show old warnings again.
    if not warnings.filters or warnings.filters[0] != ours:
        warnings.filterwarnings("ignore", module=module)


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
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


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


def _refuse_folder(error: OSError) -> NoReturn:
    raise UserError(f"{error.filename}: not readable ({error.strerror})") from error
