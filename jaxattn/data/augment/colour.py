"""Transforms that change colours and move no pixel."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jaxattn.data.augment.transform import ALL_TARGETS, Transform, require_up_to

# The operations, as their order numbers them.
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(4)


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


@dataclass(frozen=True)
class ColorJitter(Transform):
    """Changes brightness, contrast, saturation and hue, in each image's own order.

    The operations are torchvision's on PIL images, but without rounding in between.

    Attributes:
        brightness: Factors are drawn from [1 - brightness, 1 + brightness].
        contrast: As `brightness`.
        saturation: As `brightness`.
        hue: Shifts are drawn from [-hue, hue] turns, then cut toward zero to whole
            1/255, the steps of an 8-bit hue; at most 0.5.

    Raises:
        UserError: If a value is out of its range.
    """

    name: ClassVar[str] = "jitter"
    key: ClassVar[int] = 5
    targets: ClassVar[frozenset[str]] = ALL_TARGETS

    brightness: float
    contrast: float
    saturation: float
    hue: float

    def __post_init__(self) -> None:
        require_up_to(self, 1, "brightness", "contrast", "saturation")
        require_up_to(self, 0.5, "hue")

    @property
    def runs(self) -> bool:
        """Whether colours may change."""
        return self.brightness + self.contrast + self.saturation + self.hue > 0

    def draw(self, key: jax.Array, n: int, height: int, width: int) -> Jitter:
        """Draws factors, a shift of hue and an order of operations per image."""
        del height, width
        keys = jax.random.split(key, 5)

        def factors(i: int, strength: float) -> jax.Array:
            return jax.random.uniform(
                keys[i], (n,), minval=1 - strength, maxval=1 + strength
            )

        shift = jax.random.uniform(keys[_HUE], (n,), minval=-self.hue, maxval=self.hue)
        operations = jnp.tile(jnp.arange(4, dtype=jnp.int32), (n, 1))
        return Jitter(
            brightness=factors(_BRIGHTNESS, self.brightness),
            contrast=factors(_CONTRAST, self.contrast),
            saturation=factors(_SATURATION, self.saturation),
            hue=jnp.trunc(255 * shift) / 255,
            order=jax.random.permutation(keys[4], operations, axis=1, independent=True),
        )

    def apply(self, images: jax.Array, drawn: Jitter) -> jax.Array:
        """Changes the colours as `drawn`.

        The first three operations are all `clip(a x + b grey(x) + c mean(grey))`, so
        that each can stand at any place by its coefficients alone. The hue is shifted
        once, between three places before it and three after; of those, the places on
        the wrong side of an image's own hue shift leave it as it is.

        Returns:
            float32 `[N, H, W, 3]` in [0, 255].

        Raises:
            ValueError: If the images are not of 3 channels.
        """
        _require_rgb(images, "brightness, contrast, saturation and hue need")
        before, after = _blends(drawn)
        # Channels first: whole planes are what vector units work on.
        x = jnp.moveaxis(images.astype(jnp.float32), -1, 0)
        for place in (0, 1, 2):
            x = _blend(x, before[place])
        x = _shift_hue(x, drawn.hue)
        for place in (1, 2, 3):
            x = _blend(x, after[place])
        return jnp.moveaxis(x, 0, -1)


class Distortion(NamedTuple):
    """How the colours of every image are distorted; those of no change as they are.

    Attributes:
        brightness: float32 `[N]`, added to values in 0..255.
        contrast: float32 `[N]`, a factor.
        saturation: float32 `[N]`, a factor of HSV's saturation.
        hue: float32 `[N]`, a shift in turns.
        contrast_first: bool `[N]`, before saturation and hue; else after them.
    """

    brightness: jax.Array
    contrast: jax.Array
    saturation: jax.Array
    hue: jax.Array
    contrast_first: jax.Array


@dataclass(frozen=True)
class PhotometricDistortion(Transform):
    """Distorts colours as detection and segmentation do, since SSD.

    mmsegmentation's PhotoMetricDistortion, but without rounding to 8 bits in between:
    brightness, contrast, saturation, hue, each or not; contrast of half the images is
    the last of them. Unlike `ColorJitter`'s, brightness is a shift, and contrast a
    factor of the values themselves.

    Attributes:
        photometric_probability: Share of images of which each of the four changes.
        photometric_brightness: Largest shift either way, of values in 0..255.
        photometric_contrast: Factors are drawn from [1 - this, 1 + this].
        photometric_saturation: As `photometric_contrast`.
        photometric_hue: Largest shift either way in turns, at most 0.5.

    Raises:
        UserError: If a value is out of its range.
    """

    name: ClassVar[str] = "photometric"
    key: ClassVar[int] = 7
    targets: ClassVar[frozenset[str]] = ALL_TARGETS

    photometric_probability: float
    photometric_brightness: float
    photometric_contrast: float
    photometric_saturation: float
    photometric_hue: float

    def __post_init__(self) -> None:
        factors = ("photometric_contrast", "photometric_saturation")
        require_up_to(self, 1, "photometric_probability", *factors)
        require_up_to(self, 255, "photometric_brightness")
        require_up_to(self, 0.5, "photometric_hue")

    @property
    def runs(self) -> bool:
        """Whether colours may change."""
        return self.photometric_probability > 0

    def draw(self, key: jax.Array, n: int, height: int, width: int) -> Distortion:
        """Draws what changes, by how much, and where contrast comes."""
        del height, width
        key_change, key_order, *keys = jax.random.split(key, 6)
        share = self.photometric_probability
        changes = jax.random.bernoulli(key_change, share, (4, n))

        def drawn(i: int, neutral: float, most: float) -> jax.Array:
            low, high = neutral - most, neutral + most
            values = jax.random.uniform(keys[i], (n,), minval=low, maxval=high)
            return jnp.where(changes[i], values, neutral)

        return Distortion(
            brightness=drawn(_BRIGHTNESS, 0, self.photometric_brightness),
            contrast=drawn(_CONTRAST, 1, self.photometric_contrast),
            saturation=drawn(_SATURATION, 1, self.photometric_saturation),
            hue=drawn(_HUE, 0, self.photometric_hue),
            contrast_first=jax.random.bernoulli(key_order, shape=(n,)),
        )

    def apply(self, images: jax.Array, drawn: Distortion) -> jax.Array:
        """Distorts the colours as `drawn`.

        Returns:
            float32 `[N, H, W, 3]` in [0, 255].

        Raises:
            ValueError: If the images are not of 3 channels.
        """
        _require_rgb(images, "photometric distortion needs")

        def of_images(values: jax.Array) -> jax.Array:
            return values[None, :, None, None]

        before = jnp.where(drawn.contrast_first, drawn.contrast, 1)
        after = jnp.where(drawn.contrast_first, 1, drawn.contrast)
        x = jnp.moveaxis(images.astype(jnp.float32), -1, 0)
        x = jnp.clip(x + of_images(drawn.brightness), 0, 255)
        x = jnp.clip(x * of_images(before), 0, 255)
        x = _shift_hue(_saturate(x, of_images(drawn.saturation)), drawn.hue)
        x = jnp.clip(x * of_images(after), 0, 255)
        return jnp.moveaxis(x, 0, -1)


def _require_rgb(images: jax.Array, what: str) -> None:
    if images.shape[-1] != 3:
        raise ValueError(f"{what} images of 3 channels, not {images.shape[-1]}")


def _saturate(x: jax.Array, factor: jax.Array) -> jax.Array:
    """Scales the HSV saturation, at most to 1, of planes `[3, N, H, W]`."""
    value = jnp.maximum(jnp.maximum(x[0], x[1]), x[2])
    chroma = value - jnp.minimum(jnp.minimum(x[0], x[1]), x[2])
    most = value / jnp.where(chroma == 0, 1, chroma)
    return value[None] - (value[None] - x) * jnp.minimum(factor, most[None])


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
