"""The mean of a run's checkpoints, as a network of its own.

Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization",
UAI 2018: weights along the end of a run are averaged, and BatchNorm's statistics, which
belong to none of them, are measured anew in one pass over the training batches.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxattn.config.changes import config_of
from jaxattn.data.augment import Augment
from jaxattn.data.pipeline import Batch
from jaxattn.errors import UserError, choose, require
from jaxattn.paths import local_path
from jaxattn.tasks.task import Task
from jaxattn.training.checkpoints.checkpoint import Checkpoints
from jaxattn.training.checkpoints.trained import (
    read_config,
    require_no_run,
    write_trained,
)
from jaxattn.training.devices.mesh import Devices
from jaxattn.training.freezing import Frozen
from jaxattn.training.records.report import versions
from jaxattn.training.run import Run, build
from jaxattn.training.state import TrainState
from jaxattn.training.steps import (
    Metrics,
    Normalize,
    TrainStep,
    augmented,
    replica_keys,
)
from jaxattn.training.trainer import Trainer

KINDS = ("raw", "ema")
_NOT_FROZEN = Frozen()


class Averaged(NamedTuple):
    """What was averaged, and what it came to.

    Attributes:
        steps: Of the checkpoints.
        before: The task's figure, such as accuracy, of the last of them by split:
            "test", and "val" if there is one.
        after: That of the average.
    """

    steps: tuple[int, ...]
    before: dict[str, float]
    after: dict[str, float]


def average_checkpoints(
    workdir: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    steps: Sequence[int] | None = None,
    last: int | None = None,
    kind: str = "raw",
    data_path: str | None = None,
    devices: Devices | None = None,
) -> Averaged:
    """Makes a workdir of the uniform average of a run's checkpoints.

    Args:
        workdir: Folder of the run, finished or not.
        out: Folder to make, for everything that takes a trained network.
        steps: Of the checkpoints; all that are kept, without `last`.
        last: How many of the newest checkpoints.
        kind: Which weights of each, "raw" or "ema" (its moving average).
        data_path: Where the run's data are now; None: where they were.
        devices: To compute on; all of them by default.

    Raises:
        UserError: If a value is wrong, or run or data cannot be had.
    """
    choose("weights", kind, KINDS)
    require_no_run(out)
    config = read_config(local_path(workdir, "workdir").resolve())
    if own := config.get("own"):
        raise UserError(
            f"workdir {workdir}: its run was built with objects of its own"
            f" ({', '.join(own)}), which its config cannot make"
        )
    run = build(_run_config(config, data_path), devices=devices)
    if kind == "ema" and run.abstract_state.ema_params is None:
        raise UserError(f"weights={kind!r}: the run in {workdir} kept no average")
    checkpoints = Checkpoints(workdir, read_only=True)
    try:
        if not (kept := checkpoints.all_steps()):
            raise UserError(f"workdir {workdir}: holds no checkpoint yet")
        chosen = _choose_steps(kept, steps, last)
        newest, params = _mean(checkpoints, chosen, run, kind)
    finally:
        checkpoints.close()
    trainer = Trainer(run)
    before = _figures(trainer, _variables(newest, kind))
    state = measure_statistics(trainer, newest, params)
    after = _figures(trainer, state.variables)
    origin = {"workdir": os.fspath(workdir), "steps": chosen, "weights": kind}
    record = {
        **config,
        "ema": {**config.get("ema", {}), "decay": 0.0},  # there is none of the average
        "averaged_from": origin,
        "versions": versions(),
    }
    write_trained(out, record, state.variables, chosen[-1])
    return Averaged(chosen, before, after)


def measure_statistics(trainer: Trainer, state: TrainState, params: Any) -> TrainState:
    """Returns a state with other parameters and BatchNorm's statistics of them.

    They are the means over the batches of the first epoch, augmented and mixed as in
    training. Those of norms that were frozen when the state was made stay.

    Args:
        trainer: Of the run.
        state: Any of the run, on one device or as `state_sharding` says.
        params: The parameters.
    """
    run, parallel = trainer.run, trainer.run.parallel
    last = max(int(state.step) - 1, 0)
    frozen = run.finetuning.frozen(run.phase_at(last))
    state = dataclasses.replace(
        state,
        step=jnp.zeros_like(state.step),
        params=params,
        opt_state=(),
        ema_params=None,
        ema_batch_stats=None,
    )
    if state.batch_stats:
        reset, measure = make_statistics_steps(
            run.model,
            run.task,
            augment=run.augment,
            normalize=run.preprocess.normalize,
            frozen=frozen,
            axis_name=parallel.axis_name,
        )
        placed = parallel.replicate(state)
        for step, stop in ((reset, 1), (measure, run.steps_per_epoch)):
            dispatch = trainer.compile(step)
            for feed in trainer.feeds(0, stop):
                placed, _ = dispatch(placed, trainer.place([feed]))
        state = parallel.collect(placed)
    return state


def make_statistics_steps(
    model: nn.Module,
    task: Task,
    *,
    augment: Augment,
    normalize: Normalize,
    frozen: Frozen = _NOT_FROZEN,
    axis_name: str | None = None,
) -> tuple[TrainStep, TrainStep]:
    """Returns two steps that measure BatchNorm's statistics and train nothing.

    They are `(state, batch) -> (state, {})`, for batches as of `make_train_step`. The
    first one, of any batch, sets what is to be measured to 0. After that the second
    one, from step 0 on, makes `batch_stats` the mean over the batches so far, each
    counting the same, as PyTorch's `torch.optim.swa_utils.update_bn` makes it; not a
    moving average. Of norms that are `frozen`, by the network itself too, it stays.
    """

    def updating(state: TrainState, batch: Batch) -> Callable[[Any], Any]:
        (x, targets, _), _ = augmented(
            augment, normalize, task, state.stream("augment"), batch, axis_name
        )

        def update(running: Any) -> Any:
            with frozen.running():
                _, updated = model.apply(
                    {"params": state.params, "batch_stats": running},
                    x,
                    train=True,
                    mutable=["batch_stats"],
                    rngs=replica_keys(state, axis_name),
                    **task.inputs(x, targets),
                )  # pyright: ignore[reportGeneralTypeIssues]
            return updated["batch_stats"]

        return update

    def reset(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        stays = _unchanged(updating(state, batch), state.batch_stats)
        batch_stats = jax.tree.map(_kept_or_zero, stays, state.batch_stats)
        return dataclasses.replace(state, batch_stats=batch_stats), {}

    def measure(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        update = updating(state, batch)
        stays = _unchanged(update, state.batch_stats)

        def direction(is_kept: bool, leaf: jax.Array) -> jax.Array:
            return jnp.zeros_like(leaf) if is_kept else jnp.ones_like(leaf)

        # A layer's update is `share * running + (1 - share) * batch`, whatever its
        # share: value and derivative at 0 tell the batch's statistics.
        at, along = (
            jax.tree.map(of, stays, state.batch_stats)
            for of in (_kept_or_zero, direction)
        )
        value, share = jax.jvp(update, (at,), (along,))
        count = state.step + 1

        def updated(
            is_kept: bool, mean: jax.Array, value: jax.Array, share: jax.Array
        ) -> jax.Array:
            return mean if is_kept else mean + (value / (1 - share) - mean) / count

        batch_stats = jax.tree.map(updated, stays, state.batch_stats, value, share)
        return dataclasses.replace(state, step=count, batch_stats=batch_stats), {}

    return reset, measure


def _kept_or_zero(is_kept: bool, leaf: jax.Array) -> jax.Array:
    return leaf if is_kept else jnp.zeros_like(leaf)


def _unchanged(update: Callable[[Any], Any], batch_stats: Any) -> Any:
    """Returns for each of the statistics whether an update hands it back as it is."""
    traced = jax.make_jaxpr(update)(batch_stats).jaxpr
    pairs = zip(traced.invars, traced.outvars, strict=True)
    are_same = [given is returned for given, returned in pairs]
    return jax.tree.unflatten(jax.tree.structure(batch_stats), are_same)


def _run_config(config: dict[str, Any], data_path: str | None) -> dict[str, Any]:
    """The config that a run's record was made of, with its data where they are."""
    values = config_of(config)
    if data_path is not None:
        values["data"] = {**values.get("data", {}), "path": data_path}
    return values


