"""What an image file is: by the ending of its name, and by its first bytes.

Formats are those in which photographs and drawings come. Others that Pillow knows are
left alone: for some it runs another program, and some are no images at all.
"""

import functools
import re
from typing import BinaryIO

from jaxattn.errors import reason
from jaxattn.text import printable

_HEIC = (".heic", ".heif", ".hif")
HEIC_ADVICE = "pip install pillow-heif"
"""How HEIC, which Pillow alone does not read, is had."""

_BY_ENDING = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".mpo": "JPEG",  # some phones' photographs: several JPEGs in one file
    ".png": "PNG",
    ".apng": "PNG",
    ".webp": "WEBP",
    ".avif": "AVIF",
    ".avifs": "AVIF",
    ".gif": "GIF",
    ".bmp": "BMP",
    ".dib": "DIB",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".ppm": "PPM",
    ".pgm": "PPM",
    ".pbm": "PPM",
    ".pnm": "PPM",
    ".pfm": "PPM",
    ".jp2": "JPEG2000",
    ".j2k": "JPEG2000",
    ".j2c": "JPEG2000",
    ".jpc": "JPEG2000",
    ".jpf": "JPEG2000",
    ".jpx": "JPEG2000",
    ".ico": "ICO",
    ".psd": "PSD",
    ".dds": "DDS",
    ".qoi": "QOI",
    ".ras": "SUN",
    ".pcx": "PCX",
    ".sgi": "SGI",
    ".rgb": "SGI",
    ".rgba": "SGI",
    ".bw": "SGI",
    ".tga": "TGA",
    ".icb": "TGA",
    ".vda": "TGA",
    ".vst": "TGA",
}
# Hardly told by their first bytes: tried only where the ending says so.
_VAGUE = ("DIB", "PCX", "SGI", "TGA")

HEAD_BYTES = 512
"""How much of a file's beginning tells what it is."""

# The beginnings of formats. A name of one ending or none is told by these.
_MAGIC = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "GIF": rb"GIF8[79]a",
    "WEBP": rb"RIFF.{4}WEBP",
    "BMP": rb"BM.{4}\0{4}",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "PPM": rb"P[1-6]\s|P[Ff]\s",
    "AVIF": rb".{4}ftyp(avif|avis)",
    "HEIC": rb".{4}ftyp(hei[cxms]|hev[cxms]|mif1|msf1)",
    "JPEG2000": rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
    "ICO": rb"\0\0\x01\0[^\0]\0",
    "PSD": rb"8BPS\0[\x01\x02]",
    "DDS": rb"DDS \x7c",
    "QOI": rb"qoif",
    "SUN": rb"\x59\xa6\x6a\x95",
}
_OTHERS = {
    "a Git LFS pointer, not the image: git lfs pull fetches it": (
        rb"version https://git-lfs"
    ),
    "a git-annex pointer, not the image: git annex get fetches it": (
        rb"(\.\./)*(\.git)?/annex/objects/"
    ),
    "an HTML page, as a failed download leaves it": (
        rb"(?i)(\xef\xbb\xbf)?\s*(<!--.*?-->\s*)?<(!doctype html|html|head|body)"
    ),
    "an SVG drawing, which has no pixels": (
        rb"(?i)(\xef\xbb\xbf)?\s*(<svg|(<\?xml|<!--|<!doctype svg).*<svg)"
    ),
    "XML": rb"(\xef\xbb\xbf)?\s*<\?xml",
    "JSON, as a failed download may leave it": rb'\s*\{\s*"',
    "a PDF": rb"%PDF-",
    "PostScript": rb"%!PS",
    "a ZIP archive": rb"PK\x03\x04",
    "an archive packed by gzip": rb"\x1f\x8b",
    "a NumPy array; arrays are given in an .npz": rb"\x93NUMPY",
    "a video": rb".{4}ftyp|\x1aE\xdf\xa3|RIFF.{4}AVI ",
    "zeros alone, as an interrupted copy leaves it": rb"\0+\Z",
}


