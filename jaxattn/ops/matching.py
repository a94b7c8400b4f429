"""Which box an anchor or a region learns from, and which of them learn at all.

All shapes are static: padding is masked, and sampling takes a fixed number. Every
function is of one image: `jax.vmap` is for batches.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxattn.errors import choose
from jaxattn.ops.random import hashed_uniform

BACKGROUND, IGNORED = -1, -2
"""In place of the index of a box."""

LOW_QUALITY = ("torchvision", "mmdet")


def match(
    iou: jax.Array,
    valid: jax.Array,
    *,
    high: float,
    low: float,
    low_quality: str | None = None,
    min_iou: float = 0.0,
    candidates: jax.Array | None = None,
) -> jax.Array:
    """Returns the index of the box that every candidate learns from.

    That is the box of highest IoU, the first of several, if the IoU is at least `high`.
    Below `low` it is `BACKGROUND`, in between `IGNORED`.

    Args:
        iou: `[G, A]` of boxes and candidates; where NaN there is no overlap.
        valid: `[G]`: which boxes there are.
        high: As said.
        low: As said.
        low_quality: How a box gets the candidates that none is better for, whatever
            their IoU: "torchvision": these learn from the box that they overlap most
            with; "mmdet": from the last of those that they are best for. None: not.
        min_iou: With "mmdet", of a box's best candidates; 0 takes all.
        candidates: `[A]`: which there are; the others are `IGNORED`. None: all.

    Returns:
        int32 `[A]`.
    """
    if low_quality is not None:
        choose("low_quality", low_quality, LOW_QUALITY)
    G, A = iou.shape
    if G == 0:
        matched = jnp.full(A, BACKGROUND, jnp.int32)
        return matched if candidates is None else jnp.where(candidates, -1, IGNORED)
    is_pair = jnp.broadcast_to(valid[:, None], iou.shape)
    if candidates is not None:
        is_pair &= candidates[None]
    iou = jnp.where(is_pair & ~jnp.isnan(iou), iou, -1.0)
    best, index = jnp.max(iou, 0), jnp.argmax(iou, 0).astype(jnp.int32)
    matched = jnp.where(best < low, BACKGROUND, IGNORED)
    matched = jnp.where(best >= high, index, matched)
    if low_quality is not None:
        most = jnp.max(iou, 1, keepdims=True)
        is_best = is_pair & (iou == most)
        if low_quality == "torchvision":
            matched = jnp.where(jnp.any(is_best, 0), index, matched)
        else:
            number = jnp.arange(G, dtype=jnp.int32)[:, None]
            last = jnp.max(jnp.where(is_best & (most >= min_iou), number, -1), 0)
            matched = jnp.where(last >= 0, last, matched)
    return matched if candidates is None else jnp.where(candidates, matched, IGNORED)


class Sample(NamedTuple):
    """Which candidates `[A]` learn, and which of them from a box."""

    positive: jax.Array
    negative: jax.Array


def sample(
    key: jax.Array, matched: jax.Array, *, number: int, positive_fraction: float
) -> Sample:
    """Draws candidates without replacement, as many of the background as there is room.

    Args:
        key: A PRNG key. The draw of a candidate depends on its place alone, not on how
            many there are.
        matched: `[A]`, as of `match`.
        number: Of candidates that learn, at most.
        positive_fraction: At most so much of `number` has a box.

    Returns:
        Two masks.
    """
    A = len(matched)
    draw = hashed_uniform(key, (A,))
    most = int(number * positive_fraction)
    positive = _first(matched >= 0, draw, min(most, A), most)
    room = number - jnp.sum(positive)
    negative = _first(matched == BACKGROUND, draw, min(number, A), room)
    return Sample(positive, negative)


def _first(
    mask: jax.Array, draw: jax.Array, most: int, room: jax.Array | int
) -> jax.Array:
    """Returns the mask of the `room` candidates, at most `most`, of highest draw."""
    if most == 0:
        return jnp.zeros_like(mask)
    values, places = jax.lax.top_k(jnp.where(mask, draw, -1.0), most)
    taken = (values >= 0) & (jnp.arange(most) < room)
    places = jnp.where(taken, places, len(mask))
    return jnp.zeros_like(mask).at[places].set(True, mode="drop")


def sampled_indices(sampled: Sample, number: int) -> tuple[jax.Array, jax.Array]:
    """Returns the places of what is sampled, rising.

    Args:
        sampled: Masks `[A]`, together of at most `number`.
        number: Of places that are returned.

    Returns:
        `[number]`, and which of them there are: the other places are 0.
    """
    taken = sampled.positive | sampled.negative
    A = len(taken)
    places = jnp.where(taken, jnp.arange(A), A)
    places = jnp.sort(places)[:number]
    places = jnp.pad(places, (0, number - len(places)), constant_values=A)
    return jnp.where(places < A, places, 0), places < A