def _choose_steps(
    kept: Sequence[int], steps: Sequence[int] | None, last: int | None
) -> tuple[int, ...]:
    """Returns the steps of the wanted checkpoints, ascending."""
    listed = f"those kept are {', '.join(map(str, kept))}"
    if steps is None:
        last = len(kept) if last is None else last
        require("last", last, 1 <= last <= len(kept), f"1 to {len(kept)}; {listed}")
        return tuple(kept[-last:])
    unique = sorted(set(steps))
    holds = len(unique) == len(steps) and set(unique) <= set(kept)
    require("steps", tuple(steps), holds, f"kept, and each once; {listed}")
    return tuple(unique)


def _mean(
    checkpoints: Checkpoints, steps: Sequence[int], run: Run, kind: str
) -> tuple[TrainState, Any]:
    """Returns the state of the last step, and the mean of the parameters of all."""
    state, total = None, None
    for step in steps:
        state = checkpoints.restore(step, run.abstract_state)
        params = _variables(state, kind)["params"]
        total = params if total is None else jax.tree.map(jnp.add, total, params)
    assert state is not None
    return state, jax.tree.map(lambda leaf: leaf / len(steps), total)


def _variables(state: TrainState, kind: str) -> Any:
    return state.variables if kind == "raw" else state.ema_variables


def _figures(trainer: Trainer, variables: Any) -> dict[str, float]:
    run = trainer.run
    placed, key = run.parallel.replicate(variables), jax.random.key(0)
    summaries = {
        split: trainer.evaluator.evaluate(placed, split, key)
        for split in ("val", "test")
        if split in run.loaders
    }
    metric = run.task.metric
    return {split: summary[metric] for split, summary in summaries.items() if summary}
