"""Names and colours of classes, as a file beside the data lists them."""

import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

from jaxattn.errors import UserError, first_repeated, reraise_machine_fault

Color = tuple[int, int, int]

CLASSES_FILE = "classes.txt"
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


def read_classes(folder: pathlib.Path) -> Classes:
    """Reads the file `classes.txt` of a folder; see `parse_classes`.

    Raises:
        UserError: If there is none, or a line is wrong.
    """
    path = folder / CLASSES_FILE
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UserError(
            f"data.path={folder}: holds no {CLASSES_FILE}, which must name the classes,"
            " one a line in the order of their numbers; or give data.classes"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        reraise_machine_fault(error)
        raise UserError(f"{path}: not readable as text ({error})") from error
    return parse_classes(lines, str(path))


def parse_classes(lines: Sequence[str], origin: str) -> Classes:
    """Returns the classes of which there is one a line.

    Args:
        lines: A name, and if wanted red, green and blue: `road 128 64 128`. Empty lines
            and those that begin with # do not count.
        origin: What errors call them.

    Raises:
        UserError: If a line is wrong, or there are fewer than two classes.
    """
    names, colors = [], []
    for line in (str(line).strip() for line in lines):
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
