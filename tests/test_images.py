import concurrent.futures
import io
import os
import pickle
import socket
import struct
import sys
import types
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from jaxattn.data import formats
from jaxattn.data.files import describe_left_out, find_images, scan
from jaxattn.data.images import read_image
from jaxattn.data.preprocess import Frame, ImageFiles
from jaxattn.data.source import BadImageError
from jaxattn.errors import UserError

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def make_image(height=4, width=6, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path, pixels, **options):
    """Saves an array, or an image of Pillow."""
    image = Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels
    image.save(path, **options)
    return path


def grey_column(path):
    """The grey values of an image's first row."""
    image = read_image(path)
    np.testing.assert_array_equal(image, np.repeat(image[..., :1], 3, axis=-1))
    return image[0, :, 0].tolist()


def one_line(excinfo):
    return "\n" not in str(excinfo.value)


# Kinds of pixels


@pytest.mark.parametrize("suffix", ["png", "bmp", "ppm", "tif"])
def test_rgb_is_read_as_it_is(suffix, tmp_path):
    path = save(tmp_path / f"a.{suffix}", make_image())
    image = read_image(path)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, make_image())


def test_lossless_webp_is_read_as_it_is(tmp_path):
    path = save(tmp_path / "a.webp", make_image(), lossless=True)
    np.testing.assert_array_equal(read_image(path), make_image())


def test_jpeg_has_its_colours(tmp_path):
    path = save(tmp_path / "a.jpg", Image.new("RGB", (8, 8), (200, 100, 50)))
    assert np.abs(read_image(path).astype(int) - [200, 100, 50]).max() <= 2


def test_grey_becomes_rgb(tmp_path):
    path = save(tmp_path / "a.png", np.array([[0, 7, 255]], np.uint8))
    assert grey_column(path) == [0, 7, 255]


def test_one_bit_becomes_black_and_white(tmp_path):
    path = save(tmp_path / "a.png", np.array([[True, False, True]]))
    assert grey_column(path) == [255, 0, 255]


def test_palette_is_looked_up(tmp_path):
    image = Image.new("P", (3, 1))
    image.putpalette([*RED, *GREEN, *BLUE])
    image.putdata([2, 0, 1])
    path = save(tmp_path / "a.png", image)
    assert read_image(path)[0].tolist() == [[*BLUE], [*RED], [*GREEN]]


def test_transparent_palette_keeps_its_colours_without_a_warning(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *GREEN])
    image.putdata([0, 1])
    path = save(tmp_path / "a.png", image, transparency=b"\x00\x80")
    assert read_image(path)[0].tolist() == [[*RED], [*GREEN]]


def test_alpha_is_dropped(tmp_path):
    pixels = np.array([[[1, 2, 3, 0], [4, 5, 6, 128]]], np.uint8)
    path = save(tmp_path / "a.png", pixels)
    assert read_image(path)[0].tolist() == [[1, 2, 3], [4, 5, 6]]


def test_alpha_of_grey_is_dropped(tmp_path):
    path = save(tmp_path / "a.png", Image.new("LA", (1, 1), (77, 0)))
    assert grey_column(path) == [77]


@pytest.mark.parametrize(
    ("ink", "colour"),
    [((0, 255, 255, 0), RED), ((255, 255, 0, 0), BLUE), ((0, 0, 0, 255), (0, 0, 0))],
)
def test_cmyk_jpeg_is_converted(ink, colour, tmp_path):
    path = save(tmp_path / "a.jpg", Image.new("CMYK", (8, 8), ink), quality=100)
    assert np.abs(read_image(path).astype(int) - colour).max() <= 3


@pytest.mark.parametrize("suffix", ["png", "tif", "ppm"])
def test_16_bit_grey_is_scaled(suffix, tmp_path):
    pixels = np.array([[0, 128, 129, 20000, 40000, 65535]], np.uint16)
    path = save(tmp_path / f"a.{suffix}", pixels)
    assert grey_column(path) == [0, 0, 1, 78, 156, 255]


