"""Trains, resumes and evaluates a run.

`train_and_evaluate` is the whole of it: build, restore what is there, train epoch by
epoch, report. Repeating the call with the same workdir continues exactly.
"""

import contextlib
import os
import pathlib
import time
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxattn.errors import InterruptedRun
from jaxattn.paths import local_path
from jaxattn.training.checkpoints.checkpoint import Checkpoints
from jaxattn.training.checkpoints.trained import best_metric
from jaxattn.training.devices.mesh import Devices
from jaxattn.training.guards.bad_images import refuse_bad_images
from jaxattn.training.guards.divergence import Divergence
from jaxattn.training.guards.early_stopping import Plateau
from jaxattn.training.guards.faults import describe_saved, telling_what_is_saved
from jaxattn.training.guards.interrupt import Interrupt
from jaxattn.training.guards.lock import workdir_lock
from jaxattn.training.guards.watchdog import Watchdog
from jaxattn.training.meter import Meter
from jaxattn.training.records import figures, report
from jaxattn.training.records.closing import next_commands
from jaxattn.training.records.phases import COMPILING, Phases
from jaxattn.training.records.profiler import Profiler
from jaxattn.training.records.progress import Progress
from jaxattn.training.records.writer import EVENTS, RunWriter, read_metrics
from jaxattn.training.resume import check_config, refuse_finished
from jaxattn.training.run import Run, build
from jaxattn.training.state import TrainState, stream
from jaxattn.training.testing import try_weights, weights_of
from jaxattn.training.trainer import Trainer


def train_and_evaluate(
    config: Any,
    workdir: str | os.PathLike[str],
    *,
    devices: Devices | None = None,
) -> dict[str, Any]:
    """Trains the run of a config in a workdir, or resumes it, and reports it.

    Args:
        config: An `ml_collections.ConfigDict`, or a run that `build` made of one and of
            objects of your own.
        workdir: Folder of the run; made if missing, resumed if it holds checkpoints.
        devices: To train on; all of them by default. Those of a run are its own.

    Returns:
        The content of `results.json`.

    Raises:
        UserError: If the user can mend it.
        InterruptedRun: If SIGTERM or SIGINT asked the run to stop; it saved first.
        DivergedError: If the loss became infinite or not a number.
        MachineError: If the machine failed; the message says what was saved.
    """
    workdir = local_path(workdir, "workdir").resolve()  # before data are read
    primary = jax.process_index() == 0  # every process trains, the first one writes
    with contextlib.ExitStack() as stack:
        phases = Phases(None if primary else stack.enter_context(open(os.devnull, "w")))
        with phases.phase("reading the config") as show:
            is_run = isinstance(config, Run)
            run = config if is_run else build(config, devices=devices, tell=show)
        if primary:
            stack.enter_context(workdir_lock(workdir))
        interrupt = stack.enter_context(Interrupt())
        checkpoints = Checkpoints(workdir, num_latest=run.options.keep_checkpoints)
        stack.callback(checkpoints.close)
        stack.enter_context(telling_what_is_saved(checkpoints, workdir))
        restored = checkpoints.restore_latest(run.abstract_state)
        if restored is None:
            refuse_finished(workdir)
        start_step = 0 if restored is None else restored[1]
        changes = check_config(run, workdir, start_step) if start_step else []
        writer = None
        if primary:
            log = run.log
            writer = stack.enter_context(
                RunWriter(workdir, start_step=start_step, tensorboard=log.tensorboard)
            )
        attempt = _Attempt(
            run, workdir, interrupt, checkpoints, writer, start_step, phases
        )
        stack.callback(attempt.progress.close)
        stack.callback(attempt.profiler.close)
        stack.enter_context(attempt.watchdog)
        say, replicate = attempt.progress.message, run.parallel.replicate
        for change in changes:
            say(f"config changed: {change}")
        with attempt.progress.phase("making the weights"):
            state = replicate(restored[0]) if restored else run.init_state(say)
        return attempt.finish(*attempt.train(state))


