"""Boxes: overlaps, codes relative to anchors, and non-maximum suppression.

A box is (x1, y1, x2, y2) in pixels, continuous: its width is x2 - x1. All shapes are
static, and every function is of one image: `jax.vmap` is for batches. Numbers are those
of torchvision; where MMDetection differs, an argument says so.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

# Of deltas of sizes: a box becomes at most so much larger than its anchor.
_MAX_LOG_RATIO = math.log(1000 / 16)
_TILE = 256  # boxes that NMS compares with each other at once


# Overlaps ---------------------------------------------------------------------------


def box_area(boxes: jax.Array) -> jax.Array:
    """Returns the areas `[...]` of boxes `[..., 4]`."""
    x1, y1, x2, y2 = _sides(boxes)
    return (x2 - x1) * (y2 - y1)


def box_iou(
    boxes1: jax.Array, boxes2: jax.Array, *, least_union: float = 0.0
) -> jax.Array:
    """Returns intersection over union of every pair of boxes.

    Args:
        boxes1: `[M, 4]`.
        boxes2: `[N, 4]`.
        least_union: Unions are not less. At 0 two empty boxes give NaN, as in
            torchvision; MMDetection has 1e-6.

    Returns:
        `[M, N]`.
    """
    inter, union = _overlaps(boxes1[:, None], boxes2[None])
    return inter / (jnp.maximum(union, least_union) if least_union else union)


def box_giou(boxes1: jax.Array, boxes2: jax.Array) -> jax.Array:
    """Returns the generalised IoU `[M, N]` of every pair of boxes, in [-1, 1].

    Args:
        boxes1: `[M, 4]`.
        boxes2: `[N, 4]`.
    """
    boxes1, boxes2 = boxes1[:, None], boxes2[None]
    inter, union = _overlaps(boxes1, boxes2)
    hull = enclosing_area(boxes1, boxes2)
    return inter / union - (hull - union) / hull


def _overlaps(boxes1: jax.Array, boxes2: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the areas of intersection and union of boxes of shapes that broadcast."""
    ax1, ay1, ax2, ay2 = _sides(boxes1)
    bx1, by1, bx2, by2 = _sides(boxes2)
    width = jnp.minimum(ax2, bx2) - jnp.maximum(ax1, bx1)
    height = jnp.minimum(ay2, by2) - jnp.maximum(ay1, by1)
    inter = jnp.maximum(width, 0) * jnp.maximum(height, 0)
    return inter, box_area(boxes1) + box_area(boxes2) - inter


def enclosing_area(boxes1: jax.Array, boxes2: jax.Array) -> jax.Array:
    """Returns the area of the smallest box around both, of shapes that broadcast."""
    ax1, ay1, ax2, ay2 = _sides(boxes1)
    bx1, by1, bx2, by2 = _sides(boxes2)
    width = jnp.maximum(ax2, bx2) - jnp.minimum(ax1, bx1)
    height = jnp.maximum(ay2, by2) - jnp.minimum(ay1, by1)
    return width * height


def _sides(boxes: jax.Array) -> tuple[jax.Array, ...]:
    return tuple(boxes[..., i] for i in range(4))


# Codes ------------------------------------------------------------------------------


def encode_boxes(
    boxes: jax.Array,
    anchors: jax.Array,
    *,
    weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    means: Sequence[float] = (0.0, 0.0, 0.0, 0.0),
) -> jax.Array:
    """Returns boxes as deltas of centres and of logarithms of sizes.

    Args:
        boxes: `[..., 4]`, of sizes above 0.
        anchors: Those that they are relative to, of the same shape.
        weights: Factors of the four deltas; one over the deviations of MMDetection.
        means: What is taken from the deltas before, as there.

    Returns:
        `[..., 4]`: of x, y, width, height.
    """
    x, y, w, h = _centres(boxes)
    ax, ay, aw, ah = _centres(anchors)
    deltas = (x - ax) / aw, (y - ay) / ah, jnp.log(w / aw), jnp.log(h / ah)
    terms = zip(deltas, means, weights, strict=True)
    return jnp.stack([(d - mean) * weight for d, mean, weight in terms], -1)