def test_big_endian_16_bit_grey_is_scaled(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(make_tiff(">", np.array([[0, 20000, 65535]], ">u2")))
    assert grey_column(path) == [0, 78, 255]


@pytest.mark.parametrize("channels", [3, 4])
def test_16_bit_colours_are_scaled(channels, tmp_path):
    pixels = np.array([0, 20000, 65535, 30000], ">u2")[:channels]
    path = tmp_path / "a.png"
    path.write_bytes(make_png(pixels, kind=2 if channels == 3 else 6))
    assert np.abs(read_image(path)[0, 0].astype(int) - [0, 78, 255]).max() <= 1


def make_png(pixels, kind):
    """A PNG file of one pixel of 16 bits; kind 2 is RGB and 6 RGBA."""

    def chunk(name, data):
        checksum = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + checksum

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, kind, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b"\0" + pixels.tobytes()))
        + chunk(b"IEND", b"")
    )


def make_tiff(order, pixels, photometric=1, sample_format=1):
    """A TIFF file of one strip."""
    height, width = pixels.shape
    tags = [
        (256, width),
        (257, height),
        (258, 8 * pixels.itemsize),
        (259, 1),
        (262, photometric),
        (273, 8),
        (277, 1),
        (278, height),
        (279, pixels.nbytes),
        (339, sample_format),
    ]
    head = b"II*\0" if order == "<" else b"MM\0*"
    entries = b"".join(
        struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0) for tag, value in tags
    )
    return (
        head
        + struct.pack(f"{order}I", 8 + pixels.nbytes)
        + pixels.tobytes()
        + struct.pack(f"{order}H", len(tags))
        + entries
        + bytes(4)
    )


@pytest.mark.parametrize(
    ("dtype", "values", "sample_format"),
    [
        ("<i4", [-5, 0, 2**30, 2**31 - 1], 2),
        ("<u4", [0, 0, 2**31, 2**32 - 1], 1),
        ("<i2", [-5, 0, 2**14, 2**15 - 1], 2),
    ],
)
def test_grey_of_more_bits_is_scaled_over_its_range(
    dtype, values, sample_format, tmp_path
):
    path = tmp_path / "a.tif"
    pixels = np.array([values], dtype)
    path.write_bytes(make_tiff("<", pixels, sample_format=sample_format))
    assert grey_column(path) == [0, 0, 128, 255]


