"""The mask branch: which pixels of a region are of its object.

He, Gkioxari, Dollar, Girshick, "Mask R-CNN", ICCV 2017.
"""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from jaxattn.models.detection import BoxTargets, per_image
from jaxattn.models.heads.roi import Regions
from jaxattn.ops.conv import Conv
from jaxattn.ops.detection_losses import binary_cross_entropy
from jaxattn.ops.init import kaiming_normal, torch_bias
from jaxattn.ops.inputs import at_least_float32
from jaxattn.ops.roi_align import crop_masks


@struct.dataclass
class MaskOutputs:
    """What the branch says of regions, which learn.

    Attributes:
        regions: Those that have a box.
        logits: float32 `[N, R, 28, 28]`, of the box's class.
        is_mm: Whether targets are MMDetection's: 0 or 1.
        axis_name: Mapped axis over which losses are divided.
    """

    regions: Regions
    logits: jax.Array
    is_mm: bool = struct.field(pytree_node=False)
    axis_name: str | None = struct.field(pytree_node=False)

    def losses(self, targets: BoxTargets) -> dict[str, jax.Array]:
        """Returns the loss by image.

        Args:
            targets: What the images show, with masks.

        Returns:
            "mask", float32 `[N]`.
        """
        loss = binary_cross_entropy(self.logits, self.targets(targets))
        loss = jnp.sum(jnp.mean(loss, (2, 3)) * self.regions.valid, 1)
        counts = jnp.sum(self.regions.valid, 1)
        return {"mask": per_image(loss, counts, self.axis_name)}

    def targets(self, targets: BoxTargets) -> jax.Array:
        """Returns what the masks have inside the regions, `[N, R, 28, 28]`.

        Args:
            targets: What the images show, with masks.
        """
        crop = functools.partial(
            crop_masks, size=self.logits.shape[-1], aligned=self.is_mm
        )
        assert self.regions.matched is not None
        assert targets.masks is not None
        chosen = jnp.maximum(self.regions.matched, 0)
        found = jax.vmap(crop)(targets.masks, self.regions.boxes, chosen)
        return (found >= 0.5).astype(found.dtype) if self.is_mm else found


class MaskHead(nn.Module):
    """Convolutions with ReLU, one that doubles the side, and one for the classes.

    Attributes:
        num_classes: Logits of a pixel.
        features: Channels of the convolutions.
        upsampled: Channels of the map of twice the side.
        is_mm: Whose start of the last bias, and that of the one before.
    """

    num_classes: int
    features: Sequence[int] = (256, 256, 256, 256)
    upsampled: int = 256
    is_mm: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns float32 logits `[M, 2 H, 2 W, K]`.

        Args:
            x: What is in regions, `[M, H, W, C]`.
        """
        zeros = nn.initializers.zeros
        for i, features in enumerate(self.features):
            x = nn.relu(_conv(features, 3, f"convs.{i}.conv", zeros)(x))
        bias = zeros if self.is_mm else None
        x = nn.relu(Upsample(self.upsampled, bias, name="upsample")(x))
        return at_least_float32(_conv(self.num_classes, 1, "conv_logits", bias)(x))


class Upsample(nn.Module):
    """A transposed convolution of 2 x 2 and stride 2, as torch has it.

    Attributes:
        features: Output channels.
        bias_init: Initialiser of the bias; None is torch's default.
    """

    features: int
    bias_init: nn.initializers.Initializer | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `[M, 2 H, 2 W, features]` of `x` `[M, H, W, C]`."""
        M, H, W, C = x.shape
        shape = (2, 2, self.features, C)  # outputs before inputs, as torch has them
        kernel = self.param("kernel", kaiming_normal, shape, jnp.float32)
        init = self.bias_init or torch_bias(4 * self.features)
        bias = self.param("bias", init, (self.features,), jnp.float32)
        # Patches do not overlap: one product.
        y = x @ kernel.astype(x.dtype).reshape(-1, C).T
        y = y.reshape(M, H, W, 2, 2, self.features).transpose(0, 1, 3, 2, 4, 5)
        y = y.reshape(M, 2 * H, 2 * W, self.features)
        return y + bias.astype(x.dtype).reshape(1, 1, 1, -1)


def of_class(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the logits of each region's class.

    Args:
        logits: `[M, H, W, K]`.
        labels: int `[M]`.

    Returns:
        `[M, H, W]`.
    """
    K = logits.shape[-1]
    own = labels[:, None] == jnp.arange(K)[None]
    return jnp.sum(jnp.where(own[:, None, None], logits, 0), -1)


def paste_masks(
    masks: jax.Array, boxes: jax.Array, image_size: tuple[int, int]
) -> jax.Array:
    """Returns masks in their places in an image, as torchvision pastes them.

    Args:
        masks: `[M, m, m]` in [0, 1], of the insides of boxes.
        boxes: `[M, 4]`.
        image_size: Rows and columns.

    Returns:
        float32 `[M, *image_size]`; above 0.5 is the object.
    """
    m = masks.shape[-1]
    masks = jnp.pad(masks, ((0, 0), (1, 1), (1, 1)))
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]) / 2 * ((m + 2) / m)
    low, high = jnp.trunc(centre - half), jnp.trunc(centre + half)
    columns, rows = (
        _interpolating(low[:, axis], high[:, axis], m + 2, image_size[1 - axis])
        for axis in (0, 1)
    )
    exact = jax.lax.Precision.HIGHEST
    return jnp.einsum("nyh,nhw,nxw->nyx", rows, masks, columns, precision=exact)


def _interpolating(low: jax.Array, high: jax.Array, m: int, size: int) -> jax.Array:
    """Returns weights `[M, size, m]` of m values for pixels from `low` to `high`."""
    length = jnp.maximum(high - low + 1, 1)[:, None]
    pixel = jnp.arange(size, dtype=low.dtype)[None] - low[:, None]
    place = jnp.clip((pixel + 0.5) * (m / length) - 0.5, 0, m - 1)
    values = jnp.arange(m, dtype=low.dtype).reshape(1, 1, -1)
    weights = jnp.maximum(0, 1 - jnp.abs(place[..., None] - values))
    return jnp.where(((pixel >= 0) & (pixel < length))[..., None], weights, 0)


def _conv(
    features: int, size: int, name: str, bias_init: nn.initializers.Initializer | None
) -> Conv:
    return Conv(
        features,
        size,
        padding=size // 2,
        use_bias=True,
        kernel_init=kaiming_normal,
        bias_init=bias_init,
        name=name,
    )
