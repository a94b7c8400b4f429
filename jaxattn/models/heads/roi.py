"""The second stage of a detector: classes and boxes of regions."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from jaxattn.models.detection import BoxTargets, Detections, per_image
from jaxattn.models.fpn import xavier_uniform
from jaxattn.ops.boxes import box_iou, clip_boxes, decode_boxes, encode_boxes, nms
from jaxattn.ops.detection_losses import smooth_l1_loss
from jaxattn.ops.init import torch_bias, torch_kernel
from jaxattn.ops.inputs import at_least_float32
from jaxattn.ops.linear import Linear
from jaxattn.ops.matching import match, sample, sampled_indices
from jaxattn.ops.roi_align import roi_align, roi_levels

POSITIVE_FRACTION = 0.25
"""At most so much of the regions that learn has a box."""
_LEAST_SIDE = 1e-2  # in pixels, of torchvision's detections


class Rules(NamedTuple):
    """How regions learn, and become detections.

    Attributes:
        is_mm: Whether as in MMDetection: the background is the last class instead of
            the first, and has no box.
        weights: Of the code of boxes.
        beta: Of the smooth L1 loss.
        is_agnostic: Whether all classes have one box.
        iou: From which on a region has a box.
        axis_name: Mapped axis over which losses are divided.
    """

    is_mm: bool
    weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    beta: float = 0.0
    is_agnostic: bool = False
    iou: float = 0.5
    axis_name: str | None = None


@struct.dataclass
class Regions:
    """Boxes that are looked at, and in training what they learn.

    Attributes:
        boxes: float32 `[N, R, 4]`.
        valid: bool `[N, R]`: which there are.
        matched: int32 `[N, R]`: the box of the targets that a region learns from, below
            0 the background. None without targets.
    """

    boxes: jax.Array
    valid: jax.Array
    matched: jax.Array | None = None


def sample_regions(
    keys: jax.Array, regions: Regions, targets: BoxTargets, rules: Rules, number: int
) -> Regions:
    """Returns the regions that learn, drawn from those given and the targets' boxes.

    Args:
        keys: PRNG keys `[N]`.
        regions: Of the first stage, or the last.
        targets: What the images show.
        rules: As said there.
        number: Of regions of an image.
    """

    def draw(
        key: jax.Array,
        boxes: jax.Array,
        valid: jax.Array,
        own: jax.Array,
        own_valid: jax.Array,
    ) -> Regions:
        boxes, valid = (
            jnp.concatenate([boxes, own]),
            jnp.concatenate([valid, own_valid]),
        )
        matched = match(
            box_iou(own, boxes, least_union=1e-6 if rules.is_mm else 0.0),
            own_valid,
            high=rules.iou,
            low=rules.iou,
            candidates=valid,
        )
        sampled = sample(
            key, matched, number=number, positive_fraction=POSITIVE_FRACTION
        )
        places, found = sampled_indices(sampled, min(number, len(boxes)))
        boxes = jnp.where(found[:, None], boxes[places], 0)
        return Regions(boxes, found, matched[places])

    return jax.lax.stop_gradient(
        jax.vmap(draw)(keys, regions.boxes, regions.valid, targets.boxes, targets.valid)
    )


def pool_regions(
    maps: Sequence[jax.Array],
    boxes: jax.Array,
    *,
    strides: Sequence[int],
    size: int,
    finest_scale: float,
    is_mm: bool,
) -> jax.Array:
    """Returns what the pyramid has inside regions.

    Args:
        maps: Its levels, `[N, H, W, C]` each.
        boxes: `[N, R, 4]`.
        strides: Pixels of a position by level.
        size: Rows and columns that are returned.
        finest_scale: See `roi_levels`.
        is_mm: Aligns positions, and takes as many points as there are, up to 4 x 4.

    Returns:
        `[N * R, size, size, C]`.
    """
    levels = roi_levels(
        boxes, num_levels=len(maps), finest_scale=finest_scale, adds_inside=is_mm
    )
    pool = functools.partial(
        roi_align,
        strides=strides,
        output_size=(size, size),
        sampling_ratio=0 if is_mm else 2,
        aligned=is_mm,
    )
    pooled = jax.vmap(pool)([*maps], boxes, levels)
    return pooled.reshape(-1, *pooled.shape[2:])


@struct.dataclass
class RoIOutputs:
    """What a head says of regions.

    Attributes:
        regions: The regions.
        logits: float32 `[N, R, K + 1]`, where the background is as the rules say.
        deltas: float32 `[N, R, B, 4]`, of B boxes: of each class, in torchvision's
            layout of the background, too; or one of all.
        rules: As said there.
    """

    regions: Regions
    logits: jax.Array
    deltas: jax.Array
    rules: Rules = struct.field(pytree_node=False)

    def labels(self, targets: BoxTargets) -> jax.Array:
        """Returns the classes `[N, R]` of the regions; that after the last is none."""
        assert self.regions.matched is not None
        matched = self.regions.matched
        own = jnp.take_along_axis(targets.labels, jnp.maximum(matched, 0), 1)
        return jnp.where(matched >= 0, own, self.logits.shape[-1] - 1)

    def losses(self, targets: BoxTargets) -> dict[str, jax.Array]:
        """Returns the losses by image.

        Args:
            targets: What the images show.

        Returns:
            "classification" and "box", float32 `[N]`.
        """
        regions, rules = self.regions, self.rules
        assert regions.matched is not None
        labels, K = self.labels(targets), self.logits.shape[-1] - 1
        index = labels if rules.is_mm else (labels + 1) % (K + 1)
        own = index[..., None] == jnp.arange(K + 1).reshape(1, 1, -1)
        logs = jax.nn.log_softmax(self.logits)
        entropy = -jnp.sum(jnp.where(own, logs, 0), -1)
        classification = jnp.sum(jnp.where(regions.valid, entropy, 0), 1)

        positive = regions.valid & (regions.matched >= 0)
        deltas = self.deltas[..., 0, :]
        if not rules.is_agnostic:
            own = own[..., : self.deltas.shape[2], None]
            deltas = jnp.sum(jnp.where(own, self.deltas, 0), 2)
        place = jnp.maximum(regions.matched, 0)[..., None]
        boxes = jnp.take_along_axis(targets.boxes, place, 1)
        # What has no box takes one whose code has no logarithm of 0.
        unit = jnp.array([0.0, 0.0, 1.0, 1.0]).reshape(1, 1, 4)
        pair = [jnp.where(positive[..., None], v, unit) for v in (boxes, regions.boxes)]
        code = encode_boxes(*pair, weights=rules.weights)
        loss = jnp.sum(smooth_l1_loss(deltas, code, beta=rules.beta), -1)
        box = jnp.sum(jnp.where(positive, loss, 0), 1)
        divide = functools.partial(
            per_image, counts=jnp.sum(regions.valid, 1), axis_name=rules.axis_name
        )
        return {"classification": divide(classification), "box": divide(box)}

    def decoded(self, image_sizes: jax.Array) -> jax.Array:
        """Returns the boxes `[N, R, B, 4]`, cut to the images.

        Args:
            image_sizes: `[N, 2]`: heights and widths.
        """
        boxes = decode_boxes(
            self.deltas,
            self.regions.boxes[:, :, None],
            weights=self.rules.weights,
            clamps_shrinking=self.rules.is_mm,
        )
        return jax.vmap(clip_boxes)(boxes, image_sizes)


def detect_regions(
    outputs: RoIOutputs,
    logits: jax.Array,
    image_sizes: jax.Array,
    *,
    score_threshold: float,
    nms_threshold: float,
    max_detections: int,
) -> Detections:
    """Returns what is found, after non-maximum suppression.

    Args:
        outputs: Of the last head.
        logits: Its own, or those of several; as there.
        image_sizes: `[N, 2]`: heights and widths.
        score_threshold: Detections have higher scores.
        nms_threshold: IoU above which the lower of two detections of a class is
            dropped.
        max_detections: Of an image.
    """
    rules = outputs.rules
    boxes, scores = outputs.decoded(image_sizes), jax.nn.softmax(logits)
    scores = scores[..., :-1] if rules.is_mm else scores[..., 1:]
    if not (rules.is_mm or rules.is_agnostic):
        boxes = boxes[..., 1:, :]
    N, R, K = scores.shape
    boxes = jnp.broadcast_to(boxes, (N, R, K, 4)).reshape(N, R * K, 4)
    valid = (scores > score_threshold) & outputs.regions.valid[..., None]
    scores, valid = scores.reshape(N, -1), valid.reshape(N, -1)
    if not rules.is_mm:
        valid &= jnp.all(boxes[..., 2:] - boxes[..., :2] >= _LEAST_SIDE, -1)
    labels = jnp.tile(jnp.arange(K, dtype=jnp.int32), R)

    def suppress(boxes: jax.Array, scores: jax.Array, valid: jax.Array) -> Detections:
        indices, found = nms(
            boxes,
            scores,
            nms_threshold,
            max_outputs=max_detections,
            ids=labels,
            valid=valid,
        )
        return Detections(
            jnp.where(found[:, None], boxes[indices], 0),
            jnp.where(found, scores[indices], 0),
            jnp.where(found, labels[indices], 0),
            found,
        )

    return jax.vmap(suppress)(boxes, scores, valid)


class BoxHead(nn.Module):
    """Two fully connected layers with ReLU, and one each for classes and boxes.

    Attributes:
        num_classes: Classes, without the background.
        hidden: Features of the layers.
        is_mm: Whose layout and start.
        is_agnostic: All classes have one box.
    """

    num_classes: int
    hidden: int = 1024
    is_mm: bool = True
    is_agnostic: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns float32 logits `[M, K + 1]` and deltas `[M, B, 4]`.

        Args:
            x: What is in regions, `[M, H, W, C]`.
        """
        x = jnp.transpose(x, (0, 3, 1, 2)).reshape(x.shape[0], -1)  # as torch flattens
        for i in (0, 1):
            init = xavier_uniform if self.is_mm else torch_kernel
            x = nn.relu(self._linear(x, self.hidden, init, f"shared_fcs.{i}"))
        K = self.num_classes
        normal = nn.initializers.normal
        inits = (normal(0.01), normal(0.001)) if self.is_mm else (torch_kernel,) * 2
        boxes = 1 if self.is_agnostic else K if self.is_mm else K + 1
        logits = self._linear(x, K + 1, inits[0], "fc_cls")
        deltas = self._linear(x, 4 * boxes, inits[1], "fc_reg")
        return (
            at_least_float32(logits),
            at_least_float32(deltas).reshape(x.shape[0], boxes, 4),
        )

    def _linear(
        self,
        x: jax.Array,
        features: int,
        init: nn.initializers.Initializer,
        name: str,
    ) -> jax.Array:
        bias = nn.initializers.zeros if self.is_mm else torch_bias(x.shape[-1])
        return Linear(features, init, bias, name=name)(x)
