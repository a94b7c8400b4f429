"""What batch normalisation does to the loss landscape, measured while training.

Course project "Batch normalisation and optimisation" (PRML, Fudan University, 2025),
after Santurkar, Tsipras, Ilyas, Madry, "How Does Batch Normalization Help
Optimization?", NeurIPS 2018. https://arxiv.org/abs/1805.11604
Reference code read: tyyyyy333/Fdu_DS_DL24spring_collection,
pj2/codes/VGG_BatchNorm/vgg_reporter_new.py

Two networks, plain and with batch normalisation, train with each of several learning
rates. Recorded are, at every step, the batch's loss and the extremes of the gradient of
the last layer's kernel; every epoch, the accuracy on training and test images; and
every k steps, loss and gradient of the same batch at several points along the step that
the optimizer takes.

Deviations from the code:
  - all runs start from one seed, so that those of one network differ in the rate alone;
    the code draws them one after the other;
  - batches are full (the last one of an epoch is completed from its start);
  - gradients are recorded for every learning rate, the code keeps those of the last;
  - steps count from 1;
  - what the code calls validation images are the test images.
Deviation from the paper: it looks along the gradient, which is the direction of SGD;
here it is along the step of the run's optimizer.
"""

import contextlib
import math
import os
import pathlib
import shutil
import time
from collections.abc import Mapping
from typing import Any, NoReturn

import jax
import numpy as np

from jaxattn.atomic import write_json
from jaxattn.config.bind import bind
from jaxattn.config.changes import changed_since
from jaxattn.config.record import read_record
from jaxattn.errors import (
    DivergedError,
    InterruptedRun,
    UserError,
    choose,
    require,
    require_type,
)
from jaxattn.models.registry import list_models
from jaxattn.paths import local_path
from jaxattn.studies.bn_curves import NETWORKS, Member, read_curves, tag
from jaxattn.studies.bn_network import Landscape, Network
from jaxattn.studies.bn_report import write_report
from jaxattn.training.checkpoints.checkpoint import Checkpoints
from jaxattn.training.devices.mesh import Devices
from jaxattn.training.guards.interrupt import Interrupt
from jaxattn.training.guards.lock import workdir_lock
from jaxattn.training.meter import Meter
from jaxattn.training.records.phases import COMPILING, Phases
from jaxattn.training.records.progress import Progress
from jaxattn.training.records.report import versions
from jaxattn.training.records.writer import RunWriter, read_metrics
from jaxattn.training.run import build

# A GPU trains an epoch in a second; a checkpoint after each would take as long again.
_SECONDS_BETWEEN_SAVES = 20.0
_STUDY_KEYS = ("learning_rates", "landscape")


def run_study(
    config: Any,
    workdir: str | os.PathLike[str],
    *,
    devices: Devices | None = None,
) -> dict[str, Any]:
    """Runs the study of a config in a workdir, or what is left of it, and reports it.

    Args:
        config: An `ml_collections.ConfigDict` as `configs/vgg_bn.py` makes it.
        workdir: Folder of the study; made if missing.
        devices: To train on; all of them by default.

    Returns:
        The content of `results.json`.

    Raises:
        UserError: If the user can mend it.
        InterruptedRun: If SIGTERM or SIGINT asked it to stop; it saved first.
        DivergedError: If a loss became infinite or not a number.
    """
    workdir = local_path(workdir, "workdir").resolve()
    values = config.to_dict() if hasattr(config, "to_dict") else config
    require_type("config", values, Mapping)
    landscape = bind(Landscape, values.get("landscape", {}), "landscape")()
    rates, models = _check(values)
    phases = Phases()
    with phases.phase("reading the config") as show:
        runs = {
            network: build(
                make_run_config(values, model, rates[0]), devices=devices, tell=show
            )
            for network, model in models.items()
        }
    members = [Member(n, models[n], rate) for rate in rates for n in NETWORKS]
    with contextlib.ExitStack() as stack:
        stack.enter_context(workdir_lock(workdir))
        interrupt = stack.enter_context(Interrupt())
        record = {**values, "dataset": runs["plain"].record["dataset"]}
        changes = _take_config(workdir, record)
        networks = {
            network: Network(run, landscape, lambda: interrupt.requested)
            for network, run in runs.items()
        }
        study = _Study(workdir, members, networks, interrupt, phases, stack)
        for change in changes:
            study.say(f"config changed: {change}")
        for member in members:
            study.train(member)
        curves = read_curves(workdir, members, landscape.step_factors)
        return write_report(workdir, curves, runs, landscape.step_factors, study.say)


