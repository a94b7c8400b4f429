"""Losses of detectors, one value for each element or box; whoever sums them divides.

Sigmoid focal loss: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017.
Generalised IoU: Rezatofighi et al., CVPR 2019; distance and complete IoU: Zheng et al.,
AAAI 2020. Numbers are torchvision's.
"""

import math

import jax
import jax.numpy as jnp

from jaxattn.ops.boxes import enclosing_area


def sigmoid_focal_loss(
    logits: jax.Array, targets: jax.Array, *, alpha: float = 0.25, gamma: float = 2.0
) -> jax.Array:
    """Returns the binary cross-entropy, less where the network is right already.

    Args:
        logits: Of any shape.
        targets: Of the same shape, in [0, 1].
        alpha: Weight of targets of 1, one minus that of those of 0; below 0: none.
        gamma: How much less: the loss is multiplied with (1 - p) ** gamma, of the
            probability p of the target.

    Returns:
        As `logits`.
    """
    p = jax.nn.sigmoid(logits)
    missed = p + targets - 2 * p * targets  # 1 - p of the target
    power = int(gamma) if gamma == int(gamma) else gamma  # of an integer no logarithm
    loss = missed**power * binary_cross_entropy(logits, targets)
    if alpha < 0:
        return loss
    return (alpha * targets + (1 - alpha) * (1 - targets)) * loss


def binary_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the binary cross-entropy of logits with targets in [0, 1], elementwise.

    Args:
        logits: Of any shape.
        targets: Of the same shape.
    """
    return jax.nn.softplus(logits) - logits * targets


def smooth_l1_loss(
    predictions: jax.Array, targets: jax.Array, *, beta: float
) -> jax.Array:
    """Returns the absolute difference, and near 0 a parabola instead, elementwise.

    Args:
        predictions: Of any shape.
        targets: Of the same shape.
        beta: Difference at which the parabola ends; 0: there is none.
    """
    difference = predictions - targets
    # The gradient at 0 is 0, which jnp.abs does not promise.
    distance = difference * jax.lax.stop_gradient(jnp.sign(difference))
    if beta == 0:
        return distance
    parabola = jnp.square(distance) * (0.5 / beta)
    return jnp.where(distance < beta, parabola, distance - 0.5 * beta)


def giou_loss(
    boxes: jax.Array, targets: jax.Array, *, clamps: bool = False
) -> jax.Array:
    """Returns 1 minus the generalised IoU of pairs of boxes.

    Args:
        boxes: `[..., 4]`, each with x1 <= x2 and y1 <= y2.
        targets: Of the same shape.
        clamps: Areas are at least 1e-6, as in MMDetection; else 1e-7 is added to them,
            as in torchvision.

    Returns:
        `[...]`.
    """
    inter, union = _pair_overlaps(boxes, targets)
    hull = enclosing_area(boxes, targets)
    if clamps:
        union, hull = jnp.maximum(union, 1e-6), jnp.maximum(hull, 1e-6)
        return 1 - inter / union + (hull - union) / hull
    return 1 - inter / (union + _EPSILON) + (hull - union) / (hull + _EPSILON)


def diou_loss(boxes: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns 1 minus IoU, plus the squared distance of the centres, relative.

    Relative to the squared diagonal of the smallest box around both.

    Args:
        boxes: `[..., 4]`, each with x1 <= x2 and y1 <= y2.
        targets: Of the same shape.

    Returns:
        `[...]`.
    """
    inter, union = _pair_overlaps(boxes, targets)
    corner = jnp.maximum(boxes, targets)[..., 2:] - jnp.minimum(boxes, targets)[..., :2]
    diagonal = jnp.sum(jnp.square(corner), -1) + _EPSILON
    shift = (boxes[..., :2] + boxes[..., 2:] - targets[..., :2] - targets[..., 2:]) / 2
    distance = jnp.sum(jnp.square(shift), -1)
    return 1 - inter / (union + _EPSILON) + distance / diagonal


def ciou_loss(boxes: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns `diou_loss`, plus a term of the difference of the aspect ratios.

    Args:
        boxes: `[..., 4]`, each with x1 <= x2 and y1 < y2.
        targets: Of the same shape.

    Returns:
        `[...]`.
    """
    inter, union = _pair_overlaps(boxes, targets)
    angle, target_angle = _angle(boxes), _angle(targets)
    ratio = (4 / math.pi**2) * jnp.square(target_angle - angle)
    iou = inter / (union + _EPSILON)
    # The weight of the term is a constant to the gradient.
    weight = jax.lax.stop_gradient(ratio / (1 - iou + ratio + _EPSILON))
    return diou_loss(boxes, targets) + weight * ratio


_EPSILON = 1e-7


def _angle(boxes: jax.Array) -> jax.Array:
    """Returns the arc tangents `[...]` of width over height."""
    return jnp.arctan((boxes[..., 2] - boxes[..., 0]) / (boxes[..., 3] - boxes[..., 1]))


def _pair_overlaps(boxes: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the areas `[...]` of intersection and union.

    Where boxes do not meet the intersection has no gradient; a maximum with 0 would
    give half of one to boxes that touch.
    """
    sides = jnp.minimum(boxes, targets)[..., 2:] - jnp.maximum(boxes, targets)[..., :2]
    meet = jnp.all(sides > 0, -1)
    inter = jnp.where(meet, sides[..., 0] * sides[..., 1], 0)
    sizes, target_sizes = (v[..., 2:] - v[..., :2] for v in (boxes, targets))
    areas = sizes[..., 0] * sizes[..., 1] + target_sizes[..., 0] * target_sizes[..., 1]
    return inter, areas - inter
