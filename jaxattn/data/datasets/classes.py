"""Names and colours of classes, as a file beside the data lists them."""

import os
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from jaxattn.errors import UserError, first_repeated, reraise_machine_fault
from jaxattn.paths import local_path

Color = tuple[int, int, int]

CLASSES_FILE = "classes.txt"
_KEY = "data.classes"
_MAX_CLASSES = 255  # for 255 itself is ignored
_LINE = re.compile(r"(.*?\S)(?:\s+(\d+)[\s,]+(\d+)[\s,]+(\d+))?\s*")


class Classes(NamedTuple):
    """What the classes of a data set are called and shown in.

    Attributes:
        names: Of each class.
        colors: Red, green and blue of each, 0 to 255; None if nothing says.
    """

    names: tuple[str, ...]
    colors: tuple[Color, ...] | None = None


def read_classes(given: str | Sequence[str] | None, folder: pathlib.Path) -> Classes:
    """Reads one class a line: a name, and if wanted red, green and blue.

    Args:
        given: A file, or its lines; None: `classes.txt` in the folder.
        folder: Of the data.

    Raises:
        UserError: If there is no such file, or a line is wrong.
    """
    if given is None or isinstance(given, str):
        path = folder / CLASSES_FILE if given is None else local_path(given, _KEY)
        return _parse(_read_lines(path, folder, given), str(path))
    return _parse(map(str, given), _KEY)


def _read_lines(
    path: pathlib.Path, folder: pathlib.Path, given: str | None
) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        if given is not None:
            raise UserError(f"{_KEY}={given}: no such file") from None
        raise UserError(
            f"data.path={folder}: holds no {CLASSES_FILE}, which must name the classes,"
            f" one a line in the order of their numbers; or give {_KEY}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        reraise_machine_fault(error)
        raise UserError(f"{os.fspath(path)}: not readable as text ({error})") from error


def _parse(lines: Iterable[str], origin: str) -> Classes:
    names, colors = [], []
    for line in map(str.strip, lines):
        if line and not line.startswith("#"):
            match = _LINE.fullmatch(line)
            assert match is not None  # any line with a letter matches
            name, *color = match.groups()
            names.append(name)
            colors += [tuple(map(int, color))] if None not in color else []
    for name, color in zip(names, colors, strict=False):
        if max(color) > 255:
            raise UserError(
                f"{origin}: {name} has the colour {color}, must be 0 to 255"
            )
    if len(colors) not in (0, len(names)):
        raise UserError(
            f"{origin}: {len(colors)} of {len(names)} classes have a colour, must be"
            " all or none"
        )
    if not 2 <= len(names) <= _MAX_CLASSES:
        raise UserError(
            f"{origin}: names {len(names)} classes, must be 2 to {_MAX_CLASSES}"
            " (background is one)"
        )
    if (repeated := first_repeated(names)) is not None:
        raise UserError(f"{origin}: names {repeated} twice, must be different classes")
    return Classes(tuple(names), tuple(colors) or None)
