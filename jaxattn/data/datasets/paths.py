"""Where a data set lies on this machine."""

import pathlib

from jaxattn.errors import UserError
from jaxattn.paths import local_path


def existing(path: str) -> pathlib.Path:
    """Returns the file or folder of `data.path`.

    Raises:
        UserError: There is none.
    """
    where = local_path(path, "data.path")
    if not where.exists():
        raise UserError(f"data.path={path}: no such file or folder")
    return where