def _check(values: Mapping[str, Any]) -> tuple[tuple[float, ...], dict[str, str]]:
    """Returns the learning rates, and the names of the networks."""
    rates = values.get("learning_rates", ())
    holds = isinstance(rates, tuple) and bool(rates)
    holds = holds and all(
        isinstance(r, float | int) and 0 < r < math.inf for r in rates
    )
    require("learning_rates", rates, holds, "numbers above 0, as (0.001, 0.002)")
    require("learning_rates", rates, len({*rates}) == len(rates), "all different")
    models = {}
    for network in NETWORKS:
        models[network] = values.get("model", {}).get(network)
        choose(f"model.{network}", models[network], list_models("classification"))
    if models["plain"] == models["bn"]:
        raise UserError(f"model.bn={models['bn']!r}: the same as model.plain")
    return tuple(map(float, rates)), models


def make_run_config(
    values: Mapping[str, Any], model: str, rate: float
) -> dict[str, Any]:
    """The config of the training run that a network's runs are variants of."""
    rest = {key: value for key, value in values.items() if key not in _STUDY_KEYS}
    kwargs = {k: v for k, v in values["model"].items() if k not in NETWORKS}
    schedule = {"name": "constant", "learning_rate": rate}
    return {**rest, "model": {"name": model, **kwargs}, "schedule": schedule}


def _take_config(workdir: pathlib.Path, record: dict[str, Any]) -> list[str]:
    """Writes `config.json`, and returns harmless changes since an earlier one."""
    path, changes = workdir / "config.json", []
    if path.exists():
        before = read_record(path)
        changes = changed_since(before, record, str(workdir))
    write_json(path, {**record, "versions": versions()})
    return changes


# Training -------------------------------------------------------------------------


class _Study:
    """One process's work on a study, up to its report."""

    def __init__(
        self,
        workdir: pathlib.Path,
        members: list[Member],
        networks: dict[str, Network],
        interrupt: Interrupt,
        phases: Phases,
        stack: contextlib.ExitStack,
    ) -> None:
        run = networks["plain"].run
        self._workdir = workdir
        self._members = members
        self._networks = networks
        self._interrupt = interrupt
        self._num_done = sum(self._is_finished(member) for member in members)
        self.progress = Progress(
            total_steps=len(members) * run.total_steps,
            start_step=self._num_done * run.total_steps,
            num_epochs=len(members) * run.options.num_epochs,
            batch_size=run.options.batch_size,
            task=run.task,
            phases=phases,
        )
        self.say = self.progress.message
        stack.callback(self.progress.close)

    def _is_finished(self, member: Member) -> bool:
        run = self._networks[member.network].run
        rows = read_metrics(self._workdir / member.name)
        key = tag("test_accuracy", member.name)
        return any(key in row and row["step"] == run.total_steps for row in rows)

    def train(self, member: Member) -> None:
        """Trains a run of the study from where it is to its end."""
        folder = self._workdir / member.name
        if not self._is_finished(member):
            with contextlib.ExitStack() as stack:
                _Training(self, member, folder, stack).run()
        # Its curves are all that the study needs of it.
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)

    def network(self, member: Member) -> Network:
        """What a member shares with others."""
        return self._networks[member.network]

    def steps_before(self, member: Member) -> int:
        """Steps of the runs before one."""
        place = self._members.index(member)
        return place * self.network(member).run.total_steps

    @property
    def is_stopping(self) -> bool:
        """Whether a signal asked the study to stop."""
        return self._interrupt.requested

    def stop(self, member: Member, step: int) -> NoReturn:
        """Ends the process's work."""
        raise InterruptedRun(
            f"stopped by signal in {member.name} at step {step}, saved in"
            f" {self._workdir}; repeat the command to go on",
            self._interrupt.exit_code or 143,
        )