def test_16_bit_grey_whose_zero_is_white_is_inverted(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(make_tiff("<", np.array([[0, 65535]], "<u2"), photometric=0))
    assert grey_column(path) == [255, 0]


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_first_frame_of_an_animation_is_read(suffix, tmp_path):
    frames = [Image.new("RGB", (2, 2), colour) for colour in (RED, BLUE, GREEN)]
    options = {"lossless": True} if suffix == "webp" else {}
    path = tmp_path / f"a.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(read_image(path), np.full((2, 2, 3), RED))


# EXIF


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_orientation_is_undone(suffix, orientation, tmp_path):
    upright = make_image()
    turn = {
        1: lambda x: x,
        2: np.fliplr,
        3: lambda x: np.rot90(x, 2),
        4: np.flipud,
        5: lambda x: x.swapaxes(0, 1),
        6: lambda x: np.rot90(x, 1),  # shown turned clockwise, so stored turned back
        7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
        8: lambda x: np.rot90(x, -1),
    }[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    stored = np.ascontiguousarray(turn(upright))
    path = save(tmp_path / f"a.{suffix}", stored, exif=exif)
    np.testing.assert_array_equal(read_image(path), upright)


def test_rotated_jpeg_is_upright(tmp_path):
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:, :16] = RED
    exif = Image.Exif()
    exif[274] = 6
    path = save(tmp_path / "a.jpg", stored, exif=exif, quality=100, subsampling=0)
    image = read_image(path)
    assert image.shape == (32, 16, 3)
    assert np.abs(image[4, 8].astype(int) - RED).max() <= 3
    assert image[28, 8].max() <= 3


def test_orientation_turns_16_bit_grey(tmp_path):
    exif = Image.Exif()
    exif[274] = 3
    pixels = np.array([[0, 65535]], np.uint16)
    assert grey_column(save(tmp_path / "a.png", pixels, exif=exif)) == [255, 0]


def test_damaged_exif_does_not_spoil_the_pixels(tmp_path):
    path = save(tmp_path / "a.png", make_image(), exif=b"Exif\0\0broken")
    np.testing.assert_array_equal(read_image(path), make_image())


# Files that are no images


def png_bytes(pixels=None):
    file = io.BytesIO()
    Image.fromarray(make_image(64, 64) if pixels is None else pixels).save(file, "PNG")
    return file.getvalue()


def png_header(width, height):
    """A PNG that says how large it is, and no more."""
    data = bytearray(png_bytes())
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def float_tiff():
    file = io.BytesIO()
    Image.fromarray(np.zeros((2, 2), np.float32)).save(file, "TIFF")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"hello\nworld\n", "its content is none of JPEG, PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is PostScript"),
        (png_bytes()[:20], "Truncated"),
        (png_bytes()[:3000], "truncated"),
        (png_header(12000, 10000), "12000 x 10000 pixels, more than"),
        (png_header(60000, 60000), "exceeds limit"),
        (float_tiff(), "floating-point pixels"),
        (pickle.dumps([1]), "is none of"),
    ],
    ids=range(9),
)
def test_broken_image_is_one_line(content, message, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(BadImageError, match=rf"\(.*{message}.*\)\Z") as excinfo:
        read_image(path)
    assert str(excinfo.value).startswith(f"{path}: not a readable image (")
    assert one_line(excinfo)


@pytest.mark.parametrize("suffix", ["jpg", "gif", "webp", "bmp", "tif", "ppm", "png"])
def test_image_cut_in_its_first_half_is_one_line(suffix, tmp_path):
    data = save(tmp_path / f"whole.{suffix}", make_image(16, 16)).read_bytes()
    path = tmp_path / f"a.{suffix}"
    for length in range(0, len(data) // 2, max(1, len(data) // 40)):
        path.write_bytes(data[:length])
        with pytest.raises(BadImageError, match=r"not a readable image") as excinfo:
            read_image(path)
        assert one_line(excinfo)


@pytest.mark.parametrize("suffix", ["jpg", "gif", "webp", "tif", "png"])
def test_damaged_image_raises_nothing_but_bad_image_errors(suffix, tmp_path):
    data = save(tmp_path / f"whole.{suffix}", make_image(16, 16)).read_bytes()
    path = tmp_path / f"a.{suffix}"
    rng = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(data)
        for position in rng.integers(len(data), size=3):
            damaged[position] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            read_image(path)
        except BadImageError as error:
            assert "\n" not in str(error)  # noqa: PT017


def test_missing_image_is_named(tmp_path):
    with pytest.raises(UserError, match=r"a\.png: .*\(No such file or directory\)"):
        read_image(tmp_path / "a.png")


def test_folder_is_no_image(tmp_path):
    with pytest.raises(UserError, match=r"not a readable image \(is a folder\)"):
        read_image(tmp_path)


def warning_tiff(path):
    """A TIFF with more values in a tag than it may have, of which Pillow warns."""
    data = make_tiff("<", np.array([[7]], "<u2"))
    extra = struct.pack("<HHIHH", 339, 3, 1, 1, 0)
    path.write_bytes(data.replace(extra, struct.pack("<HHII", 339, 3, 9999, 4)))
    return path


def test_warnings_of_pillow_do_not_leak(tmp_path):
    path = warning_tiff(tmp_path / "a.tif")
    with pytest.warns(UserWarning, match="Tag|tag|metadata"), Image.open(path) as image:
        image.load()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read_image(path)
        warnings.warn("mine", stacklevel=1)
    assert [str(w.message) for w in caught] == ["mine"]


def test_log_of_pillow_does_not_leak(tmp_path, caplog):
    path = tmp_path / "a.tif"
    path.write_bytes(tiff_of_bands(7))
    with pytest.raises(BadImageError):
        read_image(path)
    assert caplog.text == ""


def test_reading_in_threads_leaves_the_filters_of_warnings(tmp_path):
    path = save(tmp_path / "a.png", make_image())
    read_image(path)
    before = list(warnings.filters)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(read_image, [path] * 200))
    assert warnings.filters == before


def tiff_of_bands(bands):
    """A TIFF of 2 x 2 pixels with so many values each."""
    entries = (
        *((256, 4, 2), (257, 4, 2), (258, 3, 8), (259, 3, 1), (262, 3, 1)),
        *((273, 4, 200), (277, 3, bands), (278, 4, 2), (279, 4, 4 * bands)),
    )
    body = b"".join(struct.pack("<HHII", tag, kind, 1, v) for tag, kind, v in entries)
    head = b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + b"\0" * 4
    return head.ljust(200, b"\0") + b"\1" * 4 * bands


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "it is a Git LFS",
        ),
        (b"../.git/annex/objects/Wq/9x/SHA256-s3", "it is a git-annex"),
        (b"\n<!DOCTYPE html>\n<html><body>404</body>", "it is an HTML page"),
        (b"<HTML><head>", "it is an HTML page"),
        (b"<?xml version='1.0'?>\n<svg width='3'/>", "it is an SVG drawing"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied", "it is XML"),
        (b'{"message": "rate limit"}', "it is JSON"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", r"HEIC, .*pip install pillow-heif"),
        (b"\0\0\0\x18ftypisom\0\0\0\0", "it is a video"),
        (b"PK\3\4rest", "it is a ZIP archive"),
        (b"\x93NUMPY\1\0", "it is a NumPy array"),
        (bytes(1000), "it is zeros alone"),
        (tiff_of_bands(5), "TIFF: 5 bands; 1, 3 and 4 are read"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "PNG: "),
    ],
    ids=range(14),
)
def test_what_is_no_image_is_named(content, message, tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(BadImageError, match=rf"image \({message}") as excinfo:
        read_image(path)
    assert one_line(excinfo)


def png_with(chunk, content, *, damaged=False):
    """A PNG of `make_image(64, 64)` and its bytes, with one more chunk."""
    whole = png_bytes()
    check = zlib.crc32(chunk + content) ^ damaged
    added = struct.pack(">I", len(content)) + chunk + content + struct.pack(">I", check)
    return whole[:33] + added + whole[33:]


@pytest.mark.parametrize(
    "content",
    [
        png_with(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(3_000_000))),
        png_with(b"iCCP", b"profile\0\0" + zlib.compress(bytes(3_000_000))),
        png_with(b"iTXt", b"key\0\1\0\0\0" + zlib.compress(bytes(3_000_000))),
        png_with(b"tEXt", b"Comment\0" + b"x" * 70_000_000),
        png_with(b"tEXt", b"Comment\0hello", damaged=True),
        png_with(b"prVt", b"mine", damaged=True),
    ],
    ids=["zTXt", "iCCP", "iTXt", "tEXt", "damaged", "private"],
)
def test_pixels_of_a_png_do_not_hang_on_what_else_it_says(content, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises((ValueError, SyntaxError, OSError)), Image.open(path) as image:
        image.load()
    np.testing.assert_array_equal(read_image(path), make_image(64, 64))


def test_orientation_of_a_png_outlives_a_damaged_text(tmp_path):
    exif = Image.Exif()
    exif[274] = 3
    path = save(tmp_path / "a.png", make_image(), exif=exif)
    text = b"Comment\0hello"
    chunk = struct.pack(">I", len(text)) + b"tEXt" + text + b"none"
    content = path.read_bytes()
    path.write_bytes(content[:33] + chunk + content[33:])
    np.testing.assert_array_equal(read_image(path), make_image()[::-1, ::-1])


def test_damaged_pixels_of_a_png_stay_an_error(tmp_path):
    path = tmp_path / "a.png"
    content = bytearray(png_with(b"tEXt", b"Comment\0hello", damaged=True))
    content[content.index(b"IDAT") + 100] ^= 1
    path.write_bytes(content)
    with pytest.raises(BadImageError):
        read_image(path)


def test_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"\(is a pipe, socket or device\)"):
        read_image(tmp_path / "a.png")