class _Attempt:
    """One process's work on a run, from its last checkpoint to the report."""

    def __init__(
        self,
        run: Run,
        workdir: pathlib.Path,
        interrupt: Interrupt,
        checkpoints: Checkpoints,
        writer: RunWriter | None,
        start_step: int,
        phases: Phases,
    ) -> None:
        self.run = run
        self.workdir = workdir
        self.interrupt = interrupt
        self.checkpoints = checkpoints
        self.writer = writer
        self.start_step = start_step
        self.progress = Progress(
            total_steps=run.total_steps,
            start_step=start_step,
            num_epochs=run.options.num_epochs,
            batch_size=run.options.batch_size,
            task=run.task,
            phases=phases,
        )
        self.profiler = Profiler(
            run.log.profile_steps if writer else (),
            workdir / EVENTS,
            self.progress.message,
        )
        self.watchdog = Watchdog(
            run.options.stall_timeout_s, lambda: describe_saved(checkpoints, workdir)
        )
        self._trainer = Trainer(run, self._is_stopping)
        self._evaluator = self._trainer.evaluator
        self._attention_maps = figures.make_attention_maps(run) if writer else None
        self._starting = contextlib.ExitStack()  # the phase before the first figures
        self._clock_start = time.monotonic()
        self._saved = checkpoints.metrics(start_step)
        self._plateau = Plateau.of(self._saved)

    @property
    def wall_time_s(self) -> float:
        """Seconds spent on the run, those of earlier attempts included."""
        before = self._saved.get("wall_time_s", 0.0)
        return before + time.monotonic() - self._clock_start

    @property
    def images_per_s(self) -> float | None:
        """Training speed of this attempt, or if it is not known of the one before."""
        return self.progress.images_per_s or self._saved.get("images_per_s")

    def _is_stopping(self) -> bool:
        """Whether a signal came, to this or another process: all answer the same."""
        self.watchdog.feed()
        requested = self.interrupt.requested
        if jax.process_count() == 1:
            return requested
        everywhere = multihost_utils.process_allgather(np.asarray(requested))
        return bool(np.any(everywhere))

    # Training ---------------------------------------------------------------------

    def train(self, state: TrainState) -> tuple[TrainState, int]:
        """Trains what is left, and returns the last state and its step."""
        run, step = self.run, self.start_step
        key = self._key(state)
        for note in (run.data.describe(), *run.data.notes):
            self.progress.message(f"data: {note}")
        for note in run.finetuning.notes():
            self.progress.message(note)
        if step:
            self.progress.message(f"resuming from step {step} of {run.total_steps}")
        if self.writer:
            report.write_config(run, self.workdir, step, self.progress.message)
        if not step:
            refuse_bad_images(run, self._is_stopping, self.progress.message)
        logged = read_metrics(self.workdir)
        most, say = run.options.max_skipped_steps, self.progress.message
        optimizer = run.config["optimizer"]
        self._divergence = Divergence(most, optimizer, logged, step, say)
        meter = Meter(run.log.every_steps, step)
        # A signal may have come between an epoch's last step and its evaluation.
        is_due = step > 0 and "epoch" not in self._saved
        epoch_start = (step - is_due) // run.steps_per_epoch * run.steps_per_epoch
        meter.recall(logged, epoch_start)
        if is_due and self._is_epoch_end(step):
            self._end_epoch(state, step, meter.take_epoch())
        if self._is_over(step):
            return state, step

        if self.writer:  # of a run that stopped early, and now goes on
            (self.workdir / "results.json").unlink(missing_ok=True)
        self.profiler.before(step, state)
        is_new = step == 0
        updates = self._trainer.train(state, step)
        with self._starting, contextlib.closing(updates):  # pyright: ignore[reportArgumentType]
            show = self._starting.enter_context(self.progress.phase(COMPILING))
            for step, state, metrics in updates:
                show("the first training steps")
                if self.writer and is_new:  # while the device computes
                    report.write_description(run, self.writer, key)
                    is_new = False
                self.profiler.after(step, state)
                meter.add(metrics)
                at_end, stopping = self._is_epoch_end(step), self._is_stopping()
                if at_end or stopping or meter.is_due:
                    self._log(meter, everything=at_end or stopping)
                if at_end:
                    self._end_epoch(state, step, meter.take_epoch())
                # Asked once a step: a signal that comes later waits for the next.
                if stopping and step < run.total_steps:
                    if not at_end:
                        self._save(state, step, {})
                    self._stop(step)
                if at_end and self._is_over(step):
                    break
                self.profiler.before(step, state)
        return state, step

    def _is_over(self, step: int) -> bool:
        """Whether the run ends at this step, before which it may say why."""
        run, plateau = self.run, self._plateau
        if step == run.total_steps:
            return True
        if not (self._is_epoch_end(step) and run.early_stopping.is_due(plateau)):
            return False
        self.progress.message(
            f"stopped early, after epoch {step // run.steps_per_epoch} of"
            f" {run.options.num_epochs}: no gain in validation"
            f" {run.task.metric} for {plateau.epochs} epochs; to go on, repeat the"
            " command with --config.early_stopping.patience=0"
        )
        return True

    def _key(self, state: TrainState) -> np.ndarray:
        """Data of the run's root key, on the host."""
        return jax.device_get(self.run.parallel.collect(state.key))

    def _is_epoch_end(self, step: int) -> bool:
        return step % self.run.steps_per_epoch == 0

    def _log(self, meter: Meter, *, everything: bool) -> None:
        """Fetches metrics from the device, and writes and shows them."""
        rows = meter.fetch(everything=everything)
        for row in rows:
            step = int(row["step"])
            self._divergence.check(row)
            if self.writer:
                scalars = {f"step/{k}": v for k, v in row.items() if k != "step"}
                self.writer.write_scalars(step, scalars)
        if rows:
            self._starting.close()
            step = int(rows[-1]["step"])
            self.progress.update(
                step,
                epoch=(step - 1) // self.run.steps_per_epoch + 1,
                figures=rows[-1],
            )

    def _end_epoch(
        self, state: TrainState, step: int, train_means: dict[str, float]
    ) -> None:
        """Evaluates on the validation split, writes the epoch's row and saves."""
        row, task = dict(train_means), self.run.task
        # What is shown need not hold what weights are the best by.
        figures = dict.fromkeys((*task.shown, task.metric))
        key = stream(self._key(state), step, "validation")
        with self.progress.paused():
            for suffix, variables in weights_of(state).items():
                if "val" not in self.run.loaders:
                    break
                doing = "validating" + suffix.replace("_ema", " the averaged weights")
                total = len(self.run.data.splits["val"])
                with self.progress.evaluation(doing, total, after_s=10) as tell:
                    summary = self._evaluator.evaluate(variables, "val", key, tell=tell)
                if summary is None:
                    self._save(state, step, {})
                    self._stop(step)
                row |= {f"val_{k}{suffix}": summary[k] for k in figures if k in summary}
            if (metric := best_metric(task, "raw")) in row:
                follow = self.run.early_stopping.follow
                self._plateau = follow(self._plateau, row[metric])
            row["epoch"] = step // self.run.steps_per_epoch
            if speed := self.progress.images_per_s:
                row["images_per_s"] = speed
            if self.writer:
                maps = self._attention_maps
                report.write_epoch(self.run, self.writer, state, step, row, maps)
            self._save(state, step, row)
        self.progress.epoch_line(row)

    def _save(self, state: TrainState, step: int, row: dict[str, float]) -> None:
        bests = (best_metric(self.run.task, kind) for kind in ("raw", "ema"))
        kept = ("epoch", *bests)
        metrics = {key: value for key, value in row.items() if key in kept}
        metrics |= self._plateau.to_metrics()
        metrics["wall_time_s"] = self.wall_time_s
        if speed := self.images_per_s:
            metrics["images_per_s"] = speed
        state = self.run.parallel.collect(state)
        self._divergence.check_weights(state.params, step)
        self.checkpoints.save(step, state, metrics)

    def _stop(self, step: int) -> NoReturn:
        raise InterruptedRun(
            f"stopped by signal at step {step} of {self.run.total_steps}, saved in"
            f" {self.workdir}; repeat the command to go on",
            self.interrupt.exit_code or 143,  # the signal may be another process's
        )

    # Report -----------------------------------------------------------------------

    def finish(self, state: TrainState, step: int) -> dict[str, Any]:
        """Tests the last and the best weights; writes and says what they came to."""
        chosen = try_weights(self.run, self.checkpoints, state, step, self._test)
        with self.progress.phase("drawing the figures"):
            results = report.write_results(
                self.run,
                self.workdir,
                self.writer,
                chosen,
                last_step=step,
                wall_time_s=self.wall_time_s,
                images_per_s=self.images_per_s,
                has_trained=self.start_step < step,
            )
        self.progress.close()
        outcome = report.outcome(self.run, self.workdir, results, chosen)
        for line in (outcome, *next_commands(self.run, self.workdir)):
            self.progress.message(line)
        return results

    def _test(self, variables: Any, step: int, which: str) -> dict[str, Any]:
        doing = f"testing the {which} weights"
        with self.progress.evaluation(doing, len(self.run.data.test)) as tell:
            summary = self._evaluator.evaluate(variables, "test", tell=tell)
        if summary is None:
            self._stop(step)
        return summary
