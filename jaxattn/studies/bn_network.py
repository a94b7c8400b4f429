"""One network of the study of batch normalisation: its steps, and what runs share."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from jaxattn.config.bind import bind
from jaxattn.data.pipeline import Batch, Feed
from jaxattn.errors import require
from jaxattn.models.classes import TreePath, head_paths
from jaxattn.tasks.classification.task import Classification
from jaxattn.training.optim import RunLength, make_optimizer
from jaxattn.training.run import Run
from jaxattn.training.state import Ema, TrainState, create_state
from jaxattn.training.steps import TrainStep, make_train_step
from jaxattn.training.trainer import Trainer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Landscape:
    """Where loss and gradient are looked at besides the weights that train.

    Attributes:
        every_steps: Training steps from one look to the next, counted from the start of
            each epoch; 0 looks nowhere.
        step_factors: The points: the weights plus this many times the step.
    """

    every_steps: int = 50
    step_factors: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)

    def __post_init__(self) -> None:
        every, factors = self.every_steps, self.step_factors
        require("landscape.every_steps", every, every >= 0, "at least 0")
        holds = bool(factors) and all(factor > 0 for factor in factors)
        require("landscape.step_factors", factors, holds, "numbers above 0")


def make_steps(
    run: Run,
    optimizer: optax.GradientTransformation,
    landscape: Landscape,
    kernel: TreePath,
) -> tuple[TrainStep, TrainStep]:
    """Returns the train step and one that also looks along its step.

    Both add to a train step's metrics `gradient_max` and `gradient_min`, the extremes
    of one kernel's gradient. The second adds `step_length`, the l2 norm of the step d,
    and, for each factor s, `loss_at_<s>`, the loss of the same batch at the weights
    before plus s d, and `gradient_change_at_<s>`, the l2 distance of its gradient there
    from that before.

    Args:
        run: The run of the network.
        optimizer: Made by `optax.inject_hyperparams` with `learning_rate`.
        landscape: Where to look.
        kernel: Path of the kernel in the variables.
    """

    def extremes(gradients: Any) -> dict[str, jax.Array]:
        g: Any = traverse_util.flatten_dict({"params": gradients})[kernel]
        return {"gradient_max": jnp.max(g), "gradient_min": jnp.min(g)}

    def everything(gradients: Any) -> dict[str, Any]:
        return {**extremes(gradients), "gradients": gradients}

    def step(
        state: TrainState, batch: Batch, of_gradients: Callable[..., Any] = extremes
    ) -> tuple[TrainState, dict[str, Any]]:
        # Part of the state: one program serves all learning rates.
        rate = state.opt_state.hyperparams["learning_rate"]  # pyright: ignore
        train_step = make_train_step(
            run.model,
            Classification(),
            optimizer,
            schedule=lambda _: rate,
            augment=run.augment,
            normalize=run.preprocess.normalize,
            gradient_metrics=of_gradients,
            axis_name=run.parallel.axis_name,
        )
        return train_step(state, batch)

    def looking_step(
        state: TrainState, batch: Batch
    ) -> tuple[TrainState, dict[str, Any]]:
        after, metrics = step(state, batch, everything)
        gradients = metrics.pop("gradients")
        taken = optax.tree.sub(after.params, state.params)
        metrics["step_length"] = optax.tree.norm(taken)
        for factor in landscape.step_factors:
            params = optax.tree.add_scale(state.params, factor, taken)
            moved = dataclasses.replace(state, params=params)
            _, there = step(moved, batch, everything)  # its own step is never computed
            change = optax.tree.norm(optax.tree.sub(there["gradients"], gradients))
            metrics[f"loss_at_{factor:g}"] = there["loss"]
            metrics[f"gradient_change_at_{factor:g}"] = change
        return after, metrics

    return step, looking_step


class Network:
    """What the runs of one network share.

    Args:
        run: The network's run with any learning rate.
        landscape: Where to look.
        is_stopped: Whether an evaluation should end.

    Attributes:
        run: The same.
        step: The compiled train step.
        looking_step: The compiled train step that looks along itself.
        trainer: Of the run.
        abstract_state: Shapes and shardings of the state in a checkpoint.
    """

    def __init__(
        self, run: Run, landscape: Landscape, is_stopped: Callable[[], bool]
    ) -> None:
        length = RunLength(run.options.num_epochs, run.steps_per_epoch)
        section = run.config["optimizer"]

        def make(learning_rate: Any) -> optax.GradientTransformation:
            given = {"length": length, "schedule": lambda _: learning_rate}
            return bind(make_optimizer, section, "optimizer", **given)()

        inject = optax.inject_hyperparams(make)

        def create(rate: Any) -> TrainState:
            shape, seed = run.data.image_shape, run.options.seed
            return create_state(run.model, inject(rate), Ema(), seed, shape)

        head = head_paths(run.model, run.data.image_shape)
        (kernel,) = (path for path in head if path[-1] == "kernel")
        # Which rate the optimizer is made with does not matter: the state has its own.
        step, looking_step = make_steps(run, inject(1.0), landscape, kernel)
        self.run = run
        self.trainer = Trainer(run, is_stopped)
        self._every_steps = landscape.every_steps
        self.step = self.trainer.compile(step)
        self.looking_step = self.trainer.compile(looking_step)
        self.abstract_state = dataclasses.replace(
            run, create_state=lambda: create(1.0)
        ).abstract_state
        self._create = jax.jit(create, out_shardings=run.parallel.state_sharding)

    def init_state(self, rate: float) -> TrainState:
        """Returns the state at step 0."""
        return self.run.parallel.replicate(self._create(jnp.float32(rate)))

    def chunks(
        self, feeds: Iterator[Feed], step: int
    ) -> Iterator[tuple[list[Feed], bool]]:
        """Groups an epoch's feeds into dispatches, and says which ones look along."""
        run, every = self.run, self._every_steps
        place = step % run.steps_per_epoch
        for feed in feeds:
            chunk, looks = [feed], every > 0 and place % every == 0
            if not looks:
                left = every - place % every if every else run.steps_per_epoch
                for _ in range(min(run.steps_per_dispatch, left) - 1):
                    chunk += [more] if (more := next(feeds, None)) else []
            yield chunk, looks
            place += len(chunk)
