"""Rectangles made black, and batches mixed with others by mixup or CutMix."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxattn.data.augment.transform import (
    ALL_TARGETS,
    Transform,
    require_field,
    require_up_to,
)

# Draws before an image is left alone because no rectangle fits, as in torchvision.
_TRIES = 10


@dataclass(frozen=True)
class Erase(Transform):
    """Makes a rectangle black, as torchvision's RandomErasing does.

    Attributes:
        erase_probability: Share of images that are erased.
        erase_area: Smallest and largest share of the image's area.
        erase_aspect: Smallest and largest height / width, drawn log-uniformly.

    Raises:
        UserError: If a value is out of its range.
    """

    name: ClassVar[str] = "erase"
    key: ClassVar[int] = 2
    # What is hidden is still there, as behind another object.
    targets: ClassVar[frozenset[str]] = ALL_TARGETS

    erase_probability: float
    erase_area: Sequence[float]
    erase_aspect: Sequence[float]

    def __post_init__(self) -> None:
        require_up_to(self, 1, "erase_probability")
        for key, largest in (("erase_area", 1.0), ("erase_aspect", math.inf)):
            pair = tuple(getattr(self, key))
            holds = len(pair) == 2 and 0 < pair[0] <= pair[1] <= largest
            require_field(self, key, holds, f"low, high in (0, {largest}]")

    @property
    def runs(self) -> bool:
        """Whether images may be erased."""
        return self.erase_probability > 0

    def draw(self, key: jax.Array, n: int, height: int, width: int) -> jax.Array:
        """Draws a rectangle per image.

        Returns:
            int32 `[n, 4]`: first row, first column, end row, end column; empty where
            nothing is erased.
        """
        key_apply, key_area, key_aspect, key_corner = jax.random.split(key, 4)
        shape = (n, _TRIES)
        low, high = self.erase_area
        share = jax.random.uniform(key_area, shape, minval=low, maxval=high)
        pixels = height * width * share
        low, high = np.log(self.erase_aspect[0]), np.log(self.erase_aspect[1])
        ratio = jnp.exp(jax.random.uniform(key_aspect, shape, minval=low, maxval=high))
        h = jnp.round(jnp.sqrt(pixels * ratio)).astype(jnp.int32)
        w = jnp.round(jnp.sqrt(pixels / ratio)).astype(jnp.int32)

        fits = (h < height) & (w < width)
        first = jnp.argmax(fits, 1, keepdims=True)
        chosen_h = jnp.take_along_axis(h, first, 1)[:, 0]
        chosen_w = jnp.take_along_axis(w, first, 1)[:, 0]
        erased = jax.random.bernoulli(key_apply, self.erase_probability, (n,))
        erased &= fits.any(1)

        u = jax.random.uniform(key_corner, (n, 2))
        row = jnp.floor(u[:, 0] * (height - chosen_h + 1)).astype(jnp.int32)
        column = jnp.floor(u[:, 1] * (width - chosen_w + 1)).astype(jnp.int32)
        box = jnp.stack([row, column, row + chosen_h, column + chosen_w], 1)
        return jnp.where(erased[:, None], box, 0)

    def apply(self, images: jax.Array, drawn: jax.Array) -> jax.Array:
        """Makes the rectangles `drawn` black."""
        return jnp.where(_inside(drawn, images.shape[1], images.shape[2]), 0, images)


def _inside(boxes: jax.Array, height: int, width: int) -> jax.Array:
    """Which pixels lie in the rectangles `[N, 4]`, bool `[N, H, W, 1]`."""
    row0, column0, row1, column1 = (boxes[:, i, None] for i in range(4))
    rows, columns = jnp.arange(height)[None], jnp.arange(width)[None]
    in_rows = (rows >= row0) & (rows < row1)
    in_columns = (columns >= column0) & (columns < column1)
    return in_rows[:, :, None, None] & in_columns[:, None, :, None]


class Mix(NamedTuple):
    """How every image of a batch is mixed with a partner.

    Attributes:
        partner: int32 `[N]`, the index of each image's partner.
        box: int32 `[4]`, the rectangle that comes from the partner.
        pixel_weight: Scalar, the image's own share outside the rectangle.
        label_weight: Scalar, the share of the image's own label.
    """

    partner: jax.Array
    box: jax.Array
    pixel_weight: jax.Array
    label_weight: jax.Array


@dataclass(frozen=True)
class MixupCutMix:
    """Mixes whole batches by mixup, CutMix or neither, chosen once per batch.

    It is drawn as a transform is. What was drawn acts on normalised images by `mix`,
    and on their targets where the loss is computed.

    Attributes:
        mixup_probability: Share of batches mixed by mixup.
        mixup_alpha: Its share is drawn from Beta(alpha, alpha).
        cutmix_probability: Share of batches mixed by CutMix.
        cutmix_alpha: As `mixup_alpha`.

    Raises:
        UserError: If a value is out of its range.
    """

    name: ClassVar[str] = "mix"
    key: ClassVar[int] = 3
    targets: ClassVar[frozenset[str]] = frozenset({"image"})

    mixup_probability: float
    mixup_alpha: float
    cutmix_probability: float
    cutmix_alpha: float

    def __post_init__(self) -> None:
        require_up_to(self, 1, "mixup_probability", "cutmix_probability")
        for key in ("mixup_alpha", "cutmix_alpha"):
            require_field(self, key, getattr(self, key) > 0, "above 0")
        require_field(
            self,
            "cutmix_probability",
            self.mixup_probability + self.cutmix_probability <= 1,
            "at most 1 together with mixup_probability",
        )

    @property
    def runs(self) -> bool:
        """Whether batches may be mixed."""
        return self.mixup_probability + self.cutmix_probability > 0

    def draw(self, key: jax.Array, n: int, height: int, width: int) -> Mix:
        """Draws how the global batch of `n` images of that size is mixed."""
        keys = jax.random.split(key, 5)
        choice = jax.random.uniform(keys[0])
        is_mixup = choice < self.mixup_probability
        either = self.mixup_probability + self.cutmix_probability
        is_cutmix = ~is_mixup & (choice < either)
        mixup_share = jax.random.beta(keys[1], self.mixup_alpha, self.mixup_alpha)
        cutmix_share = jax.random.beta(keys[2], self.cutmix_alpha, self.cutmix_alpha)
        center = jax.random.uniform(keys[3], (2,)) * jnp.array([height, width])
        center = center.astype(jnp.int32)
        box, box_share = cutmix_box(cutmix_share, center, height, width)
        return Mix(
            partner=jax.random.permutation(keys[4], n),
            box=jnp.where(is_cutmix, box, 0),
            pixel_weight=jnp.where(is_mixup, mixup_share, 1.0),
            label_weight=jnp.where(
                is_mixup, mixup_share, jnp.where(is_cutmix, box_share, 1.0)
            ),
        )


def cutmix_box(
    share: ArrayLike, center: jax.Array, height: int, width: int
) -> tuple[jax.Array, jax.Array]:
    """Returns the rectangle of CutMix and the share of the image that it leaves.

    Args:
        share: Scalar in [0, 1], the drawn share of the image itself.
        center: Row and column, int32 `[2]`.
        height: Of the image, pixels.
        width: Of the image, pixels.

    Returns:
        int32 `[4]` (first row, first column, end row, end column), clipped to the
        image, and the float32 share of pixels outside it.
    """
    size = jnp.array([height, width])
    side = jnp.floor(size * jnp.sqrt(1 - jnp.asarray(share))).astype(jnp.int32)
    start = jnp.clip(center - side // 2, 0, size)
    end = jnp.clip(center + side // 2, 0, size)
    area = jnp.prod(end - start)
    return jnp.concatenate([start, end]), 1 - area / (height * width)


def mix(x: jax.Array, partners: jax.Array, drawn: Mix) -> jax.Array:
    """Mixes images with their partners.

    One formula serves mixup, CutMix and neither: a pixel is the weighted mean of image
    and partner, and only the weight differs.

    Args:
        x: Normalised images `[N, H, W, C]`.
        partners: The partner of each, `[N, H, W, C]`.
        drawn: From `MixupCutMix.draw`.
    """
    inside = _inside(drawn.box[None], x.shape[1], x.shape[2])
    weight = jnp.where(inside, 0.0, drawn.pixel_weight).astype(x.dtype)
    return weight * x + (1 - weight) * partners
