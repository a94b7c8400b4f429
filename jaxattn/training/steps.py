"""The train step and the evaluation step: pure functions, whatever runs them.

`axis_name` is None under `jax.jit`, where a batch is the global batch and every mean is
global by itself. Under `jax.pmap` it names the mapped axis, a batch is one replica's
shard, and the few places that see the whole batch say so.
"""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from jaxattn.data.augment import Augment, mix
from jaxattn.data.pipeline import Batch
from jaxattn.tasks.classification import losses
from jaxattn.tasks.classification.metrics import (
    EvalSums,
    Predictions,
    evaluation_sums,
    predict,
)
from jaxattn.training.optim import Schedule
from jaxattn.training.state import Ema, TrainState, TreePath

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]
EvalStep = Callable[[Any, Batch], tuple[EvalSums, Predictions]]
Normalize = Callable[[jax.Array], jax.Array]
Examples = tuple[jax.Array, ...]  # inputs, own labels, partners' labels
Keys = dict[str, jax.Array]
Means = tuple[jax.Array, jax.Array, Any]  # of loss, accuracy and gradients


def make_train_step(
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    augment: Augment,
    normalize: Normalize,
    ema: Ema,
    label_smoothing: float,
    trainable: Collection[TreePath] | None = None,
    skips: bool = False,
    gradient_metrics: Callable[[Any], dict[str, Any]] | None = None,
    accumulate_steps: int = 1,
    unroll: bool = False,
    axis_name: str | None = None,
) -> TrainStep:
    """Returns one step of training, `(state, batch) -> (state, metrics)`.

    The batch is `{"image": uint8 [N, H, W, C], "label": int32 [N]}`. Metrics are
    scalars over the global batch: `loss`, `accuracy` (of a mixed image, its two labels'
    weighted), `gradient_norm` (before clipping) and `learning_rate`, and what
    `gradient_metrics` makes of the gradients. `trainable` are the paths of the
    parameters that change and have gradients; None: all. `skips` leaves the state as
    it is, but for its step, where loss or gradient are not finite.

    With `accumulate_steps` of k the batch goes through the network in k micro-batches,
    one after the other, and loss, accuracy and gradients are the means over them: those
    of the whole batch, but for rounding, where the network treats every image alone.
    BatchNorm takes the statistics of each micro-batch, and its running averages follow
    them in turn; what the network draws (dropout, SCC's forcing) is drawn for each.
    Augmentation and mixing are of the whole batch, whatever k is. Micro-batches go
    through a loop, in the memory of one, or with `unroll` through as many copies of the
    network, which saves no memory.
    """

    def train_step(
        state: TrainState, batch: Batch
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        examples, own_weight = _augmented(
            augment, normalize, state.stream("augment"), batch, axis_name
        )

        def loss_fn(
            params: Any, batch_stats: Any, examples: Examples, keys: Keys
        ) -> tuple[jax.Array, tuple[jax.Array, Any]]:
            params = _where_frozen(trainable, jax.lax.stop_gradient, params)
            x, labels, partner_labels = examples
            logits, updated = model.apply(
                {"params": params, "batch_stats": batch_stats},
                x,
                train=True,
                mutable=["batch_stats"],
                rngs=keys,
            )  # pyright: ignore[reportGeneralTypeIssues]

            def over_batch(per_example: Callable[[jax.Array], jax.Array]) -> jax.Array:
                own, partners = per_example(labels), per_example(partner_labels)
                return jnp.mean(losses.mixed(own, partners, own_weight))

            loss = over_batch(
                lambda y: losses.cross_entropy(
                    logits, y, label_smoothing=label_smoothing
                )
            )
            accuracy = over_batch(lambda y: losses.hits(logits, y))
            return loss, (accuracy, updated.get("batch_stats", {}))

        def means_of(
            batch_stats: Any, examples: Examples, keys: Keys
        ) -> tuple[Means, Any]:
            gradient_fn = jax.value_and_grad(loss_fn, has_aux=True)
            (loss, (accuracy, batch_stats)), grads = gradient_fn(
                state.params, batch_stats, examples, keys
            )
            return (loss, accuracy, grads), batch_stats

        keys = _replica_keys(state, axis_name)
        if accumulate_steps == 1:
            means, batch_stats = means_of(state.batch_stats, examples, keys)
        else:
            means, batch_stats = _accumulate(
                means_of, state.batch_stats, examples, keys, accumulate_steps, unroll
            )
        loss, accuracy, grads = _mean(means, axis_name)

        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        updates = _where_frozen(trainable, jnp.zeros_like, updates)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": loss,
            "accuracy": accuracy,
            "gradient_norm": optax.tree.norm(grads),
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
        }
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
        if skips:
            finite = jnp.isfinite(loss) & jnp.isfinite(metrics["gradient_norm"])
            old = dataclasses.replace(state, step=new.step)
            new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
        return new, metrics

    return train_step


