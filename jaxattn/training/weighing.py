"""What each example counts for in the mean over a batch.

The step averages one value per example. Where a loss is a mean over parts of examples,
such as the pixels that are not ignored, examples with more of them count more. How much
is known once all counts of the global batch are: before it is split into micro-batches,
and summed over the replicas of a pmap. So the mean is the same, however it is split.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxattn.tasks.task import Targets, Task

_TINY = np.finfo(np.float32).tiny


def weighed(
    task: Task, examples: tuple[Any, Targets, Targets], axis_name: str | None
) -> tuple[Any, Targets, Targets]:
    """Adds to the targets the weights of `Task.weigh`, scaled to a mean of 1.

    They are 0 where all of the batch counts nothing.

    Args:
        task: What is learnt.
        examples: Inputs, their own targets, and those of their partners.
        axis_name: Of the replicas that hold the batch in shards; None without any.
    """

    def scaled(values: jax.Array) -> jax.Array:
        mean = jnp.mean(values)
        mean = mean if axis_name is None else jax.lax.pmean(mean, axis_name)
        return values / jnp.maximum(mean, _TINY)

    def with_weights(targets: Targets) -> Targets:
        weights = task.weigh(targets)
        return {**targets, **{key: scaled(value) for key, value in weights.items()}}

    x, own, partners = examples
    return x, with_weights(own), with_weights(partners)


def mixed(
    own: jax.Array, partners: jax.Array, own_weight: float | jax.Array
) -> jax.Array:
    """Joins values `[N]` of a mixed image's own targets and of its partner's."""
    return own_weight * own + (1 - own_weight) * partners
