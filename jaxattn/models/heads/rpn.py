"""The region proposal network: boxes that may be of an object, whatever its class.

Ren, He, Girshick, Sun, "Faster R-CNN", NeurIPS 2015.
"""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from jaxattn.models.anchors import Pyramid
from jaxattn.models.detection import BoxTargets, per_image
from jaxattn.ops.boxes import box_iou, clip_boxes, decode_boxes, encode_boxes, nms
from jaxattn.ops.conv import Conv
from jaxattn.ops.detection_losses import binary_cross_entropy, smooth_l1_loss
from jaxattn.ops.inputs import at_least_float32
from jaxattn.ops.matching import Sample, match, sample

# Of an anchor's IoU: from which on it has a box, below which the background; and the
# least of MMDetection's best anchor of a box.
_HIGH, _LOW, _MIN_IOU = 0.7, 0.3, 0.3
_POSITIVE_FRACTION = 0.5
_NMS_THRESHOLD = 0.7
_LEAST_SIDE = 1e-3  # in pixels, of torchvision's proposals
_BETA = 1 / 9  # of torchvision's smooth L1; MMDetection's is L1


@struct.dataclass
class RPNOutputs:
    """What the network says of every anchor.

    Attributes:
        logits: float32 `[N, A]`: that it is of an object.
        deltas: float32 `[N, A, 4]`.
        image_sizes: float32 `[N, 2]`: heights and widths without padding.
        matched: int32 `[N, A]`, as of `match`; None without targets.
        sampled: Masks `[N, A]` of the anchors that learn; None without targets.
        pyramid: The anchors.
        is_mm: Whether the rules are MMDetection's.
        axis_name: Mapped axis over which losses are divided.
    """

    logits: jax.Array
    deltas: jax.Array
    image_sizes: jax.Array
    matched: jax.Array | None
    sampled: Sample | None
    pyramid: Pyramid = struct.field(pytree_node=False)
    is_mm: bool = struct.field(pytree_node=False)
    axis_name: str | None = struct.field(pytree_node=False)

    def assigned(
        self, targets: BoxTargets, keys: jax.Array, number: int
    ) -> "RPNOutputs":
        """Returns the outputs with what the anchors learn.

        Args:
            targets: What the images show.
            keys: PRNG keys `[N]`.
            number: Of anchors of an image that learn.
        """
        anchors = self.pyramid.anchors()
        inside = jnp.ones(self.logits.shape, bool)
        if self.is_mm:
            inside = self.pyramid.inside(self.image_sizes)

        def assign(
            key: jax.Array, boxes: jax.Array, valid: jax.Array, inside: jax.Array
        ) -> tuple[jax.Array, Sample]:
            matched = match(
                box_iou(boxes, anchors, least_union=1e-6 if self.is_mm else 0.0),
                valid,
                high=_HIGH,
                low=_LOW,
                low_quality="mmdet" if self.is_mm else "torchvision",
                min_iou=_MIN_IOU,
                candidates=inside,
            )
            fraction = _POSITIVE_FRACTION
            return matched, sample(
                key, matched, number=number, positive_fraction=fraction
            )

        assign = jax.vmap(assign)
        matched, sampled = assign(keys, targets.boxes, targets.valid, inside)
        return self.replace(matched=matched, sampled=sampled)  # pyright: ignore

    def losses(self, targets: BoxTargets) -> dict[str, jax.Array]:
        """Returns the losses by image, of outputs that are `assigned`.

        Args:
            targets: What the images show; as before.

        Returns:
            "objectness" and "rpn_box", float32 `[N]`.
        """
        assert self.matched is not None
        assert self.sampled is not None
        positive, negative = self.sampled
        anchors = self.pyramid.anchors()[None]
        target = positive.astype(self.logits.dtype)
        loss = binary_cross_entropy(self.logits, target)
        objectness = jnp.sum(jnp.where(positive | negative, loss, 0), 1)
        boxes = jnp.take_along_axis(
            targets.boxes, jnp.maximum(self.matched, 0)[..., None], 1
        )
        # What has no box takes the anchor, whose code has no logarithm of 0.
        is_box = positive[..., None]
        code = encode_boxes(jnp.where(is_box, boxes, anchors), anchors)
        loss = smooth_l1_loss(self.deltas, code, beta=0.0 if self.is_mm else _BETA)
        box = jnp.sum(jnp.where(is_box, loss, 0), (1, 2))
        least = 1 if self.is_mm else 0  # of each kind and image
        counts = [jnp.maximum(jnp.sum(v, 1), least) for v in (positive, negative)]
        divide = functools.partial(
            per_image, counts=counts[0] + counts[1], axis_name=self.axis_name
        )
        return {"objectness": divide(objectness), "rpn_box": divide(box)}

    def proposals(self, before: int, after: int) -> tuple[jax.Array, jax.Array]:
        """Returns the boxes that are most likely of an object.

        Args:
            before: Of a level, at most, that overlapping ones are dropped from.
            after: Of all levels.

        Returns:
            float32 `[N, after, 4]`, by falling score, and which of them there are. They
            have no gradient.
        """
        propose = functools.partial(self._propose, before=before, after=after)
        logits, deltas = jax.lax.stop_gradient((self.logits, self.deltas))
        return jax.vmap(propose)(logits, deltas, self.image_sizes)

    def _propose(
        self,
        logits: jax.Array,
        deltas: jax.Array,
        image_size: jax.Array,
        *,
        before: int,
        after: int,
    ) -> tuple[jax.Array, jax.Array]:
        places, levels, start = [], [], 0
        for level, count in enumerate(self.pyramid.counts):
            own = logits[start : start + count]
            _, best = jax.lax.top_k(own, min(before, count))
            places.append(start + best)
            levels.append(jnp.full(len(best), level, jnp.int32))
            start += count
        place = jnp.concatenate(places)
        boxes = decode_boxes(
            deltas[place],
            self.pyramid.anchors()[place],
            clamps_shrinking=self.is_mm,
        )
        boxes = clip_boxes(boxes, image_size)
        sides = boxes[:, 2:] - boxes[:, :2]
        valid = jnp.all(sides > 0 if self.is_mm else sides >= _LEAST_SIDE, 1)
        indices, found = nms(
            boxes,
            jax.nn.sigmoid(logits[place]),
            _NMS_THRESHOLD,
            max_outputs=after,
            ids=jnp.concatenate(levels),
            valid=valid,
        )
        return jnp.where(found[:, None], boxes[indices], 0), found


class RPNHead(nn.Module):
    """A convolution with ReLU, and one each for logits and deltas.

    Attributes:
        num_anchors: Of a position.
    """

    num_anchors: int = 3

    @nn.compact
    def __call__(self, levels: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Returns float32 logits `[N, A]` and deltas `[N, A, 4]` of all anchors.

        Args:
            levels: `[N, H, W, C]` each.
        """
        first = _conv(levels[0].shape[-1], 3, "rpn_conv")
        classes = _conv(self.num_anchors, 1, "rpn_cls")
        boxes = _conv(4 * self.num_anchors, 1, "rpn_reg")
        logits, deltas = [], []
        for x in levels:
            x = nn.relu(first(x))
            logits.append(at_least_float32(classes(x)).reshape(x.shape[0], -1))
            deltas.append(at_least_float32(boxes(x)).reshape(x.shape[0], -1, 4))
        return jnp.concatenate(logits, 1), jnp.concatenate(deltas, 1)


def _conv(features: int, size: int, name: str) -> Conv:
    return Conv(
        features,
        size,
        padding=size // 2,
        use_bias=True,
        kernel_init=nn.initializers.normal(0.01),
        bias_init=nn.initializers.zeros,
        name=name,
    )
