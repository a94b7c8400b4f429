"""Faults of the machine, told with what a run has saved."""

import contextlib
import pathlib
from collections.abc import Iterator

from jaxattn.errors import MachineError, describe_fault
from jaxattn.training.checkpoints.checkpoint import Checkpoints


@contextlib.contextmanager
def telling_what_is_saved(
    checkpoints: Checkpoints, workdir: pathlib.Path
) -> Iterator[None]:
    """Makes a fault of the machine a `MachineError` that says how the run goes on."""
    try:
        yield
    except Exception as error:
        if (fault := describe_fault(error)) is None:
            raise
        saved = describe_saved(checkpoints, workdir)
        raise MachineError(f"{fault}; {saved}") from error


def describe_saved(checkpoints: Checkpoints, workdir: pathlib.Path) -> str:
    """Returns what a run has saved, and how it goes on, in one line."""
    steps = checkpoints.all_steps()
    saved = f"step {steps[-1]} is" if steps else "nothing is"
    return f"{saved} saved in {workdir}; repeat the command to go on"
