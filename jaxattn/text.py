"""Names from a file system as a person, a terminal and a file take them.

A name may hold any byte but `/`. Python keeps bytes that are not UTF-8 as lone
surrogates, which can be written nowhere, and a line break tears tables and messages.
"""

import unicodedata
from collections.abc import Sequence

# Control characters, lone surrogates, breaks of lines and paragraphs.
_NOT_SHOWN = {"Cc", "Cs", "Zl", "Zp"}
# What turns the writing around, so that a name reads as another one.
_TURNING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def printable(text: str) -> str:
    r"""Returns a text of one line, what cannot be shown written as Python does.

    A line break is `\n`, a byte that is not UTF-8 such as `\xe9`.
    """
    if text.isprintable():
        return text
    return "".join(escaped(c) if _is_hidden(c) else c for c in text)


def escaped(character: str) -> str:
    r"""Returns a character as Python writes it: `\n`, `\xe9`, `\u72ac`."""
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # where Python keeps a byte
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape", "surrogatepass").decode()


def some_of(names: Sequence[str], most: int = 5) -> str:
    """Returns the first of several names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def in_words(figure: str) -> str:
    """Returns the key of a figure as a person reads it: `mean IoU` of "mean_iou"."""
    return figure.replace("_", " ").replace("iou", "IoU")


def shortened(text: str, most: int = 400) -> str:
    """Returns a text of no more than so many characters, then dots."""
    return text if len(text) <= most else f"{text[:most]} ..."


def _is_hidden(character: str) -> bool:
    return unicodedata.category(character) in _NOT_SHOWN or character in _TURNING