def endings() -> tuple[str, ...]:
    """Returns the endings, in lower case, by which image files are known."""
    return (*_BY_ENDING, *(_HEIC if reads_heic() else ()))


def ending_of(name: str) -> str:
    """Returns the ending of a file's name in lower case, "" of none."""
    stem, dot, ending = name.rpartition(".")
    return f".{ending.lower()}" if dot and stem and ending else ""


def has_image_ending(name: str) -> bool:
    """Whether a file's name ends as those of images do."""
    ending = ending_of(name)
    return ending in _BY_ENDING or (ending in _HEIC and reads_heic())


def lacking(ending: str) -> str | None:
    """Returns how files of an ending could be read that are not read here, or None."""
    return HEIC_ADVICE if ending in _HEIC and not reads_heic() else None


@functools.cache
def reads_heic() -> bool:
    """Whether HEIC is read here: a package, the extra `heic`, teaches it to Pillow."""
    try:
        import pillow_heif  # pyright: ignore[reportMissingImports]
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def formats_of(name: str) -> tuple[str, ...]:
    """Returns the formats, as Pillow calls them, that a file of a name is tried for."""
    own = _BY_ENDING.get(ending_of(name))
    return (*_known_formats(), *([own] if own in _VAGUE else []))


@functools.cache
def _known_formats() -> tuple[str, ...]:
    from PIL import Image

    Image.init()
    names = dict.fromkeys(_BY_ENDING.values())
    names |= {"HEIF": None} if reads_heic() else {}
    return tuple(n for n in names if n not in _VAGUE and n in Image.OPEN)


def sniff(head: bytes) -> str | None:
    """Returns the format that a file's first bytes are of; None of no image."""
    return _match(_MAGIC, head)


def has_image_content(head: bytes) -> bool:
    """Whether a file that begins so is an image that is read here."""
    found = sniff(head)
    return found is not None and (found != "HEIC" or reads_heic())


def explain(stream: BinaryIO) -> str:
    """Returns why a file that no format takes is no readable image, in half a line.

    Args:
        stream: Its content; may be read from.
    """
    stream.seek(0)
    head = stream.read(HEAD_BYTES)
    if not head:
        return "the file is empty"
    found = sniff(head)
    if found == "HEIC" and not reads_heic():
        return f"HEIC, which needs another package: {HEIC_ADVICE}"
    if found == "AVIF" and found not in _known_formats():
        return "AVIF, which Pillow reads from version 11.3 on"
    if found is not None:
        return f"{found}: {_complaint(stream, found)}"
    if other := _match(_OTHERS, head):
        return f"it is {other}"
    return f"its content is none of {', '.join(_known_formats())}"


def _match(patterns: dict[str, bytes], head: bytes) -> str | None:
    matches = (n for n, p in patterns.items() if re.match(p, head, re.DOTALL))
    return next(matches, None)


def _complaint(stream: BinaryIO, found: str) -> str:
    """What one format says of a file; asked for several, Pillow says nothing."""
    from PIL import Image

    if found == "TIFF" and (bands := _bands(stream)) not in (None, 1, 3, 4):
        return f"{bands} bands; 1, 3 and 4 are read"
    stream.seek(0)
    try:
        opener: type[Image.Image] = Image.OPEN["HEIF" if found == "HEIC" else found][0]  # pyright: ignore[reportAssignmentType]
        opener(stream, "").close()  # pyright: ignore[reportCallIssue]
    except Exception as error:  # each format raises its own
        return printable(reason(error)) if str(error).strip() else "damaged"
    return "damaged"


def _bands(stream: BinaryIO) -> int | None:
    from PIL.TiffImagePlugin import SAMPLESPERPIXEL, ImageFileDirectory_v2

    stream.seek(0)
    try:
        head = stream.read(8)
        directory = ImageFileDirectory_v2(head)
        stream.seek(directory.next)
        directory.load(stream)
        return directory.get(SAMPLESPERPIXEL)
    except Exception:  # a damaged file
        return None