def make_eval_step(
    *,
    model: nn.Module,
    normalize: Normalize,
    label_smoothing: float,
    axis_name: str | None = None,
) -> EvalStep:
    """Returns the evaluation of one masked batch.

    It is `(variables, batch) -> (sums, predictions)`, both of the global batch. The
    batch is `{"image": uint8 [N, H, W, C], "label": int32 [N], "mask": bool [N]}`.
    """

    def eval_step(variables: Any, batch: Batch) -> tuple[EvalSums, Predictions]:
        logits: Any = model.apply(variables, normalize(batch["image"]), train=False)
        labels, mask = batch["label"], batch["mask"]
        sums = evaluation_sums(logits, labels, mask, label_smoothing=label_smoothing)
        predicted = predict(logits, labels, mask)
        if axis_name is not None:
            sums = jax.lax.psum(sums, axis_name)
        return sums, jax.tree.map(lambda leaf: _global(leaf, axis_name), predicted)

    return eval_step


def make_statistics_step(
    *,
    model: nn.Module,
    augment: Augment,
    normalize: Normalize,
    axis_name: str | None = None,
) -> TrainStep:
    """Returns a step that measures BatchNorm's statistics and trains nothing.

    It is `(state, batch) -> (state, {})`, for batches as of `make_train_step`. From
    step 0 on, `batch_stats` is the mean over the batches so far, each counting the
    same, as PyTorch's `torch.optim.swa_utils.update_bn` makes it; not a moving average.
    """

    def statistics_step(
        state: TrainState, batch: Batch
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        (x, *_), _ = _augmented(
            augment, normalize, state.stream("augment"), batch, axis_name
        )

        def update(running: Any) -> Any:
            _, updated = model.apply(
                {"params": state.params, "batch_stats": running},
                x,
                train=True,
                mutable=["batch_stats"],
                rngs=_replica_keys(state, axis_name),
            )  # pyright: ignore[reportGeneralTypeIssues]
            return updated["batch_stats"]

        # A layer's update is `share * running + (1 - share) * batch`, whatever its
        # share: value and derivative at 0 tell the batch's statistics.
        zeros = optax.tree.zeros_like(state.batch_stats)
        value, share = jax.jvp(update, (zeros,), (optax.tree.ones_like(zeros),))
        own = jax.tree.map(lambda v, s: v / (1 - s), value, share)
        count = state.step + 1
        batch_stats = jax.tree.map(
            lambda mean, new: mean + (new - mean) / count, state.batch_stats, own
        )
        return dataclasses.replace(state, step=count, batch_stats=batch_stats), {}

    return statistics_step


def _augmented(
    augment: Augment,
    normalize: Normalize,
    key: jax.Array,
    batch: Batch,
    axis_name: str | None,
) -> tuple[Examples, jax.Array | float]:
    """Returns the examples and the weight of their own labels."""
    images, labels = batch["image"], batch["label"]
    n = len(images) * (1 if axis_name is None else jax.lax.axis_size(axis_name))
    drawn = augment.draw(key, n, *images.shape[1:3])
    own = jax.tree.map(lambda v: _own_shard(v, axis_name), drawn.images)
    x = normalize(augment.apply(images, own))
    if drawn.mix is None:
        return (x, labels, labels), 1.0
    partner = _own_shard(drawn.mix.partner, axis_name)
    partners = _global(x, axis_name)[partner]
    partner_labels = _global(labels, axis_name)[partner]
    x = mix(x, partners, drawn.mix)
    return (x, labels, partner_labels), drawn.mix.label_weight


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


def _where_frozen(
    trainable: Collection[TreePath] | None,
    function: Callable[[jax.Array], jax.Array],
    params: Any,
) -> Any:
    """Applies a function to the leaves that do not train."""
    if trainable is None:
        return params
    return traverse_util.path_aware_map(
        lambda path, leaf: leaf if ("params", *path) in trainable else function(leaf),
        params,
    )


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


def _replica_keys(state: TrainState, axis_name: str | None) -> dict[str, jax.Array]:
    """Keys for draws inside the network, different on each replica of a pmap."""
    keys = {name: state.stream(name) for name in ("dropout", "forcing")}
    if axis_name is None:
        return keys
    index = jax.lax.axis_index(axis_name)
    return {name: jax.random.fold_in(key, index) for name, key in keys.items()}
