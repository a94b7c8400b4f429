"""Files that are whole or not there."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from jaxattn.errors import UserError, reraise_machine_fault
from jaxattn.paths import local_path


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Yields where to write a file that takes the place of `path` once it is whole.

    Args:
        path: The file; its folder exists. Through a link, which is not replaced itself.

    Raises:
        OSError: If it cannot be written; names the path.
    """
    target = pathlib.Path(os.path.realpath(path))
    # Of a name as long as names may be, the beginning.
    temporary = target.with_name(f".{target.name[:40]}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, target)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_atomically(path: str | os.PathLike[str], data: str | bytes) -> None:
    """Writes a file whole or not at all: an earlier one stays until then.

    Args:
        path: The file; its folder exists.
        data: The content; text is written as UTF-8.

    Raises:
        OSError: If it cannot be written; names the path.
    """
    with replacing(path) as temporary:
        if isinstance(data, str):  # names of files need not be UTF-8
            data = data.encode(errors="backslashreplace")
        temporary.write_bytes(data)


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Writes a JSON file as `write_atomically` does.

    Args:
        path: The file; its folder exists.
        content: What JSON knows; of anything else its text.

    Raises:
        OSError: If it cannot be written; names the path.
    """
    write_atomically(path, json.dumps(content, indent=2, default=str) + "\n")


def require_writable(path: str | os.PathLike[str]) -> None:
    """Makes the folder of a file, and raises a `UserError` if none can be written."""
    path = local_path(path)
    if os.path.exists(path) and not os.path.isfile(path):
        kind = "a folder" if os.path.isdir(path) else "not a regular file"
        raise UserError(f"{path}: cannot be written (is {kind})")
    parent = path.resolve().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reraise_machine_fault(error)
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
    if not os.access(parent, os.W_OK):
        raise UserError(f"{path}: cannot be written (its folder is read-only)")
