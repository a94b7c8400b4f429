"""Augmentation on the device: pure functions of drawn parameters and a batch.

Every transform comes in two halves. `draw_*` turns a key into parameters for the whole
batch; the transform itself applies them and is deterministic. So what is random is
drawn once for the global batch, whatever the number of devices, and a transform can be
checked against another implementation on the same parameters.

Images are `[N, H, W, C]` with values in 0..255 until `normalize`: uint8 as they come,
float32 once a transform has computed with colours. What is drawn per image has N as its
first axis.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxattn.errors import choose, require

_CROP_FILLS = ("zero", "reflect", "edge")

# Each transform draws from a key of its own, whichever others run. The numbers are part
# of what a seed stands for: a new transform takes the next one.
_KEYS = {
    "flip": 0,
    "crop": 1,
    "erase": 2,
    "mix": 3,
    "rotation": 4,
    "jitter": 5,
    "perspective": 6,
}

# Jitter's operations, as its order numbers them.
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(4)


def normalize(
    images: jax.Array, /, *, mean: Sequence[float], std: Sequence[float]
) -> jax.Array:
    """Returns `(images / 255 - mean) / std` as float32 `[N, H, W, C]`.

    Args:
        images: uint8 or float `[N, H, W, C]` in 0..255.
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
        images: `[N, H, W, C]`.
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


def draw_rotation(key: jax.Array, n: int, degrees: float) -> jax.Array:
    """Draws an angle per image, float32 `[n]` in [-degrees, degrees]."""
    return jax.random.uniform(key, (n,), minval=-degrees, maxval=degrees)


def rotate(images: jax.Array, degrees: jax.Array) -> jax.Array:
    """Rotates about the centre, on the same canvas, as Pillow does with NEAREST.

    Args:
        images: `[N, H, W, C]`; the dtype stays.
        degrees: Counter-clockwise, `[N]`.

    Returns:
        `[N, H, W, C]`, black where a pixel comes from outside the image.
    """
    _, H, W, _ = images.shape
    angle = jnp.deg2rad(degrees)[:, None, None]
    x, y = _pixel_centers(H, W)
    dx, dy = x - W / 2, y - H / 2
    from_x = jnp.cos(angle) * dx - jnp.sin(angle) * dy + W / 2
    from_y = jnp.sin(angle) * dx + jnp.cos(angle) * dy + H / 2
    pixels = _pixels(images, jnp.floor(from_x), jnp.floor(from_y))
    return jnp.where(_on_canvas(from_x, from_y), pixels, 0)


def _pixel_centers(height: int, width: int) -> tuple[jax.Array, jax.Array]:
    """Coordinates of the pixels' centres: x `[1, 1, W]` and y `[1, H, 1]`."""
    return jnp.arange(width)[None, None] + 0.5, jnp.arange(height)[None, :, None] + 0.5


def _on_canvas(x: jax.Array, y: jax.Array) -> jax.Array:
    """Which coordinates `[N, H, W]` lie in an image of that size, `[N, H, W, 1]`."""
    _, H, W = x.shape
    return ((x >= 0) & (x < W) & (y >= 0) & (y < H))[..., None]


def _pixels(images: jax.Array, columns: jax.Array, rows: jax.Array) -> jax.Array:
    """Takes a pixel per whole-numbered position `[N, H, W]`, clamped to the edge."""
    N, H, W, _ = images.shape
    columns = jnp.clip(columns, 0, W - 1).astype(jnp.int32)
    rows = jnp.clip(rows, 0, H - 1).astype(jnp.int32)
    return images[jnp.arange(N)[:, None, None], rows, columns]


class Jitter(NamedTuple):
    """How the colours of every image change.

    Attributes:
        brightness: float32 `[N]`, a factor.
        contrast: float32 `[N]`, a factor.
        saturation: float32 `[N]`, a factor.
        hue: float32 `[N]`, a shift in turns.
        order: int32 `[N, 4]`, the operations in the order in which they run: 0 is
            brightness, 1 contrast, 2 saturation, 3 hue.
    """

    brightness: jax.Array
    contrast: jax.Array
    saturation: jax.Array
    hue: jax.Array
    order: jax.Array


