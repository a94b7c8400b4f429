"""What every detector takes and gives: targets, detections, and the two layouts.

All shapes are static: images have at most G boxes, of which `valid` are there.
"""

import jax
import jax.numpy as jnp
from flax import struct

LAYOUTS = ("mm", "torchvision")
"""MMDetection's conventions and those of torchvision's detectors.

They differ in anchors, which torchvision rounds; in where P6 is from, and in the ReLU
before P7; in the place of the background among the classes; in assigning, in the losses
and what divides them, and in how a detector starts.
"""


@struct.dataclass
class BoxTargets:
    """What images show.

    Attributes:
        boxes: `[N, G, 4]`, (x1, y1, x2, y2) in pixels of the network's input.
        labels: int `[N, G]`, from 0 on.
        valid: bool `[N, G]`: which boxes there are.
        image_sizes: `[N, 2]`: height and width without what is padded right and below.
        masks: `[N, G, H, W]` of 0 and 1; None where only boxes are known.
    """

    boxes: jax.Array
    labels: jax.Array
    valid: jax.Array
    image_sizes: jax.Array
    masks: jax.Array | None = None


@struct.dataclass
class Detections:
    """What a detector finds, by falling score; 0 where it is not `valid`.

    Attributes:
        boxes: float32 `[N, M, 4]` in pixels of the network's input.
        scores: float32 `[N, M]`, in [0, 1].
        labels: int32 `[N, M]`, from 0 on.
        valid: bool `[N, M]`.
        masks: float32 `[N, M, 28, 28]` in [0, 1], inside the boxes; None of detectors
            of boxes alone.
    """

    boxes: jax.Array
    scores: jax.Array
    labels: jax.Array
    valid: jax.Array
    masks: jax.Array | None = None


def at_least_one(targets: BoxTargets) -> BoxTargets:
    """Returns targets with room for a box, from which one can be picked."""
    if targets.boxes.shape[1]:
        return targets
    pad = lambda v: jnp.pad(v, [(0, 0), (0, 1)] + [(0, 0)] * (v.ndim - 2))  # noqa: E731
    masks = None if targets.masks is None else pad(targets.masks)
    return targets.replace(  # pyright: ignore[reportAttributeAccessIssue]
        boxes=pad(targets.boxes),
        labels=pad(targets.labels),
        valid=pad(targets.valid),
        masks=masks,
    )


def sizes_of(
    x: jax.Array, targets: BoxTargets | None, image_sizes: jax.Array | None
) -> jax.Array:
    """Returns the sizes `[N, 2]` of images, those of the input where none are given."""
    if targets is not None:
        image_sizes = targets.image_sizes
    if image_sizes is not None:
        return jnp.asarray(image_sizes, jnp.float32)
    size = jnp.array([x.shape[1:3]], jnp.float32)
    return jnp.broadcast_to(size, (x.shape[0], 2))


def per_image(
    sums: jax.Array, counts: jax.Array, axis_name: str | None = None
) -> jax.Array:
    """Returns losses by image, whose mean is the batch's sum over the batch's count.

    Args:
        sums: `[N]`.
        counts: `[N]`: what the sums are over.
        axis_name: Mapped axis that the batch is split along.

    Returns:
        `[N]`.
    """
    total = jnp.mean(counts.astype(jnp.float32))
    if axis_name is not None:
        total = jax.lax.pmean(total, axis_name)
    # Of a batch without any: 0, whatever it is divided by.
    return sums / jnp.where(total > 0, total, 1)