class _Training:
    """A member on its way from its last checkpoint to its end."""

    def __init__(
        self,
        study: _Study,
        member: Member,
        folder: pathlib.Path,
        stack: contextlib.ExitStack,
    ) -> None:
        self._study, self._member = study, member
        self._network = study.network(member)
        # The phase before the first figures.
        self._starting = stack.enter_context(contextlib.ExitStack())
        self._starting.enter_context(study.progress.phase(COMPILING))
        self._run = self._network.run
        self._checkpoints = Checkpoints(folder)
        stack.callback(self._checkpoints.close)
        restored = self._checkpoints.restore_latest(self._network.abstract_state)
        if restored is None:
            self._state, self._step = self._network.init_state(member.rate), 0
        else:
            self._state = self._run.parallel.replicate(restored[0])
            self._step = restored[1]
            study.say(f"{member.name}: resuming from step {self._step}")
        self._writer = stack.enter_context(
            RunWriter(
                folder,
                start_step=self._step,
                tensorboard=self._run.log.tensorboard,
            )
        )
        self._rows = read_metrics(folder)
        self._saved_at = time.monotonic()

    def run(self) -> None:
        """Trains epoch by epoch."""
        size = self._run.steps_per_epoch
        key = tag("test_accuracy", self._member.name)
        done = sum(key in row for row in self._rows)
        self._rows = [row for row in self._rows if row["step"] > done * size]
        for epoch in range(done, self._run.options.num_epochs):
            stop = (epoch + 1) * size
            images_per_s = self._train_until(stop)
            self._end_epoch(images_per_s)
            self._rows = []
            if time.monotonic() - self._saved_at > _SECONDS_BETWEEN_SAVES:
                self._save()

    def _train_until(self, stop: int) -> float | None:
        """Trains up to a step, and returns the speed; None if it is not known."""
        run, network = self._run, self._network
        meter, timed_from, dispatches = Meter(1, self._step), None, 0
        trainer = network.trainer
        with contextlib.closing(trainer.feeds(self._step, stop)) as feeds:
            for chunk, looks in network.chunks(feeds, self._step):
                dispatch = network.looking_step if looks else network.step
                self._state, metrics = dispatch(self._state, trainer.place(chunk))
                self._step += len(chunk)
                meter.add(metrics)
                dispatches += 1
                if dispatches == 2:  # both of which may have compiled
                    jax.block_until_ready(metrics)
                    timed_from = self._step, time.monotonic()
                stopping, at_end = self._study.is_stopping, self._step == stop
                if stopping or at_end or meter.is_due:
                    self._log(meter, everything=stopping or at_end)
                if stopping and not at_end:
                    self._save_and_stop()
        if timed_from is None or timed_from[0] == self._step:
            return None
        images = (self._step - timed_from[0]) * run.options.batch_size
        return images / (time.monotonic() - timed_from[1])

    def _log(self, meter: Meter, *, everything: bool) -> None:
        """Fetches metrics from the device, and writes and shows them."""
        rows, name = meter.fetch(everything=everything), self._member.name
        for row in rows:
            step = int(row.pop("step"))
            if not math.isfinite(row["loss"] + row["gradient_norm"]):
                raise DivergedError(
                    f"{name}: at step {step} the loss is {row['loss']:.4g} and the"
                    f" gradient norm {row['gradient_norm']:.4g}; leave out the learning"
                    f" rate {self._member.rate:g}, in another workdir"
                )
            row["gradient_range"] = row["gradient_max"] - row["gradient_min"]
            unwanted = ("accuracy", "learning_rate", "gradient_norm")
            kept = {tag(k, name): v for k, v in row.items() if k not in unwanted}
            self._writer.write_scalars(step, kept)
            self._rows.append({"step": step, **kept})
        if rows:
            self._starting.close()
            step = self._study.steps_before(self._member) + self._step
            self._study.progress.update(
                step,
                epoch=(step - 1) // self._run.steps_per_epoch + 1,
                figures=rows[-1],
            )

    def _end_epoch(self, images_per_s: float | None) -> None:
        """Evaluates the weights, and writes and shows what the epoch came to."""
        name, row = self._member.name, {}
        for key, mean in (
            ("loss", "train_loss"),
            ("gradient_max", "mean_gradient_max"),
            ("gradient_min", "mean_gradient_min"),
            ("gradient_range", "mean_gradient_range"),
        ):
            row[mean] = float(np.mean([r[tag(key, name)] for r in self._rows]))
        with self._study.progress.paused():
            for split in ("train", "test"):
                doing, total = f"{split} images", len(self._run.data.splits[split])
                evaluator = self._network.trainer.evaluator
                evaluation = self._study.progress.evaluation
                with evaluation(doing, total, after_s=10) as tell:
                    summary = evaluator.evaluate(
                        self._state.variables, split, tell=tell
                    )
                if summary is None:
                    self._save_and_stop()
                row[f"{split}_accuracy"] = summary["accuracy"]
        if images_per_s is not None:
            row["images_per_s"] = images_per_s
        self._writer.flush()  # a kill later than the row must not lose what is before
        self._writer.write_scalars(
            self._step, {tag(key, name): value for key, value in row.items()}
        )
        epoch, speed = self._step // self._run.steps_per_epoch, row.get("images_per_s")
        self._study.say(
            f"{name}  epoch {epoch}/{self._run.options.num_epochs}"
            f"  loss {row['train_loss']:.4f}"
            f"  train {100 * row['train_accuracy']:.2f}%"
            f"  test {100 * row['test_accuracy']:.2f}%"
            + (f"  {speed:,.0f} images/s" if speed else "")
        )

    def _save(self) -> None:
        state = self._run.parallel.collect(self._state)
        self._checkpoints.save(self._step, state, {})
        self._saved_at = time.monotonic()

    def _save_and_stop(self) -> NoReturn:
        self._save()
        self._study.stop(self._member, self._step)