def draw_jitter(
    key: jax.Array,
    n: int,
    *,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
) -> Jitter:
    """Draws factors, a shift of hue and an order of operations per image.

    Args:
        key: PRNG key.
        n: Images.
        brightness: Factors are drawn from [1 - brightness, 1 + brightness].
        contrast: As `brightness`.
        saturation: As `brightness`.
        hue: Shifts are drawn from [-hue, hue] turns, then cut toward zero to whole
            1/255, the steps of an 8-bit hue.
    """
    keys = jax.random.split(key, 5)

    def factors(i: int, strength: float) -> jax.Array:
        return jax.random.uniform(
            keys[i], (n,), minval=1 - strength, maxval=1 + strength
        )

    shift = jax.random.uniform(keys[_HUE], (n,), minval=-hue, maxval=hue)
    operations = jnp.tile(jnp.arange(4, dtype=jnp.int32), (n, 1))
    return Jitter(
        brightness=factors(_BRIGHTNESS, brightness),
        contrast=factors(_CONTRAST, contrast),
        saturation=factors(_SATURATION, saturation),
        hue=jnp.trunc(255 * shift) / 255,
        order=jax.random.permutation(keys[4], operations, axis=1, independent=True),
    )


def jitter(images: jax.Array, drawn: Jitter) -> jax.Array:
    """Changes brightness, contrast, saturation and hue, in each image's own order.

    The operations are torchvision's on PIL images, but without rounding in between.

    The first three are all `clip(a x + b grey(x) + c mean(grey))`, so that each can
    stand at any place by its coefficients alone. The hue is shifted once, between three
    places before it and three after; of those, the places on the wrong side of an
    image's own hue shift leave it as it is.

    Args:
        images: uint8 or float `[N, H, W, 3]` in 0..255.
        drawn: From `draw_jitter`.

    Returns:
        float32 `[N, H, W, 3]` in [0, 255].

    Raises:
        ValueError: If the images are not of 3 channels.
    """
    if images.shape[-1] != 3:
        raise ValueError(
            "brightness, contrast, saturation and hue need images of 3 channels, not"
            f" {images.shape[-1]}"
        )
    before, after = _blends(drawn)
    # Channels first: whole planes are what vector units work on.
    x = jnp.moveaxis(images.astype(jnp.float32), -1, 0)
    for place in (0, 1, 2):
        x = _blend(x, before[place])
    x = _shift_hue(x, drawn.hue)
    for place in (1, 2, 3):
        x = _blend(x, after[place])
    return jnp.moveaxis(x, 0, -1)


def _blends(drawn: Jitter) -> tuple[jax.Array, jax.Array]:
    """Coefficients (a, b, c) of each place, before and after the hue, `[4, 3, N]`."""
    one, zero = jnp.ones_like(drawn.hue), jnp.zeros_like(drawn.hue)
    # By the operations' numbers; what the hue has here is used nowhere.
    operations = jnp.array(
        [
            [drawn.brightness, zero, zero],
            [drawn.contrast, zero, 1 - drawn.contrast],
            [drawn.saturation, 1 - drawn.saturation, zero],
            [one, zero, zero],
        ]
    )
    order = drawn.order.T[:, None]
    ordered = jnp.take_along_axis(operations, order, 0)
    identity = jnp.array([[one, zero, zero]])
    place = jnp.arange(4)[:, None, None]
    hue_place = jnp.argmax(order == _HUE, 0, keepdims=True)
    return (
        jnp.where(place < hue_place, ordered, identity),
        jnp.where(place > hue_place, ordered, identity),
    )


def _blend(x: jax.Array, coefficients: jax.Array) -> jax.Array:
    """Blends planes `[3, N, H, W]` with their grey and its mean by `[3, N]`."""
    a, b, c = coefficients[:, :, None, None]
    grey = 0.299 * x[0] + 0.587 * x[1] + 0.114 * x[2]
    offset = b * grey + c * jnp.mean(grey, (1, 2), keepdims=True)
    return jnp.clip(a[None] * x + offset[None], 0, 255)


def _shift_hue(x: jax.Array, turns: jax.Array) -> jax.Array:
    """Shifts the HSV hue of planes `[3, N, H, W]` by `[N]`."""
    r, g, b = x
    # Not `jnp.max(x, 0)`: on CPUs a reduction of three takes ten times as long.
    value = jnp.maximum(jnp.maximum(r, g), b)
    chroma = value - jnp.minimum(jnp.minimum(r, g), b)
    # Grey has the hue 0: its differences are 0 too.
    divisor = jnp.where(chroma == 0, 1, chroma)
    is_red, is_green = r == value, g == value
    difference = jnp.where(is_red, g - b, jnp.where(is_green, b - r, r - g))
    sextant = jnp.where(is_red, 0.0, jnp.where(is_green, 2.0, 4.0))
    hue = sextant + difference / divisor + 6 * turns[:, None, None]

    def channel(offset: int) -> jax.Array:
        k = offset + hue
        k -= 6 * jnp.floor(k / 6)
        return value - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)

    return jnp.stack([channel(5), channel(3), channel(1)])


