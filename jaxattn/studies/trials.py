"""Several training runs, one after the other, each in a process of its own.

A process gives all memory of its run back, and what it fails of stays its own.
"""

import contextlib
import dataclasses
import itertools
import json
import multiprocessing
import os
import pathlib
import re
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from jaxattn import host
from jaxattn.config.changes import config_of, differences, is_harmless
from jaxattn.config.record import read_record
from jaxattn.errors import UserError, explain
from jaxattn.paths import local_path
from jaxattn.training.records.writer import read_metrics

# For a run to save once it was asked to stop. One that does not goes on from the
# checkpoint of its last epoch.
_GRACE_S = 60.0
_LONGEST_S = 1e6
_LOG = "train.log"
_STATES = {0: "finished", 1: "failed", 2: "mistake"}  # by exit code; others: a signal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """A training run that there is, or will be.

    Attributes:
        name: What lines about it call it.
        config: Of the run, as plain dicts.
        workdir: Its folder.
        may_differ: Further keys of the config that may be others in the workdir.
    """

    name: str
    config: dict[str, Any]
    workdir: pathlib.Path
    may_differ: tuple[str, ...] = ()

    def is_finished(self) -> bool:
        """Returns whether the workdir holds the finished run.

        Raises:
            UserError: If it holds a run of another config.
        """
        path = self.workdir / "config.json"
        if not path.exists():
            return False
        self.check_config(read_record(path), self.workdir)
        return (self.workdir / "results.json").exists()

    def check_config(self, saved: Mapping[str, Any], where: pathlib.Path) -> None:
        """Checks that a run that there is has this config.

        Args:
            saved: Content of its `config.json`.
            where: The run is.

        Raises:
            UserError: If it has another.
        """
        other = [
            line
            for key, line in differences(config_of(saved), self.config).items()
            if not is_harmless(key) and key not in self.may_differ
        ]
        if other:
            raise UserError(
                f"{where} is of another config ({'; '.join(other)}); use that one, or"
                " another folder"
            )


class Outcome(NamedTuple):
    """What came of an attempt.

    Attributes:
        state: "finished"; "stopped", to go on from there; "mistake", which the user can
            mend; or "failed".
        message: One line about it; empty if finished.
    """

    state: str
    message: str = ""


def make_trials(
    recipes: Sequence[str],
    seeds: Sequence[int],
    root: pathlib.Path,
    overrides: Sequence[str] = (),
) -> list[Trial]:
    """Returns the runs of several recipes with several seeds.

    Args:
        recipes: Names or files with their arguments, as `canet:tiny`.
        seeds: Of every recipe; its own one if there are none.
        root: Of the workdirs, which are `<root>/<recipe>/seed<n>`.
        overrides: Flags for all of them, as `--config.num_epochs=3`.

    Raises:
        UserError: If a recipe cannot be had, or two have one name.
    """
    trials = []
    for recipe in recipes:
        with _naming({"--config=": "--configs "}):
            found = list(_of_seeds(recipe_name(recipe), recipe, seeds, root, overrides))
        for trial in found:
            if any(trial.workdir == other.workdir for other in trials):
                raise UserError(f"--configs: {recipe} is {trial.name} once more")
            trials.append(trial)
    return trials


def make_grid(
    recipe: str,
    grid: Mapping[str, Sequence[str]],
    seeds: Sequence[int],
    root: pathlib.Path,
    overrides: Sequence[str] = (),
) -> list[Trial]:
    """Returns the runs of a recipe with every combination of some values.

    Args:
        recipe: Name or file with its argument, as `canet:tiny`.
        grid: By key of the config its values, as `--config.key=value` takes them.
        seeds: Of every combination; the recipe's own one if there are none.
        root: Of the workdirs, which are `<root>/<key>=<value>,.../seed<n>`.
        overrides: Flags for all of them, as `--config.num_epochs=3`.

    Raises:
        UserError: If the recipe cannot be had, has no such key or takes no such value,
            or two combinations are one.
    """
    trials: list[Trial] = []
    for values in itertools.product(*grid.values()):
        pairs = [f"{key}={value}" for key, value in zip(grid, values, strict=True)]
        flags = [*overrides, *(f"--config.{pair}" for pair in pairs)]
        with _naming({f"--config.{key}": f"--grid {key}" for key in grid}):
            found = list(_of_seeds(",".join(pairs), recipe, seeds, root, flags))
        for trial in found:
            for other in trials:
                if trial.workdir == other.workdir or trial.config == other.config:
                    raise UserError(f"--grid: {trial.name} is {other.name} once more")
            trials.append(trial)
    return trials


@contextlib.contextmanager
def _naming(options: Mapping[str, str]) -> Iterator[None]:
    """Makes errors name options as they were typed."""
    try:
        yield
    except UserError as error:
        message = str(error)
        for flag, typed in options.items():
            message = message.replace(flag, typed)
        raise UserError(message) from error


def _of_seeds(
    name: str,
    recipe: str,
    seeds: Sequence[int],
    root: pathlib.Path,
    overrides: Sequence[str],
) -> Iterator[Trial]:
    """Yields the runs of one config, each in a folder of its own."""
    from jaxattn.training.recipes import load_recipe

    folder = local_path(root, "root").resolve() / re.sub(r"[^\w.,=+-]+", "_", name)
    for seed in seeds or (None,):
        own = [] if seed is None else [f"--config.seed={seed}"]
        config = load_recipe(recipe, [*overrides, *own]).to_dict()
        workdir = folder / f"seed{config['seed']}"
        yield Trial(
            name=f"{name}, seed {config['seed']}", config=config, workdir=workdir
        )


def recipe_name(recipe: str) -> str:
    """Returns the name of a recipe or its file with its argument: `canet_tiny`."""
    file, _, argument = recipe.partition(":")
    parts = (pathlib.Path(file).stem, argument)
    return re.sub(r"\W+", "_", "_".join(part for part in parts if part))


def progress_of(workdir: pathlib.Path) -> tuple[int, int]:
    """Returns how many epochs of a run are done, and how many it has."""
    config = json.loads((workdir / "config.json").read_text())
    epochs = [row.get("epoch/epoch", 0) for row in read_metrics(workdir)]
    return int(max(epochs, default=0)), int(config["num_epochs"])


def train(trial: Trial, *, timeout_s: float | None = None) -> Outcome:
    """Trains a run in a process of its own, or resumes it.

    What the run says is in `train.log` of its workdir. The process starts this program
    anew: what is not for it stands under `if __name__ == "__main__"`.

    Args:
        trial: The run.
        timeout_s: After which it is asked to save and stop.
    """
    trial.workdir.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(theirs, trial.config, trial.workdir))
    with _exit_on_sigterm():
        process.start()
        theirs.close()
        try:
            # The system waits for no more than some weeks.
            process.join(timeout_s and min(timeout_s, _LONGEST_S))
        finally:
            was_asked = process.is_alive()
            if was_asked:
                process.terminate()
                process.join(_GRACE_S)
            process.kill()
            process.join()
    try:
        message, code = ours.recv()
    except EOFError:
        if was_asked:
            return Outcome("stopped", "stopped without saving")
        where = trial.workdir / _LOG
        return Outcome("failed", f"exit code {process.exitcode}, see {where}")
    return Outcome(_STATES.get(code, "stopped"), message)


def _work(
    connection: Connection, config: dict[str, Any], workdir: pathlib.Path
) -> None:
    """Trains, in a process of its own."""
    log = os.open(workdir / _LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    host.keep_compiled_programs()
    from absl import logging

    from jaxattn.training.loop import train_and_evaluate

    logging.set_verbosity(logging.WARNING)  # Orbax tells a story at every save
    try:
        train_and_evaluate(config, workdir)
    except (Exception, KeyboardInterrupt) as error:
        if (explained := explain(error)) is None:
            raise
        connection.send(explained)
    else:
        connection.send(("", 0))


@contextlib.contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """Makes SIGTERM an exception, so that what runs is ended, too."""
    if threading.current_thread() is not threading.main_thread():
        yield  # which alone may have handlers
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
