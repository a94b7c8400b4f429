"""Transforms that move pixels: mirror, pad and crop, rotation, perspective."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxattn.data.augment.transform import (
    IGNORED,
    Transform,
    require_field,
    require_up_to,
)
from jaxattn.errors import choose


@dataclass(frozen=True)
class Flip(Transform):
    """Mirrors images, left to right.

    Attributes:
        flip_probability: Share of images that are mirrored.

    Raises:
        UserError: If a value is out of its range.
    """

    name: ClassVar[str] = "flip"
    key: ClassVar[int] = 0
    targets: ClassVar[frozenset[str]] = frozenset({"image", "mask"})

    flip_probability: float

    def __post_init__(self) -> None:
        require_up_to(self, 1, "flip_probability")

    @property
    def runs(self) -> bool:
        """Whether images may be mirrored."""
        return self.flip_probability > 0

    def draw(self, key: jax.Array, n: int, height: int, width: int) -> jax.Array:
        """Draws which images to mirror, bool `[n]`."""
        del height, width
        return jax.random.bernoulli(key, self.flip_probability, (n,))

    def apply(self, images: jax.Array, drawn: jax.Array) -> jax.Array:
        """Mirrors the images where `drawn`."""
        return jnp.where(drawn[:, None, None, None], images[:, :, ::-1], images)

    def apply_to_masks(self, masks: jax.Array, drawn: jax.Array) -> jax.Array:
        """Mirrors label maps `[N, H, W]` where `drawn`."""
        return self.apply(masks[..., None], drawn)[..., 0]


@dataclass(frozen=True)
class Crop(Transform):
    """Pads images on each side and crops to the original size.

    Attributes:
        crop_padding_px: Pixels on each side, at least 0; less than H and W for
            "reflect".
        crop_fill: "zero", "reflect" (the border itself is not repeated) or "edge".

    Raises:
        UserError: If a value is out of its range.
    """

    name: ClassVar[str] = "crop"
    key: ClassVar[int] = 1
    targets: ClassVar[frozenset[str]] = frozenset({"image", "mask"})

    crop_padding_px: int
    crop_fill: str

    def __post_init__(self) -> None:
        holds = self.crop_padding_px >= 0
        require_field(self, "crop_padding_px", holds, "at least 0")
        choose("augment.crop_fill", self.crop_fill, ("zero", "reflect", "edge"))

    @property
    def runs(self) -> bool:
        """Whether images are cropped."""
        return self.crop_padding_px > 0

    def draw(self, key: jax.Array, n: int, height: int, width: int) -> jax.Array:
        """Draws each crop's corner (row, column), int32 `[n, 2]` in 0..2*padding."""
        del height, width
        return jax.random.randint(key, (n, 2), 0, 2 * self.crop_padding_px + 1)

    def apply(self, images: jax.Array, drawn: jax.Array) -> jax.Array:
        """Crops the padded images at the corners `drawn`.

        Raises:
            ValueError: If "reflect" would need more pixels than there are.
        """
        return self._crop(images, drawn, outside=0)

    def apply_to_masks(self, masks: jax.Array, drawn: jax.Array) -> jax.Array:
        """Crops label maps `[N, H, W]`; the padding of "zero" is `IGNORED` in them."""
        return self._crop(masks[..., None], drawn, outside=IGNORED)[..., 0]

    def _crop(self, images: jax.Array, corner: jax.Array, outside: int) -> jax.Array:
        N, H, W, _ = images.shape
        padding, fill = self.crop_padding_px, self.crop_fill
        if fill == "reflect" and padding >= min(H, W):
            raise ValueError(
                f"crop_padding_px={padding}: reflection needs less than the image's"
                f" side, {min(H, W)}"
            )
        rows, rows_valid = _source_positions(corner[:, 0], H, padding, fill)
        columns, columns_valid = _source_positions(corner[:, 1], W, padding, fill)
        i = jnp.arange(N)[:, None, None]
        cropped = images[i, rows[:, :, None], columns[:, None]]
        valid = rows_valid[:, :, None, None] & columns_valid[:, None, :, None]
        return jnp.where(valid, cropped, outside)


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


