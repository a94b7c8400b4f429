"""The image files of a folder, and what else lies there."""

import collections
import hashlib
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from jaxattn.data import formats
from jaxattn.errors import UserError

# What is counted of files by their ending where they have none.
_NO_ENDING = "without an ending"
_SPECIAL = "pipes, sockets or devices"
_NUM_SHOWN = 6


class Found(NamedTuple):
    """What a folder holds.

    Attributes:
        paths: Image files, relative to the folder with `/` between names, sorted.
        sizes: Of each, in bytes; -1 of a link that leads nowhere.
        left_out: How many other files there are, by their ending.
    """

    paths: list[str]
    sizes: list[int]
    left_out: Mapping[str, int]


def find_images(folder: str | os.PathLike[str]) -> list[pathlib.Path]:
    """Finds the image files in a folder and the folders inside it, as `scan` does.

    Args:
        folder: The folder.

    Returns:
        The files, sorted.

    Raises:
        UserError: There is no such folder, or no image in it.
    """
    found = scan(folder)
    require_images(folder, found)
    return [pathlib.Path(folder, path) for path in found.paths]


def require_images(folder: str | os.PathLike[str], found: Found) -> None:
    """Raises a `UserError` if a folder holds no image."""
    if not found.paths:
        others = describe_left_out(found.left_out)
        raise UserError(
            f"{folder}: holds no image{f' ({others})' if others else ''}; must hold"
            f" files ending in {', '.join(formats.endings())}"
        )


def scan(folder: str | os.PathLike[str]) -> Found:
    """Finds the image files in a folder and the folders inside it; opens few.

    A file is an image by the ending of its name, in any case; one without an ending by
    its first bytes. Hidden files and folders are skipped. Links are followed, to
    folders too, each of which counts once: what lies at two paths is found at the one
    that no link leads to, and circles end.

    Args:
        folder: The folder.

    Raises:
        UserError: There is no such folder, or it cannot be read.
    """
    if not os.path.isdir(folder):
        raise UserError(f"{folder}: no such folder")
    root = os.path.join(os.fspath(folder), "")  # which every path begins with
    sizes: dict[str, int] = {}
    left_out: collections.Counter[str] = collections.Counter()
    for entry in _walk(root):
        if (size := _image_size(entry)) is not None:
            sizes[entry.path[len(root) :]] = size
        else:
            left_out[_kind(entry)] += 1
    # As paths are sorted: folder by folder.
    paths = sorted(sizes, key=lambda path: path.split(os.sep))
    return Found(
        [path.replace(os.sep, "/") for path in paths],
        [sizes[path] for path in paths],
        dict(left_out.most_common()),
    )


def fingerprint(found: Found) -> str:
    """Returns how many files of how many bytes there are, and a digest.

    It is of their names and sizes, so that no file need be read.
    """
    digest = hashlib.sha256()
    for path, size in zip(found.paths, found.sizes, strict=True):
        digest.update(f"{path}\0{size}\n".encode(errors="surrogateescape"))
    count, size = len(found.paths), sum(found.sizes)
    files = "1 file" if count == 1 else f"{count} files"
    return f"{files} of {size} bytes, sha256 {digest.hexdigest()[:16]}"


def describe_left_out(left_out: Mapping[str, int]) -> str:
    """Returns which files are no images, in half a line; "" of none."""
    if not left_out:
        return ""
    kinds = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{count:,} {_advised(kind)}" for kind, count in kinds[:_NUM_SHOWN]]
    if len(kinds) > _NUM_SHOWN:
        shown.append(f"{sum(n for _, n in kinds[_NUM_SHOWN:]):,} others")
    return f"left out {', '.join(shown)}"


def _advised(kind: str) -> str:
    advice = formats.lacking(kind)
    return f"{kind} ({advice})" if advice else kind


def _walk(root: str) -> Iterator[os.DirEntry[str]]:
    """Yields what is in a folder and the folders inside it, but folders."""
    # A link to a folder that this one lies in would bring in its neighbours.
    seen = {
        _identity(p)
        for path in (os.path.abspath(root), os.path.realpath(root))
        for p in pathlib.Path(path).parents
    }
    folders, links = [root], []
    while folders or links:
        parent = folders.pop() if folders else links.pop(links.index(min(links)))
        try:
            if (identity := _identity(parent)) in seen:
                continue
            seen.add(identity)
            with os.scandir(parent) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if not _is(entry, "is_dir"):
                        yield entry
                    elif entry.is_symlink():
                        links.append(entry.path)
                    else:
                        folders.append(entry.path)
        except OSError as error:
            raise UserError(f"{parent}: not readable ({error.strerror})") from error


def _identity(path: str | os.PathLike[str]) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _is(entry: os.DirEntry[str], kind: str) -> bool:
    try:
        return getattr(entry, kind)()
    except OSError:  # a link to itself
        return False


def _image_size(entry: os.DirEntry[str]) -> int | None:
    """The size of an image file in bytes; None of what is none."""
    if _is(entry, "is_file"):
        is_image = formats.has_image_ending(entry.name)
        if not is_image and not formats.ending_of(entry.name):
            is_image = is_image_file(entry.path)
        return entry.stat().st_size if is_image else None
    # Reading says of a link that leads nowhere that there is no such file.
    is_lost = entry.is_symlink() and not os.path.exists(entry.path)
    return -1 if is_lost and formats.has_image_ending(entry.name) else None


def is_image_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file is an image by its first bytes; False if it cannot be opened."""
    if not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as file:
            return formats.has_image_content(file.read(formats.HEAD_BYTES))
    except OSError:
        return False


def _kind(entry: os.DirEntry[str]) -> str:
    if not _is(entry, "is_file") and not entry.is_symlink():
        return _SPECIAL
    return formats.ending_of(entry.name) or _NO_ENDING