# Sizes


def centre(image, size):
    H, W = (size, size) if isinstance(size, int) else size
    return Frame((H, W, 3)).show(image)


@pytest.mark.parametrize("size", [5, (5, 5)])
def test_image_of_the_size_is_returned_untouched(size):
    image = make_image(5, 5)
    assert centre(image, size) is image


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (31, 45), (7, 9), (64, 64)])
@pytest.mark.parametrize("size", [16, (16, 24), (24, 16)])
def test_resize_then_crop_of_the_centre(shape, size):
    image = make_image(*shape)
    height, width = (size, size) if isinstance(size, int) else size
    scale = max(height / shape[0], width / shape[1])
    scaled = [max(int(shape[0] * scale), height), max(int(shape[1] * scale), width)]
    whole = Image.fromarray(image).resize(scaled[::-1], Image.Resampling.BILINEAR)
    top, left = (round((a - b) / 2) for a, b in zip(scaled, (height, width)))  # noqa: B905
    expected = np.asarray(whole)[top : top + height, left : left + width]
    result = centre(image, size)
    assert result.shape == (height, width, 3)
    assert np.abs(result.astype(int) - expected).max() <= 1


def test_shrinking_averages():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(centre(stripes, 8).astype(int) - 127).max() <= 8


def test_line_of_pixels_is_cropped_in_little_memory():
    line = np.zeros((1, 1_000_000, 3), np.uint8)
    line[0, 400_000:600_000] = 9
    assert np.all(centre(line, (4000, 4)) == 9)


