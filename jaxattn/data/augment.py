"""Augmentation on the device: pure functions of drawn parameters and a batch.

Every transform comes in two halves. `draw_*` turns a key into parameters for the whole
batch; the transform itself applies them and is deterministic. So what is random is
drawn once for the global batch, whatever the number of devices, and a transform can be
checked against another implementation on the same parameters.

Images are uint8 `[N, H, W, C]` until `normalize`; what is drawn per image has N as its
first axis.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxattn.errors import choose, require

_CROP_FILLS = ("zero", "reflect", "edge")


def normalize(
    images: jax.Array, /, *, mean: Sequence[float], std: Sequence[float]
) -> jax.Array:
    """Returns `(images / 255 - mean) / std` as float32 `[N, H, W, C]`.

    Args:
        images: uint8 `[N, H, W, C]`.
        mean: Per channel, of intensities in [0, 1]; one value serves all channels.
        std: As `mean`.
    """
    shape = (1, 1, 1, -1)
    scale = 1 / (255 * np.asarray(std, np.float32)).reshape(shape)
    offset = (np.asarray(mean, np.float32) / np.asarray(std, np.float32)).reshape(shape)
    return images.astype(jnp.float32) * scale - offset


def draw_flip(key: jax.Array, n: int, probability: float) -> jax.Array:
    """Draws which images to mirror, bool `[n]`."""
    return jax.random.bernoulli(key, probability, (n,))


def flip(images: jax.Array, flipped: jax.Array) -> jax.Array:
    """Mirrors the images where `flipped` `[N]`, left to right."""
    return jnp.where(flipped[:, None, None, None], images[:, :, ::-1], images)


def draw_crop(key: jax.Array, n: int, padding: int) -> jax.Array:
    """Draws the corner (row, column) of each crop, int32 `[n, 2]` in 0..2*padding."""
    return jax.random.randint(key, (n, 2), 0, 2 * padding + 1)


def crop(images: jax.Array, corner: jax.Array, padding: int, fill: str) -> jax.Array:
    """Pads by `padding` pixels on each side and crops to the original size.

    Args:
        images: uint8 `[N, H, W, C]`.
        corner: Row and column in the padded image, `[N, 2]`.
        padding: Pixels, at least 0; less than H and W for "reflect".
        fill: "zero", "reflect" (the border itself is not repeated) or "edge".

    Raises:
        ValueError: If "reflect" would need more pixels than there are.
    """
    N, H, W, _ = images.shape
    if fill == "reflect" and padding >= min(H, W):
        raise ValueError(
            f"crop_padding_px={padding}: reflection needs less than the image's side,"
            f" {min(H, W)}"
        )
    rows, rows_valid = _source_positions(corner[:, 0], H, padding, fill)
    columns, columns_valid = _source_positions(corner[:, 1], W, padding, fill)
    cropped = images[jnp.arange(N)[:, None, None], rows[:, :, None], columns[:, None]]
    valid = rows_valid[:, :, None, None] & columns_valid[:, None, :, None]
    return jnp.where(valid, cropped, 0)


def _source_positions(
    corner: jax.Array, size: int, padding: int, fill: str
) -> tuple[jax.Array, jax.Array]:
    """Where each position of a cropped axis comes from `[N, size]`; if it exists."""
    position = corner[:, None] + jnp.arange(size)[None] - padding
    clipped = jnp.clip(position, 0, size - 1)
    if fill == "reflect":
        # Outside by d on either side lies as far inside.
        clipped = clipped - (position - clipped)
    valid = (position == clipped) if fill == "zero" else jnp.ones_like(position, bool)
    return clipped, valid


def draw_erase(
    key: jax.Array,
    n: int,
    height: int,
    width: int,
    *,
    probability: float,
    area: Sequence[float],
    aspect: Sequence[float],
    tries: int = 10,
) -> jax.Array:
    """Draws a rectangle per image as torchvision's RandomErasing does.

    Args:
        key: PRNG key.
        n: Images.
        height: Of the images, pixels.
        width: Of the images, pixels.
        probability: Share of images that are erased.
        area: Smallest and largest share of the image's area.
        aspect: Smallest and largest height / width, drawn log-uniformly.
        tries: Draws before an image is left alone because no rectangle fits.

    Returns:
        int32 `[n, 4]`: first row, first column, end row, end column; empty where
        nothing is erased.
    """
    key_apply, key_area, key_aspect, key_corner = jax.random.split(key, 4)
    shape = (n, tries)
    pixels = height * width * jax.random.uniform(
        key_area, shape, minval=area[0], maxval=area[1]
    )  # fmt: skip
    low, high = np.log(aspect[0]), np.log(aspect[1])
    ratio = jnp.exp(jax.random.uniform(key_aspect, shape, minval=low, maxval=high))
    h = jnp.round(jnp.sqrt(pixels * ratio)).astype(jnp.int32)
    w = jnp.round(jnp.sqrt(pixels / ratio)).astype(jnp.int32)

    fits = (h < height) & (w < width)
    first = jnp.argmax(fits, 1, keepdims=True)
    chosen_h = jnp.take_along_axis(h, first, 1)[:, 0]
    chosen_w = jnp.take_along_axis(w, first, 1)[:, 0]
    erased = jax.random.bernoulli(key_apply, probability, (n,)) & fits.any(1)

    u = jax.random.uniform(key_corner, (n, 2))
    row = jnp.floor(u[:, 0] * (height - chosen_h + 1)).astype(jnp.int32)
    column = jnp.floor(u[:, 1] * (width - chosen_w + 1)).astype(jnp.int32)
    box = jnp.stack([row, column, row + chosen_h, column + chosen_w], 1)
    return jnp.where(erased[:, None], box, 0)


def erase(images: jax.Array, boxes: jax.Array) -> jax.Array:
    """Makes the rectangles `[N, 4]` of `draw_erase` black."""
    return jnp.where(_inside(boxes, images.shape[1], images.shape[2]), 0, images)


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


def draw_mix(
    key: jax.Array,
    n: int,
    height: int,
    width: int,
    *,
    mixup_probability: float,
    mixup_alpha: float,
    cutmix_probability: float,
    cutmix_alpha: float,
) -> Mix:
    """Draws for one batch: mixup, CutMix or neither, and with which share.

    Args:
        key: PRNG key.
        n: Images of the global batch.
        height: Of the images, pixels.
        width: Of the images, pixels.
        mixup_probability: Of the batch to be mixed by mixup.
        mixup_alpha: The share is drawn from Beta(alpha, alpha).
        cutmix_probability: Of the batch to be mixed by CutMix.
        cutmix_alpha: As `mixup_alpha`.
    """
    keys = jax.random.split(key, 5)
    choice = jax.random.uniform(keys[0])
    is_mixup = choice < mixup_probability
    is_cutmix = ~is_mixup & (choice < mixup_probability + cutmix_probability)
    mixup_share = jax.random.beta(keys[1], mixup_alpha, mixup_alpha)
    cutmix_share = jax.random.beta(keys[2], cutmix_alpha, cutmix_alpha)
    center = jax.random.uniform(keys[3], (2,)) * jnp.array([height, width])
    box, box_share = cutmix_box(cutmix_share, center.astype(jnp.int32), height, width)
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
        drawn: From `draw_mix`.
    """
    inside = _inside(drawn.box[None], x.shape[1], x.shape[2])
    weight = jnp.where(inside, 0.0, drawn.pixel_weight).astype(x.dtype)
    return weight * x + (1 - weight) * partners