def decode_boxes(
    deltas: jax.Array,
    anchors: jax.Array,
    *,
    weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    means: Sequence[float] = (0.0, 0.0, 0.0, 0.0),
    clamps_shrinking: bool = False,
) -> jax.Array:
    """Returns the boxes that deltas are the code of.

    A box becomes at most 62.5 times as wide or high as its anchor.

    Args:
        deltas: `[..., 4]`, as of `encode_boxes`.
        anchors: `[..., 4]`, of a shape that broadcasts.
        weights: As in `encode_boxes`.
        means: As in `encode_boxes`.
        clamps_shrinking: A box becomes at most as many times smaller, as in
            MMDetection; torchvision has no such bound.

    Returns:
        `[..., 4]`.
    """
    ax, ay, aw, ah = _centres(anchors)
    terms = zip(_sides(deltas), weights, means, strict=True)
    dx, dy, dw, dh = (d / weight + mean for d, weight, mean in terms)
    dw, dh = jnp.minimum(dw, _MAX_LOG_RATIO), jnp.minimum(dh, _MAX_LOG_RATIO)
    if clamps_shrinking:
        dw, dh = jnp.maximum(dw, -_MAX_LOG_RATIO), jnp.maximum(dh, -_MAX_LOG_RATIO)
    x, y = dx * aw + ax, dy * ah + ay
    w, h = jnp.exp(dw) * aw, jnp.exp(dh) * ah
    sides = x - 0.5 * w, y - 0.5 * h, x + 0.5 * w, y + 0.5 * h
    return jnp.stack(sides, -1)


def _centres(boxes: jax.Array) -> tuple[jax.Array, ...]:
    """Returns x and y of the centres, widths and heights."""
    x1, y1, x2, y2 = _sides(boxes)
    w, h = x2 - x1, y2 - y1
    return x1 + 0.5 * w, y1 + 0.5 * h, w, h


def clip_boxes(boxes: jax.Array, image_size: jax.Array) -> jax.Array:
    """Returns boxes `[..., 4]` cut to an image.

    Args:
        boxes: `[..., 4]`.
        image_size: `[2]`: height and width.
    """
    size = jnp.asarray(image_size, boxes.dtype)
    most = jnp.stack([size[1], size[0], size[1], size[0]])
    most = most.reshape((1,) * (boxes.ndim - 1) + (4,))
    return jnp.minimum(jnp.maximum(boxes, 0), most)


# Non-maximum suppression ------------------------------------------------------------


