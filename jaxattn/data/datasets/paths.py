"""Where a data set lies on this machine."""

import os
import pathlib

from jaxattn.errors import UserError


def existing(path: str) -> pathlib.Path:
    """Returns the file or folder of `data.path`.

    Raises:
        UserError: There is none.
    """
    where = pathlib.Path(os.path.expanduser(path))
    if not where.exists():
        raise UserError(f"data.path={path}: no such file or folder")
    return where
