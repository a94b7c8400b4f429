"""Where a user says that something lies."""

import os
import pathlib
import re
from typing import Any

from jaxattn.errors import UserError

# One letter is a drive of Windows; a `pathlib.Path` has made one slash of two.
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")


def local_path(path: str | os.PathLike[str], key: str = "path") -> pathlib.Path:
    """Returns a path of this machine as a user gave it, with `~` expanded.

    Args:
        path: Of a file or folder, which need not exist.
        key: What the message calls it.

    Raises:
        UserError: If it is no path, or an address such as `gs://bucket/run`.
    """
    given: Any = path
    text = os.fspath(given) if isinstance(given, str | os.PathLike) else None
    if not isinstance(text, str) or not text or "\0" in text:
        raise UserError(f"{key}={given!r}: must be a path")
    if match := _ADDRESS.match(text):
        raise UserError(
            f"{key}={given}: must be a path of this machine; {match[1]}:// is not"
            " supported"
        )
    try:
        return pathlib.Path(given).expanduser()
    except RuntimeError:  # no such user, or no home
        return pathlib.Path(given)