class Draws(NamedTuple):
    """What one training step drew: per image (N first), and for the batch."""

    images: dict[str, jax.Array]
    mix: Mix | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augment:
    """The training transforms of a recipe; those left at 0 do not run.

    In order: mirror, pad and crop, random erasing; then, on normalised images, mixup or
    CutMix, chosen once per batch.

    Attributes:
        flip_probability: Share of images that are mirrored.
        crop_padding_px: Padding on each side before the crop to the original size.
        crop_fill: What the padding holds: "zero", "reflect" or "edge".
        erase_probability: Share of images with a rectangle made black.
        erase_area: Smallest and largest share of the image's area.
        erase_aspect: Smallest and largest height / width of the rectangle.
        mixup_probability: Share of batches mixed by mixup.
        mixup_alpha: Its share is drawn from Beta(alpha, alpha).
        cutmix_probability: Share of batches mixed by CutMix.
        cutmix_alpha: As `mixup_alpha`.

    Raises:
        UserError: If a value is out of its range.
    """

    flip_probability: float = 0.0
    crop_padding_px: int = 0
    crop_fill: str = "zero"
    erase_probability: float = 0.0
    erase_area: Sequence[float] = (0.02, 0.33)
    erase_aspect: Sequence[float] = (0.3, 3.3)
    mixup_probability: float = 0.0
    mixup_alpha: float = 1.0
    cutmix_probability: float = 0.0
    cutmix_alpha: float = 1.0

    def __post_init__(self) -> None:
        for name in ("flip", "erase", "mixup", "cutmix"):
            key = f"{name}_probability"
            self._require(key, 0 <= getattr(self, key) <= 1, "in [0, 1]")
        self._require("crop_padding_px", self.crop_padding_px >= 0, "at least 0")
        choose("augment.crop_fill", self.crop_fill, _CROP_FILLS)
        for name in ("mixup", "cutmix"):
            key = f"{name}_alpha"
            self._require(key, getattr(self, key) > 0, "above 0")
        for key, largest in (("erase_area", 1.0), ("erase_aspect", math.inf)):
            pair = tuple(getattr(self, key))
            holds = len(pair) == 2 and 0 < pair[0] <= pair[1] <= largest
            self._require(key, holds, f"low, high in (0, {largest}]")
        self._require(
            "cutmix_probability",
            self.mixup_probability + self.cutmix_probability <= 1,
            "at most 1 together with mixup_probability",
        )

    def _require(self, key: str, holds: bool, wanted: str) -> None:
        require(f"augment.{key}", getattr(self, key), holds, wanted)

    @property
    def mixes(self) -> bool:
        """Whether batches may be mixed."""
        return self.mixup_probability + self.cutmix_probability > 0

    def draw(self, key: jax.Array, n: int, height: int, width: int) -> Draws:
        """Draws the parameters of one step.

        Args:
            key: PRNG key of the step.
            n: Images of the global batch.
            height: Of the images, pixels.
            width: Of the images, pixels.
        """
        keys = jax.random.split(key, 4)
        images = {}
        if self.flip_probability:
            images["flip"] = draw_flip(keys[0], n, self.flip_probability)
        if self.crop_padding_px:
            images["crop"] = draw_crop(keys[1], n, self.crop_padding_px)
        if self.erase_probability:
            images["erase"] = draw_erase(
                keys[2],
                n,
                height,
                width,
                probability=self.erase_probability,
                area=self.erase_area,
                aspect=self.erase_aspect,
            )
        if not self.mixes:
            return Draws(images, None)
        mixed = draw_mix(
            keys[3],
            n,
            height,
            width,
            mixup_probability=self.mixup_probability,
            mixup_alpha=self.mixup_alpha,
            cutmix_probability=self.cutmix_probability,
            cutmix_alpha=self.cutmix_alpha,
        )
        return Draws(images, mixed)

    def apply(self, images: jax.Array, drawn: dict[str, jax.Array]) -> jax.Array:
        """Transforms uint8 images `[N, H, W, C]` by the parameters drawn for them."""
        if "flip" in drawn:
            images = flip(images, drawn["flip"])
        if "crop" in drawn:
            images = crop(images, drawn["crop"], self.crop_padding_px, self.crop_fill)
        if "erase" in drawn:
            images = erase(images, drawn["erase"])
        return images
