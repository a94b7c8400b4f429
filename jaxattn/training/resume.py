"""What must hold for a run to go on in its workdir."""

import json
import math
import pathlib

from jaxattn.config.changes import changed_since
from jaxattn.config.record import read_record
from jaxattn.errors import UserError, require
from jaxattn.ops import cpu_kernels
from jaxattn.training.optim import RunLength, find_length_clash
from jaxattn.training.run import Run

ByStep = dict[str, str]
"""Whose convolutions a run is trained with: by the step after which they are."""


def refuse_finished(workdir: pathlib.Path) -> None:
    """Refuses to begin anew where a run has finished and its checkpoints are gone.

    Args:
        workdir: Folder of the run.

    Raises:
        UserError: If it has.
    """
    if (workdir / "results.json").exists():
        raise UserError(
            f"workdir {workdir}: holds the results of a run but no checkpoint; put"
            " checkpoints/ back, or use another workdir"
        )


def check_config(run: Run, workdir: pathlib.Path, step: int) -> list[str]:
    """Compares the config of a run that goes on with the one it began with.

    Args:
        run: As it is wanted now.
        workdir: Folder of the run.
        step: The step that it goes on from.

    Returns:
        The changes that do not matter, a line each.

    Raises:
        UserError: If there are others, or data have changed.
    """
    path = workdir / "config.json"
    if not path.exists():
        return ["config.json was missing"]
    saved = read_record(path)
    changes = changed_since(saved, run.record, may_differ=("num_epochs",))
    before, now = saved.get("num_epochs"), run.options.num_epochs
    if before != now:
        _check_length(run, workdir, step, before)
    return changes


def convolutions_by_step(run: Run, workdir: pathlib.Path, step: int) -> ByStep:
    """Returns whose convolutions a run has been trained with, and is from now on.

    Args:
        run: As it is wanted now.
        workdir: Folder of the run.
        step: The step that it goes on from.
    """
    now = cpu_kernels.name_of_convolutions()
    path = workdir / "config.json"
    if not step or not path.exists():
        return {"0": now}
    saved = json.loads(path.read_text()).get("versions", {})
    # Earlier versions were silent about XLA's.
    known = {"0": saved.get("convolutions", "XLA")}
    known = saved.get("convolutions_by_step", known)
    kept = {key: name for key, name in known.items() if int(key) < step}
    last = list(kept.values())[-1]
    is_over = step == run.total_steps
    return kept if is_over or last == now else {**kept, str(step): now}


def _check_length(run: Run, workdir: pathlib.Path, step: int, before: int) -> None:
    """Refuses another `num_epochs` if the steps done would have been others with it."""
    now, per_epoch = run.options.num_epochs, run.steps_per_epoch
    done = math.ceil(step / per_epoch)
    require("num_epochs", now, step <= run.total_steps, f"at least the {done} done")
    clash = find_length_clash(
        run.config["schedule"],
        run.config["optimizer"],
        step,
        before=RunLength(before, per_epoch),
        now=RunLength(now, per_epoch),
    )
    if clash is not None:
        raise UserError(
            f"num_epochs: {before} -> {now}: with {clash} the {step} steps done would"
            " have been others; to train on from these weights, use another workdir and"
            f" --config.init_from={workdir}"
        )
