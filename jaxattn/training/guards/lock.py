"""One run at a time in a workdir."""

import contextlib
import logging
import os
import pathlib
from collections.abc import Iterator

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None

from jaxattn.errors import UserError, reraise_machine_fault
from jaxattn.paths import local_path

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def workdir_lock(workdir: str | os.PathLike[str]) -> Iterator[None]:
    """Keeps every other run out of the workdir while the context is open.

    The lock is the kernel's, on `<workdir>/.lock`: it vanishes with the process,
    however that ends, and the file stays. Of several processes of one run only the
    first may take it.

    Args:
        workdir: The run's folder, created if it is missing.

    Raises:
        UserError: Another run holds the lock, or the folder cannot be written.
    """
    path = local_path(workdir, "workdir").resolve() / ".lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        reraise_machine_fault(error)
        raise UserError(
            f"workdir {path.parent} cannot be written: {error.strerror}"
        ) from error
    with file:
        _lock(file.fileno(), path)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def _lock(descriptor: int, path: pathlib.Path) -> None:
    if fcntl is None:
        logger.warning("%s: this system has no such lock; start one run only", path)
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        pid = path.read_text().strip() or "unknown"
        raise UserError(f"workdir {path.parent} is in use by pid {pid}") from error
    except OSError as error:
        # Some network file systems have no locks; a run must be possible there too.
        logger.warning("%s cannot be locked: %s", path, error.strerror)