def nms(
    boxes: jax.Array,
    scores: jax.Array,
    threshold: float,
    *,
    max_outputs: int,
    ids: jax.Array | None = None,
    valid: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Suppresses boxes that overlap with one of a higher score, exactly as a loop does.

    Of equal scores the first box is the higher. Only boxes of equal `ids` suppress each
    other. No gradients pass.

    Boxes are compared by tiles, from the highest score on, until there are
    `max_outputs`. In a tile the loop is a fixed point: with S[j, i] whether j would
    suppress i, of a lower score, keep = not any(S & keep) is repeated from all until it
    stays. That takes as many rounds as boxes suppress each other in a row, mostly few.

    Args:
        boxes: `[N, 4]`.
        scores: `[N]`.
        threshold: A box is suppressed if its IoU is above; in double precision, as
            torchvision compares on CPUs. IoU of two empty boxes is not.
        max_outputs: Number of boxes that are returned.
        ids: `[N]` integers, such as classes or levels; None: all the same.
        valid: `[N]`; the others neither suppress nor are returned. None: all.

    Returns:
        Indices `[max_outputs]` of boxes that are kept, by falling score; and which of
        them there are: the other indices are 0.
    """
    boxes, scores = jax.lax.stop_gradient((boxes, scores))
    N = len(scores)
    if N == 0:
        nothing = jnp.zeros(max_outputs, jnp.int32)
        return nothing, nothing > 0
    valid = jnp.ones(N, bool) if valid is None else valid
    ids = jnp.zeros(N, jnp.int32) if ids is None else ids
    order = jnp.argsort(jnp.where(valid, -scores, jnp.inf))  # stable
    tile = min(_TILE, N)
    order = jnp.pad(order, (0, -N % tile))
    there = jnp.arange(len(order)) < N
    candidates = (boxes[order], ids[order], valid[order] & there)
    kept, count = _keep_first(candidates, threshold, tile, max_outputs)
    found = jnp.arange(max_outputs) < count
    return jnp.where(found, order[kept], 0), found


def _keep_first(
    candidates: tuple[jax.Array, ...], threshold: float, tile: int, max_outputs: int
) -> tuple[jax.Array, jax.Array]:
    """Returns places `[max_outputs]` of the candidates that are kept, and how many."""
    num_valid = jnp.sum(candidates[-1])  # which come first
    before = jnp.tri(tile, k=-1, dtype=bool).T  # [j, i]: j is before i

    def is_unfinished(state: tuple[jax.Array, ...]) -> jax.Array:
        start, count, *_ = state
        return (start < num_valid) & (count < max_outputs)

    def keep_of_tile(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        start, count, places, boxes, ids = state
        own_boxes, own_ids, valid = (
            jax.lax.dynamic_slice_in_dim(v, start, tile) for v in candidates
        )
        is_kept = (jnp.arange(max_outputs) < count)[:, None]
        by_kept = _suppresses(boxes, ids, own_boxes, own_ids, threshold) & is_kept
        alive = valid & ~jnp.any(by_kept, 0)
        own = _suppresses(own_boxes, own_ids, own_boxes, own_ids, threshold) & before
        keep = _fixed_point(own, alive)
        # Beyond the last: dropped.
        rank = jnp.where(keep, count + jnp.cumsum(keep) - 1, max_outputs)
        places = places.at[rank].set(start + jnp.arange(tile), mode="drop")
        boxes = boxes.at[rank].set(own_boxes, mode="drop")
        ids = ids.at[rank].set(own_ids, mode="drop")
        count = jnp.minimum(count + jnp.sum(keep), max_outputs)
        return start + tile, count, places, boxes, ids

    boxes, ids, _ = candidates
    state = (
        jnp.int32(0),
        jnp.int32(0),
        jnp.zeros(max_outputs, jnp.int32),
        jnp.zeros((max_outputs, 4), boxes.dtype),
        jnp.zeros(max_outputs, ids.dtype),
    )
    _, count, places, *_ = jax.lax.while_loop(is_unfinished, keep_of_tile, state)
    return places, count


def _fixed_point(suppresses: jax.Array, alive: jax.Array) -> jax.Array:
    """Returns what a loop keeps of `alive` `[n]`, of `suppresses` `[n, n]`."""

    def step(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        keep, _ = state
        new = alive & ~jnp.any(suppresses & keep[:, None], 0)
        return new, jnp.any(new != keep)

    return jax.lax.while_loop(lambda s: s[1], step, (alive, jnp.bool_(True)))[0]


def _suppresses(
    boxes1: jax.Array,
    ids1: jax.Array,
    boxes2: jax.Array,
    ids2: jax.Array,
    threshold: float,
) -> jax.Array:
    """Returns whether `[M, N]` boxes overlap more than the threshold, with one id."""
    is_same = ids1[:, None] == ids2[None]
    return is_same & (box_iou(boxes1, boxes2) > _float32_below(threshold))


def _float32_below(x: float) -> np.float32:
    """Returns the largest float32 that is not above `x`.

    A float32 is greater than it where it is greater than the double `x`.
    """
    rounded = np.float32(x)
    return rounded if float(rounded) <= x else np.nextafter(rounded, np.float32(0))