def draw_perspective(
    key: jax.Array,
    n: int,
    height: int,
    width: int,
    *,
    probability: float,
    distortion: float,
) -> jax.Array:
    """Draws how far corners move inward, as torchvision's RandomPerspective does.

    Args:
        key: PRNG key.
        n: Images.
        height: Of the images, pixels.
        width: Of the images, pixels.
        probability: Share of images that are changed.
        distortion: Largest move as a share of half the side.

    Returns:
        int32 `[n, 4, 2]`, pixels: top left, top right, bottom right, bottom left; x,
        then y; 0 in images that are not changed.
    """
    key_apply, key_corners = jax.random.split(key)
    most = [int(distortion * (side // 2)) for side in (width, height)]
    end = jnp.array(most)[None, None] + 1
    moves = jax.random.randint(key_corners, (n, 4, 2), 0, end)
    changed = jax.random.bernoulli(key_apply, probability, (n, 1, 1))
    return jnp.where(changed, moves, 0)


def perspective(images: jax.Array, corners: jax.Array) -> jax.Array:
    """Moves the images' corners inward, as torchvision does by Pillow with BILINEAR.

    Args:
        images: uint8 or float `[N, H, W, C]` in 0..255.
        corners: From `draw_perspective`, `[N, 4, 2]`.

    Returns:
        float32 `[N, H, W, C]`, black where a pixel comes from outside the image.
    """
    _, H, W, _ = images.shape
    x, y = _pixel_centers(H, W)
    from_x, from_y, scale = (
        row[:, 0] * x + row[:, 1] * y + row[:, 2]
        for row in _homography(corners, H, W)[..., None, None]
    )
    return _bilinear(images.astype(jnp.float32), from_x / scale, from_y / scale)


def _homography(corners: jax.Array, height: int, width: int) -> jax.Array:
    """Rows of the homographies from the moved corners to the image's, `[3, N, 3]`.

    Heckbert's closed form maps the unit square to the moved corners. Its inverse, up to
    the factor that a homography leaves open, is its adjugate, whose rows are cross
    products of columns; scaling to the image's size follows.
    """
    x, y = width - 1, height - 1
    start = jnp.array([[0.0, 0.0], [x, 0.0], [x, y], [0.0, y]])
    inward = jnp.array([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])
    end = start[None] + inward[None] * corners
    p0, p1, p2, p3 = (end[:, i] for i in range(4))
    excess, side1, side2 = p0 - p1 + p2 - p3, p1 - p2, p3 - p2
    area = _determinant(side1, side2)
    g = _determinant(excess, side2) / area
    h = _determinant(side1, excess) / area
    column0 = jnp.concatenate([p1 - p0 + g * p1, g], 1)
    column1 = jnp.concatenate([p3 - p0 + h * p3, h], 1)
    column2 = jnp.concatenate([p0, jnp.ones_like(g)], 1)
    return jnp.stack(
        [
            x * jnp.cross(column1, column2),
            y * jnp.cross(column2, column0),
            jnp.cross(column0, column1),
        ]
    )


def _determinant(u: jax.Array, v: jax.Array) -> jax.Array:
    """Determinants `[N, 1]` of pairs of vectors `[N, 2]`."""
    return u[:, :1] * v[:, 1:] - u[:, 1:] * v[:, :1]


def _bilinear(images: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """Interpolates at coordinates `[N, H, W]` as Pillow does; black outside."""
    left, top = jnp.floor(x - 0.5), jnp.floor(y - 0.5)
    to_right, to_bottom = (x - 0.5 - left)[..., None], (y - 0.5 - top)[..., None]

    def row(y: jax.Array) -> jax.Array:
        here, right = _pixels(images, left, y), _pixels(images, left + 1, y)
        return here + to_right * (right - here)

    upper, lower = row(top), row(top + 1)
    pixels = upper + to_bottom * (lower - upper)
    return jnp.where(_on_canvas(x, y), pixels, 0)


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
    """What one training step drew: per image, and for the batch.

    Attributes:
        images: By transform; a tree whose arrays all have N as first axis.
        mix: How the batch is mixed, where the recipe mixes.
    """

    images: dict[str, Any]
    mix: Mix | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augment:
    """The training transforms of a recipe; those left at 0 do not run.

    In order: mirror, pad and crop, rotation, colour jitter, perspective, random
    erasing; then, on normalised images, mixup or CutMix, chosen once per batch.

    Attributes:
        flip_probability: Share of images that are mirrored.
        crop_padding_px: Padding on each side before the crop to the original size.
        crop_fill: What the padding holds: "zero", "reflect" or "edge".
        rotation_degrees: Images are rotated by up to this, either way.
        brightness: Factors are drawn from [1 - brightness, 1 + brightness].
        contrast: As `brightness`.
        saturation: As `brightness`.
        hue: Images' hue is shifted by up to this, either way; turns, at most 0.5.
        perspective_probability: Share of images whose corners move inward.
        perspective_distortion: Largest move as a share of half the side, in (0, 1].
        erase_probability: Share of images with a rectangle made black.
        erase_area: Smallest and largest share of the image's area.
        erase_aspect: Smallest and largest height / width of the rectangle.
        mixup_probability: Share of batches mixed by mixup.
        mixup_alpha: Its share is drawn from Beta(alpha, alpha).
        cutmix_probability: Share of batches mixed by CutMix.
        cutmix_alpha: As `mixup_alpha`.
        validation: Validation images are transformed too, by draws of their own, but
            not mixed: as some sources do, whose figures are to be compared.

    Raises:
        UserError: If a value is out of its range.
    """

    flip_probability: float = 0.0
    crop_padding_px: int = 0
    crop_fill: str = "zero"
    rotation_degrees: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    perspective_probability: float = 0.0
    perspective_distortion: float = 0.1
    erase_probability: float = 0.0
    erase_area: Sequence[float] = (0.02, 0.33)
    erase_aspect: Sequence[float] = (0.3, 3.3)
    mixup_probability: float = 0.0
    mixup_alpha: float = 1.0
    cutmix_probability: float = 0.0
    cutmix_alpha: float = 1.0
    validation: bool = False

    def __post_init__(self) -> None:
        for name in ("flip", "perspective", "erase", "mixup", "cutmix"):
            self._require_up_to(1, f"{name}_probability")
        self._require("crop_padding_px", self.crop_padding_px >= 0, "at least 0")
        choose("augment.crop_fill", self.crop_fill, _CROP_FILLS)
        self._require_up_to(180, "rotation_degrees")
        for key in ("brightness", "contrast", "saturation"):
            self._require_up_to(1, key)
        self._require_up_to(0.5, "hue")
        holds = 0 < self.perspective_distortion <= 1
        self._require("perspective_distortion", holds, "in (0, 1]")
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

    def _require_up_to(self, most: float, key: str) -> None:
        self._require(key, 0 <= getattr(self, key) <= most, f"in [0, {most}]")

    @property
    def jitters(self) -> bool:
        """Whether colours may change."""
        return self.brightness + self.contrast + self.saturation + self.hue > 0

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
        keys = {name: jax.random.fold_in(key, i) for name, i in _KEYS.items()}
        images = self._draw_images(keys, n, height, width)
        if not self.mixes:
            return Draws(images, None)
        mixed = draw_mix(
            keys["mix"],
            n,
            height,
            width,
            mixup_probability=self.mixup_probability,
            mixup_alpha=self.mixup_alpha,
            cutmix_probability=self.cutmix_probability,
            cutmix_alpha=self.cutmix_alpha,
        )
        return Draws(images, mixed)

    def _draw_images(
        self, keys: dict[str, jax.Array], n: int, height: int, width: int
    ) -> dict[str, Any]:
        """Draws what is drawn per image."""
        images = {}
        if self.flip_probability:
            images["flip"] = draw_flip(keys["flip"], n, self.flip_probability)
        if self.crop_padding_px:
            images["crop"] = draw_crop(keys["crop"], n, self.crop_padding_px)
        if self.rotation_degrees:
            images["rotation"] = draw_rotation(
                keys["rotation"], n, self.rotation_degrees
            )
        if self.jitters:
            images["jitter"] = draw_jitter(
                keys["jitter"],
                n,
                brightness=self.brightness,
                contrast=self.contrast,
                saturation=self.saturation,
                hue=self.hue,
            )
        if self.perspective_probability:
            images["perspective"] = draw_perspective(
                keys["perspective"],
                n,
                height,
                width,
                probability=self.perspective_probability,
                distortion=self.perspective_distortion,
            )
        if self.erase_probability:
            images["erase"] = draw_erase(
                keys["erase"],
                n,
                height,
                width,
                probability=self.erase_probability,
                area=self.erase_area,
                aspect=self.erase_aspect,
            )
        return images

    def apply(self, images: jax.Array, drawn: dict[str, Any]) -> jax.Array:
        """Transforms images by the parameters drawn for them.

        Args:
            images: uint8 `[N, H, W, C]`.
            drawn: `Draws.images`.

        Returns:
            `[N, H, W, C]` in 0..255: uint8, or float32 after jitter or perspective.

        Raises:
            ValueError: If a transform does not fit the images' shape.
        """
        if "flip" in drawn:
            images = flip(images, drawn["flip"])
        if "crop" in drawn:
            images = crop(images, drawn["crop"], self.crop_padding_px, self.crop_fill)
        if "rotation" in drawn:
            images = rotate(images, drawn["rotation"])
        if "jitter" in drawn:
            images = jitter(images, drawn["jitter"])
        if "perspective" in drawn:
            images = perspective(images, drawn["perspective"])
        if "erase" in drawn:
            images = erase(images, drawn["erase"])
        return images
