"""The train step and the evaluation step: pure functions, whatever runs them.

`axis_name` is None under `jax.jit`, where a batch is the global batch and every mean is
global by itself. Under `jax.pmap` it names the mapped axis, a batch is one replica's
shard, and the few places that see the whole batch say so.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxattn.data.augment import Augment, mix, normalize
from jaxattn.data.pipeline import Batch, targets_of
from jaxattn.tasks.task import Targets, Task
from jaxattn.training.freezing import Frozen
from jaxattn.training.optim import Schedule
from jaxattn.training.state import Ema, TrainState
from jaxattn.training.weighing import mixed, weighed

Metrics = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
EvalStep = Callable[[Any, Batch], tuple[Any, Any]]
Normalize = Callable[[jax.Array], jax.Array]
Examples = tuple[jax.Array, Targets, Targets]  # inputs, own targets, partners' targets
Keys = dict[str, jax.Array]
Means = tuple[Metrics, Any]  # of what the task measures, and gradients

# Where nothing else is said; the last from pixels to intensities in [0, 1].
_NO_AUGMENT, _NO_EMA, _NOT_FROZEN = Augment(), Ema(), Frozen()
_TO_INTENSITIES = functools.partial(normalize, mean=(0.0,), std=(1.0,))


def make_train_step(
    model: nn.Module,
    task: Task,
    optimizer: optax.GradientTransformation,
    *,
    schedule: Schedule | None = None,
    augment: Augment = _NO_AUGMENT,
    normalize: Normalize = _TO_INTENSITIES,
    ema: Ema = _NO_EMA,
    frozen: Frozen = _NOT_FROZEN,
    skips: bool = False,
    gradient_metrics: Callable[[Any], dict[str, Any]] | None = None,
    accumulate_steps: int = 1,
    unroll: bool = False,
    axis_name: str | None = None,
) -> TrainStep:
    """Returns one step of training, `(state, batch) -> (state, metrics)`.

    The batch is `{"image": uint8 [N, H, W, C], ...}`, its further entries the task's
    targets, such as `"label": int32 [N]`. Metrics are scalars over the global batch:
    what the task measures, `loss` first (of a mixed image, weighted between its own
    targets and its partner's), `gradient_norm` (before clipping), with a schedule
    `learning_rate`, and what `gradient_metrics` makes of the gradients. What is
    `frozen` has no gradient and does not change. `skips` leaves the state as it is, but
    for its step, where loss or gradient are not finite.

    With `accumulate_steps` of k the batch goes through the network in k micro-batches,
    one after the other, and metrics and gradients are the means over them: those
    of the whole batch, but for rounding, where network and loss treat every image alone
    (a detector divides its losses by the boxes of a micro-batch).
    BatchNorm takes the statistics of each micro-batch, and its running averages follow
    them in turn; what the network draws (dropout, SCC's forcing) is drawn for each.
    Augmentation and mixing are of the whole batch, whatever k is. Micro-batches go
    through a loop, in the memory of one, or with `unroll` through as many copies of the
    network, which saves no memory.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        examples, own_weight = augmented(
            augment, normalize, task, state.stream("augment"), batch, axis_name
        )
        examples = weighed(task, examples, axis_name)

        def loss_fn(
            params: Any, batch_stats: Any, examples: Examples, keys: Keys
        ) -> tuple[jax.Array, tuple[Metrics, Any]]:
            params = frozen.stop_gradients(params)
            x, targets, partner_targets = examples
            with frozen.running():
                outputs, updated = model.apply(
                    {"params": params, "batch_stats": batch_stats},
                    x,
                    train=True,
                    mutable=["batch_stats"],
                    rngs=keys,
                    **task.inputs(x, targets),
                )  # pyright: ignore[reportGeneralTypeIssues]

            own = task.measure(outputs, targets)
            partners = task.measure(outputs, partner_targets)
            measured = {
                key: jnp.mean(mixed(own[key], partners[key], own_weight)) for key in own
            }
            return measured["loss"], (measured, updated.get("batch_stats", {}))

        def means_of(
            batch_stats: Any, examples: Examples, keys: Keys
        ) -> tuple[Means, Any]:
            gradient_fn = jax.value_and_grad(loss_fn, has_aux=True)
            (_, (measured, batch_stats)), grads = gradient_fn(
                state.params, batch_stats, examples, keys
            )
            return (measured, grads), batch_stats

        keys = replica_keys(state, axis_name)
        if accumulate_steps == 1:
            means, batch_stats = means_of(state.batch_stats, examples, keys)
        else:
            means, batch_stats = _accumulate(
                means_of, state.batch_stats, examples, keys, accumulate_steps, unroll
            )
        measured, grads = _mean(means, axis_name)

        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {**measured, "gradient_norm": optax.tree.norm(grads)}
        if schedule is not None:
            rate = jnp.asarray(schedule(state.step), jnp.float32)
            metrics["learning_rate"] = rate
        if gradient_metrics is not None:
            metrics |= gradient_metrics(grads)
        new = dataclasses.replace(
            state,
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema_params=ema.update(state.ema_params, params),
            ema_batch_stats=ema.update(state.ema_batch_stats, batch_stats),
        )
        new = frozen.keep(state, new)
        if skips:
            finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(
                metrics["gradient_norm"]
            )
            old = dataclasses.replace(state, step=new.step)
            new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
        return new, metrics

    return train_step


def make_eval_step(
    model: nn.Module,
    task: Task,
    *,
    normalize: Normalize = _TO_INTENSITIES,
    axis_name: str | None = None,
) -> EvalStep:
    """Returns the evaluation of one masked batch.

    It is `(variables, batch) -> (sums, predictions)`, both of the global batch and as
    `task.evaluate` returns them. The batch is `{"image": uint8 [N, H, W, C], ...,
    "mask": bool [N]}`, with the task's targets between.
    """
    if axis_name and hasattr(model, "axis_name"):  # means would count the padding
        model = model.clone(axis_name=None)

    def eval_step(variables: Any, batch: Batch) -> tuple[Any, Any]:
        outputs: Any = model.apply(variables, normalize(batch["image"]), train=False)
        sums, predicted = task.evaluate(outputs, targets_of(batch), batch["mask"])
        if axis_name is not None:
            sums = jax.lax.psum(sums, axis_name)
        return sums, jax.tree.map(lambda leaf: _global(leaf, axis_name), predicted)

    return eval_step


def augmented(
    augment: Augment,
    normalize: Normalize,
    task: Task,
    key: jax.Array,
    batch: Batch,
    axis_name: str | None,
) -> tuple[Examples, jax.Array | float]:
    """Returns the examples and the weight of their own targets."""
    N, H, W, _ = batch["image"].shape
    n = N * (1 if axis_name is None else jax.lax.axis_size(axis_name))
    drawn = augment.draw(key, n, H, W)
    own = jax.tree.map(lambda v: _own_shard(v, axis_name), drawn.images)
    batch = augment.apply_to_batch(batch, task.target_kinds, own)
    x, targets = normalize(batch["image"]), targets_of(batch)
    if drawn.mix is None:
        return (x, targets, targets), 1.0
    partner = _own_shard(drawn.mix.partner, axis_name)
    partners, partner_targets = jax.tree.map(
        lambda leaf: _global(leaf, axis_name)[partner], (x, targets)
    )
    x = mix(x, partners, drawn.mix)
    return (x, targets, partner_targets), drawn.mix.label_weight


def _accumulate(
    means_of: Callable[[Any, Examples, Keys], tuple[Means, Any]],
    batch_stats: Any,
    examples: Examples,
    keys: Keys,
    count: int,
    unroll: bool,
) -> tuple[Means, Any]:
    """Averages over `count` micro-batches, and hands their statistics on."""

    def split(leaf: jax.Array) -> jax.Array:
        # Every count-th example: so each device finds its part of a micro-batch in its
        # own part of the batch.
        return leaf.reshape(-1, count, *leaf.shape[1:]).swapaxes(0, 1)

    def add(carry: Any, micro: tuple[jax.Array, Examples]) -> tuple[Any, None]:
        sums, batch_stats = carry
        i, examples = micro
        own = {name: jax.random.fold_in(key, i) for name, key in keys.items()}
        means, batch_stats = means_of(batch_stats, examples, own)
        return (jax.tree.map(jnp.add, sums, means), batch_stats), None

    micros = jnp.arange(count), jax.tree.map(split, examples)
    first = jax.tree.map(lambda leaf: leaf[0], micros[1])
    shapes = jax.eval_shape(means_of, batch_stats, first, keys)[0]
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    (sums, batch_stats), _ = jax.lax.scan(
        add, (zeros, batch_stats), micros, unroll=unroll
    )
    return jax.tree.map(lambda leaf: leaf / count, sums), batch_stats


def _own_shard(values: jax.Array, axis_name: str | None) -> jax.Array:
    """This replica's part of what was drawn for the global batch."""
    if axis_name is None:
        return values
    size = len(values) // jax.lax.axis_size(axis_name)
    start = jax.lax.axis_index(axis_name) * size
    return jax.lax.dynamic_slice_in_dim(values, start, size)


def _global(values: jax.Array, axis_name: str | None) -> jax.Array:
    """The global batch of values that replicas hold in shards."""
    if axis_name is None:
        return values
    return jax.lax.all_gather(values, axis_name, tiled=True)


def _mean(tree: Any, axis_name: str | None) -> Any:
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def replica_keys(state: TrainState, axis_name: str | None) -> dict[str, jax.Array]:
    """Keys for draws inside the network, different on each replica of a pmap."""
    keys = {name: state.stream(name) for name in ("dropout", "forcing", "sampling")}
    if axis_name is None:
        return keys
    index = jax.lax.axis_index(axis_name)
    return {name: jax.random.fold_in(key, index) for name, key in keys.items()}