@dataclass(frozen=True)
class Rotation(Transform):
    """Rotates about the centre, on the same canvas, as Pillow does with NEAREST.

    Attributes:
        rotation_degrees: Images are rotated by up to this, either way.

    Raises:
        UserError: If a value is out of its range.
    """

    name: ClassVar[str] = "rotation"
    key: ClassVar[int] = 4
    targets: ClassVar[frozenset[str]] = frozenset({"image", "mask"})

    rotation_degrees: float

    def __post_init__(self) -> None:
        require_up_to(self, 180, "rotation_degrees")

    @property
    def runs(self) -> bool:
        """Whether images are rotated."""
        return self.rotation_degrees > 0

    def draw(self, key: jax.Array, n: int, height: int, width: int) -> jax.Array:
        """Draws an angle per image, float32 `[n]`, counter-clockwise."""
        del height, width
        most = self.rotation_degrees
        return jax.random.uniform(key, (n,), minval=-most, maxval=most)

    def apply(self, images: jax.Array, drawn: jax.Array) -> jax.Array:
        """Rotates by the degrees `drawn`; the dtype stays.

        Returns:
            `[N, H, W, C]`, black where a pixel comes from outside the image.
        """
        return self._rotate(images, drawn, outside=0)

    def apply_to_masks(self, masks: jax.Array, drawn: jax.Array) -> jax.Array:
        """Rotates label maps `[N, H, W]`; `IGNORED` comes from outside the image."""
        return self._rotate(masks[..., None], drawn, outside=IGNORED)[..., 0]

    def _rotate(self, images: jax.Array, degrees: jax.Array, outside: int) -> jax.Array:
        _, H, W, _ = images.shape
        angle = jnp.deg2rad(degrees)[:, None, None]
        x, y = _pixel_centers(H, W)
        dx, dy = x - W / 2, y - H / 2
        from_x = jnp.cos(angle) * dx - jnp.sin(angle) * dy + W / 2
        from_y = jnp.sin(angle) * dx + jnp.cos(angle) * dy + H / 2
        pixels = _pixels(images, jnp.floor(from_x), jnp.floor(from_y))
        return jnp.where(_on_canvas(from_x, from_y), pixels, outside)


@dataclass(frozen=True)
class Perspective(Transform):
    """Moves corners inward, as torchvision's RandomPerspective does with BILINEAR.

    Attributes:
        perspective_probability: Share of images that are changed.
        perspective_distortion: Largest move as a share of half the side, in (0, 1].

    Raises:
        UserError: If a value is out of its range.
    """

    name: ClassVar[str] = "perspective"
    key: ClassVar[int] = 6
    targets: ClassVar[frozenset[str]] = frozenset({"image", "mask"})

    perspective_probability: float
    perspective_distortion: float

    def __post_init__(self) -> None:
        require_up_to(self, 1, "perspective_probability")
        holds = 0 < self.perspective_distortion <= 1
        require_field(self, "perspective_distortion", holds, "in (0, 1]")

    @property
    def runs(self) -> bool:
        """Whether images may be changed."""
        return self.perspective_probability > 0

    def draw(self, key: jax.Array, n: int, height: int, width: int) -> jax.Array:
        """Draws how far corners move inward.

        Returns:
            int32 `[n, 4, 2]`, pixels: top left, top right, bottom right, bottom left;
            x, then y; 0 in images that are not changed.
        """
        key_apply, key_corners = jax.random.split(key)
        distortion = self.perspective_distortion
        most = [int(distortion * (side // 2)) for side in (width, height)]
        end = jnp.array(most)[None, None] + 1
        moves = jax.random.randint(key_corners, (n, 4, 2), 0, end)
        probability = self.perspective_probability
        changed = jax.random.bernoulli(key_apply, probability, (n, 1, 1))
        return jnp.where(changed, moves, 0)

    def apply(self, images: jax.Array, drawn: jax.Array) -> jax.Array:
        """Moves the corners as `drawn`.

        Returns:
            float32 `[N, H, W, C]`, black where a pixel comes from outside the image.
        """
        from_x, from_y = _seen_from(drawn, *images.shape[1:3])
        return _bilinear(images.astype(jnp.float32), from_x, from_y)

    def apply_to_masks(self, masks: jax.Array, drawn: jax.Array) -> jax.Array:
        """Moves label maps `[N, H, W]` by the nearest pixel; outside is `IGNORED`."""
        from_x, from_y = _seen_from(drawn, *masks.shape[1:])
        classes = _pixels(masks[..., None], jnp.floor(from_x), jnp.floor(from_y))
        return jnp.where(_on_canvas(from_x, from_y), classes, IGNORED)[..., 0]


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


def _seen_from(
    corners: jax.Array, height: int, width: int
) -> tuple[jax.Array, jax.Array]:
    """Where each pixel of a changed image comes from: x and y `[N, H, W]`."""
    x, y = _pixel_centers(height, width)
    from_x, from_y, scale = (
        row[:, 0] * x + row[:, 1] * y + row[:, 2]
        for row in _homography(corners, height, width)[..., None, None]
    )
    return from_x / scale, from_y / scale


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
