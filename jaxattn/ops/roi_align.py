"""RoIAlign: what a feature map, or one of several, has inside boxes.

He, Gkioxari, Dollar, Girshick, "Mask R-CNN", ICCV 2017. Numbers are torchvision's. A
box is cut into bins; a bin's value is the mean of points in it, each interpolated
between four positions of the map. All shapes are static, and every function is of one
image: `jax.vmap` is for batches. Maps have gradients, boxes none.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxattn.ops.resize import SCOPE

# Positions of the maps, times bins of a column, up to which a CPU multiplies matrices.
# The gradient of what is picked out is a scatter, which a CPU does one by one.
_MOST_FOR_PRODUCTS = 200_000
_MOST_UNROLLED = 2  # points of a bin along a side; more take long to compile


def roi_levels(
    boxes: jax.Array,
    *,
    num_levels: int = 4,
    finest_scale: float = 56.0,
    adds_inside: bool = False,
) -> jax.Array:
    """Returns the level of the pyramid that every box is pooled from.

    Level k is of boxes whose mean side is from 2**k to 2**(k + 1) times the finest
    scale; smaller and larger ones have the first and last.

    Args:
        boxes: `[..., 4]`.
        num_levels: Of the pyramid.
        finest_scale: Side in pixels; torchvision's canonical scale over 4.
        adds_inside: MMDetection's rounding: 1e-6 is added to the side, not to its
            logarithm. Within 1e-6 of a bound they differ.

    Returns:
        int32 `[...]`, from 0 to `num_levels` - 1.
    """
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    side = jnp.sqrt(width * height) / finest_scale
    level = jnp.log2(side + 1e-6) if adds_inside else jnp.log2(side) + 1e-6
    return jnp.clip(jnp.floor(level), 0, num_levels - 1).astype(jnp.int32)


@jax.named_scope(SCOPE)
def roi_align(
    maps: Sequence[jax.Array],
    boxes: jax.Array,
    levels: jax.Array,
    *,
    strides: Sequence[float],
    output_size: tuple[int, int],
    sampling_ratio: int = 2,
    aligned: bool = False,
    max_samples: int = 4,
) -> jax.Array:
    """Returns the bins of every box, from the map of its level.

    Args:
        maps: By level, `[H, W, C]` each.
        boxes: `[R, 4]` in pixels of the image.
        levels: int `[R]`.
        strides: By level, pixels of the image for one position.
        output_size: Rows P and columns Q of bins.
        sampling_ratio: Points of a bin along a side; 0: as many as it has positions,
            rounded up, and at most `max_samples`.
        aligned: The centre of a position is at half its stride; otherwise, as in older
            code and in torchvision's detectors, at 0, and boxes are at least one
            position wide and high.
        max_samples: As said: a bound, which makes shapes static.

    Returns:
        `[R, P, Q, C]`, the dtype of the maps.
    """
    boxes = jax.lax.stop_gradient(boxes)
    sizes = np.array([m.shape[:2] for m in maps])
    points = [
        _points(
            boxes[:, axis::2] / jnp.asarray(strides, boxes.dtype)[levels][:, None],
            jnp.asarray(sizes[:, 1 - axis])[levels],
            bins=output_size[1 - axis],
            sampling_ratio=sampling_ratio,
            aligned=aligned,
            max_samples=max_samples,
        )
        for axis in (1, 0)
    ]
    if _multiplies(sizes, output_size):
        return _by_products(maps, levels, *points)
    return _by_gathers(maps, levels, *points)


@jax.named_scope(SCOPE)
def crop_masks(
    masks: jax.Array,
    boxes: jax.Array,
    chosen: jax.Array,
    *,
    size: int = 28,
    aligned: bool = False,
) -> jax.Array:
    """Returns what a mask has inside a box, as RoIAlign with a point a pixel.

    Args:
        masks: `[G, H, W]`, of any dtype.
        boxes: `[R, 4]`.
        chosen: int `[R]`: the mask of each box.
        size: Bins of a side.
        aligned: As in `roi_align`.

    Returns:
        float32 `[R, size, size]`, in [0, 1] for masks of 0 and 1.
    """
    H, W = masks.shape[1:]

    def crop(args: tuple[jax.Array, jax.Array]) -> jax.Array:
        box, index = args
        weights = [
            _dense(
                _points(
                    box[None, axis::2],
                    jnp.full(1, length),
                    bins=size,
                    sampling_ratio=0,
                    aligned=aligned,
                    # No box that is clipped to the image has more.
                    max_samples=-(-length // size),
                ),
                length,
            )[0]
            for axis, length in ((1, H), (0, W))
        ]
        rows = _product("ph,hw->pw", weights[0], masks[index].astype(jnp.float32))
        return _product("qw,pw->pq", weights[1], rows)

    return jax.lax.map(crop, (boxes, chosen), batch_size=16)


# Points along an axis ---------------------------------------------------------------


class _Points(NamedTuple):
    """Two neighbours on the map for every point, along one axis.

    Attributes:
        places: int `[R, bins, S, 2]`.
        weights: `[R, bins, S, 2]`, which the mean over a bin is in already.
    """

    places: jax.Array
    weights: jax.Array


def _points(
    ends: jax.Array,
    length: jax.Array,
    *,
    bins: int,
    sampling_ratio: int,
    aligned: bool,
    max_samples: int,
) -> _Points:
    """Returns the points of boxes along an axis.

    Args:
        ends: `[R, 2]`: where the boxes begin and end, in positions of the map.
        length: int `[R]`: positions of the map.
        bins: Of each box.
        sampling_ratio: As in `roi_align`.
        aligned: As in `roi_align`.
        max_samples: As in `roi_align`.
    """
    ends = ends - 0.5 if aligned else ends
    start, extent = ends[:, 0], ends[:, 1] - ends[:, 0]
    extent = extent if aligned else jnp.maximum(extent, 1)
    width = (extent / bins)[:, None, None]
    S = sampling_ratio or max_samples
    samples = jnp.arange(S, dtype=width.dtype).reshape(1, 1, S)
    count = jnp.float32(S)
    if not sampling_ratio:
        count = jnp.clip(jnp.ceil(width), 0, S)
    step = jnp.arange(bins, dtype=width.dtype).reshape(1, bins, 1)
    place = start[:, None, None] + step * width
    place = place + (samples + 0.5) * width / jnp.maximum(count, 1)
    length = length[:, None, None]
    inside = (place >= -1) & (place <= length) & (samples < count)
    place = jnp.clip(place, 0, length - 1)  # at the last position all is its own
    low = jnp.floor(place)
    share = jnp.stack([1 - (place - low), place - low], -1)
    weights = jnp.where(inside[..., None], share, 0)
    weights = weights / jnp.maximum(count, 1).reshape(-1, 1, 1, 1)
    low = low.astype(jnp.int32)
    return _Points(jnp.stack([low, jnp.minimum(low + 1, length - 1)], -1), weights)


# Two formulations -------------------------------------------------------------------


def _multiplies(sizes: np.ndarray, output_size: tuple[int, int]) -> bool:
    positions = int(np.prod(sizes, 1).sum())
    is_small = positions * output_size[0] <= _MOST_FOR_PRODUCTS
    return is_small and jax.default_backend() == "cpu"


def _by_gathers(
    maps: Sequence[jax.Array], levels: jax.Array, rows: _Points, columns: _Points
) -> jax.Array:
    """Picks the neighbours of every point from all maps, as one row of positions.

    One point of a bin after the other, so that they are added as they are read:
    together they are 16 times as large as the result.
    """
    C, dtype = maps[0].shape[-1], maps[0].dtype
    table = jnp.concatenate([m.reshape(-1, C) for m in maps])
    areas = [math.prod(m.shape[:2]) for m in maps]
    starts = jnp.asarray(np.cumsum([0, *areas[:-1]]), jnp.int32)[levels]
    widths = jnp.asarray([m.shape[1] for m in maps], jnp.int32)[levels]
    lines = starts[:, None, None, None] + rows.places * widths[:, None, None, None]

    def add(total: jax.Array, point: jax.Array) -> tuple[jax.Array, None]:
        i, j = point
        for a, b in itertools.product((0, 1), (0, 1)):
            place = lines[:, :, i, a][:, :, None] + columns.places[:, :, j, b][:, None]
            weight = rows.weights[:, :, i, a][:, :, None]
            weight = weight * columns.weights[:, :, j, b][:, None]
            values = table.at[place].get(mode="promise_in_bounds")
            total = total + weight[..., None] * values.astype(jnp.float32)
        return total, None

    R, P, S, _ = rows.places.shape
    total = jnp.zeros((R, P, columns.places.shape[1], C), jnp.float32)
    points = jnp.indices((S, S)).reshape(2, -1).T
    unroll = len(points) if S <= _MOST_UNROLLED else 1
    return jax.lax.scan(add, total, points, unroll=unroll)[0].astype(dtype)


def _by_products(
    maps: Sequence[jax.Array], levels: jax.Array, rows: _Points, columns: _Points
) -> jax.Array:
    """Multiplies every map with matrices of weights, those of other levels being 0."""
    total = 0.0
    for level, x in enumerate(maps):
        H, W, _ = x.shape
        own = (levels == level)[:, None, None]
        weights = jnp.where(own, _dense(rows, H), 0).astype(x.dtype)
        lines = _product("rph,hwc->rpwc", weights, x)
        total = total + _product("rqw,rpwc->rpqc", _dense(columns, W), lines)
    return jnp.asarray(total).astype(maps[0].dtype)


def _dense(points: _Points, length: int) -> jax.Array:
    """Returns the weights `[R, bins, length]` of all positions of an axis."""
    is_there = points.places[..., None] == jnp.arange(length).reshape(1, 1, 1, 1, -1)
    return jnp.sum(jnp.where(is_there, points.weights[..., None], 0), (2, 3))


def _product(axes: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """Multiplies and sums in float32, of which accelerators would drop digits."""
    exact = jax.lax.Precision.HIGHEST
    return jnp.einsum(axes, a, b, precision=exact, preferred_element_type=jnp.float32)