# Folders


def test_images_are_found_recursively_and_sorted(tmp_path):
    names = ["b.png", "a/z.JPG", "a/b/c.webp", "B.TiFf", "c.gif", "d.bmp", "e.ppm"]
    for name in [*names, "notes.txt", "a.png.bak", ".hidden.png", ".h/d.png"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert find_images(tmp_path) == sorted(tmp_path / name for name in names)


def photo(path, form="PNG"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(make_image(8, 8)).convert("L").save(path, form)
    return path


@pytest.mark.parametrize(
    ("ending", "form"),
    [
        *((e, "JPEG") for e in ("jpg", "JPE", "jfif", "jpeg")),
        *((e, "PPM") for e in ("pgm", "pnm")),
        *(("avif", "AVIF"), ("jp2", "JPEG2000"), ("tga", "TGA"), ("pcx", "PCX")),
        *(
            ("ico", "ICO"),
            ("dds", "DDS"),
            ("sgi", "SGI"),
            ("dib", "DIB"),
            ("apng", "PNG"),
        ),
    ],
)
def test_whatever_pillow_reads_is_found_and_read(ending, form, tmp_path):
    path = tmp_path / f"a.{ending}"
    kind = "RGB" if form in ("AVIF", "DDS") else "L"
    Image.fromarray(make_image(8, 8)).convert(kind).save(path, form)
    assert scan(tmp_path).paths == [path.name]
    assert read_image(path).shape == (8, 8, 3)


def test_endings_are_those_that_pillow_knows():
    Image.init()
    known = Image.registered_extensions()
    for ending, form in formats._BY_ENDING.items():
        wanted = {"MPO", "JPEG"} if ending == ".mpo" else {form}
        assert known[ending] in wanted, ending
    unread = {e for e, f in known.items() if f in formats._BY_ENDING.values()}
    assert unread <= set(formats._BY_ENDING)


def test_file_without_an_ending_is_known_by_its_content(tmp_path):
    photo(tmp_path / "0001")
    photo(tmp_path / "photo", "JPEG")
    (tmp_path / "README").write_text("BM is how a bitmap begins\n")
    (tmp_path / "empty").touch()
    found = scan(tmp_path)
    assert found.paths == ["0001", "photo"]
    assert describe_left_out(found.left_out) == "left out 2 without an ending"


def test_what_is_left_out_is_counted_by_ending(tmp_path):
    photo(tmp_path / "a.png")
    for name in ("a.txt", "b.TXT", "x.heic", "sub/c.txt", "d.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    os.mkfifo(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "s.png"))
        found = scan(tmp_path)
    assert found.paths == ["a.png"]
    assert describe_left_out(found.left_out) == (
        "left out 3 .txt, 2 pipes, sockets or devices, 1 .heic"
        " (pip install pillow-heif), 1 .json"
    )


def test_heic_is_read_with_its_extra(tmp_path, monkeypatch):
    registered = []
    plugin = types.SimpleNamespace(register_heif_opener=lambda: registered.append(1))
    monkeypatch.setitem(sys.modules, "pillow_heif", plugin)
    for function in (formats.reads_heic, formats._known_formats):
        function.cache_clear()
    try:
        (tmp_path / "a.HEIC").touch()
        assert scan(tmp_path).paths == ["a.HEIC"]
        assert registered == [1]
    finally:
        for function in (formats.reads_heic, formats._known_formats):
            function.cache_clear()


def test_linked_folders_are_searched_once_and_circles_end(tmp_path):
    root, other = tmp_path / "root" / "cat", tmp_path / "elsewhere"
    photo(root / "z" / "a.png")
    photo(other / "b.png")
    (root / "a_link_to_z").symlink_to(root / "z")
    (root / "linked").symlink_to(other)
    (root / "z" / "round").symlink_to(root)
    (root / "up").symlink_to(tmp_path)
    (other / "back").symlink_to(root)
    (root / "self.png").symlink_to(root / "self.png")
    photo(tmp_path / "root" / "dog" / "neighbour.png")
    assert scan(root).paths == ["linked/b.png", "self.png", "z/a.png"]


def test_link_that_leads_nowhere_is_an_error_when_read(tmp_path):
    (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
    (path,) = find_images(tmp_path)
    with pytest.raises(UserError, match="No such file"):
        read_image(path)


def test_names_of_any_bytes_are_found(tmp_path):
    name = os.fsdecode(b"caf\xe9\n$x$")
    photo(tmp_path / name / "a.png")
    (path,) = find_images(tmp_path)
    assert read_image(path).shape == (8, 8, 3)


def test_images_in_a_hidden_folder_itself_are_found(tmp_path):
    (tmp_path / ".h").mkdir()
    (tmp_path / ".h" / "a.png").touch()
    assert find_images(tmp_path / ".h") == [tmp_path / ".h" / "a.png"]


def test_folder_without_images_names_the_suffixes(tmp_path):
    (tmp_path / "a.txt").touch()
    with pytest.raises(UserError, match=r"holds no image.*\.jpg, .*\.ppm") as excinfo:
        find_images(tmp_path)
    assert str(tmp_path) in str(excinfo.value)
    assert one_line(excinfo)


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere: no such folder\Z"):
        find_images(tmp_path / "nowhere")


# ImageFiles


def test_image_files_are_a_source(tmp_path):
    images = [make_image(8, 6, seed) for seed in range(2)]
    paths = [save(tmp_path / f"{i}.png", image) for i, image in enumerate(images)]
    files = ImageFiles(tuple(paths), Frame((8, 6, 3)))
    assert len(files) == 2
    np.testing.assert_array_equal(files[1]["image"], images[1])


def test_image_files_have_the_size_asked_for(tmp_path):
    path = save(tmp_path / "a.png", make_image(20, 30))
    assert ImageFiles((path,), Frame((8, 6, 3)))[0]["image"].shape == (8, 6, 3)


def test_image_files_are_read_when_asked_for(tmp_path):
    files = ImageFiles((tmp_path / "later.png",), Frame((4, 6, 3)))
    save(tmp_path / "later.png", make_image())
    np.testing.assert_array_equal(files[0]["image"], make_image())


def test_image_files_go_to_other_processes(tmp_path):
    files = ImageFiles((save(tmp_path / "a.png", make_image()),), Frame((4, 6, 3)))
    copy = pickle.loads(pickle.dumps(files))
    np.testing.assert_array_equal(copy[0]["image"], make_image())
