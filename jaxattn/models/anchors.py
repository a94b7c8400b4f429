"""Anchors: the boxes at every position of a pyramid that a detector starts from.

At a position there is one of every ratio and size: ratios vary slowest. Then come
columns, rows and levels, as the channels of a head in `[N, H, W, A * K]` are in memory.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_RATIOS = (0.5, 1.0, 2.0)  # heights over widths

Cell = tuple[tuple[float, ...], ...]  # boxes around 0


class Pyramid(NamedTuple):
    """The anchors of all levels; hashable, so that it may be a static field.

    Attributes:
        grids: By level rows and columns of the map.
        strides: By level pixels of a row and of a column.
        cells: By level the anchors around 0.
    """

    grids: tuple[tuple[int, int], ...]
    strides: tuple[tuple[float, float], ...]
    cells: tuple[Cell, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """The number of anchors of every level."""
        terms = zip(self.grids, self.cells, strict=True)
        return tuple(math.prod(grid) * len(cell) for grid, cell in terms)

    def anchors(self) -> jax.Array:
        """Returns the anchors `[A, 4]` of all levels, float32."""
        found = []
        for (H, W), (step_y, step_x), cell in zip(*self, strict=True):
            # Of iota, not of NumPy: programs hold no constant of all anchors.
            y = jnp.arange(H, dtype=jnp.float32) * step_y
            x = jnp.arange(W, dtype=jnp.float32) * step_x
            y = jnp.broadcast_to(y[:, None], (H, W))
            x = jnp.broadcast_to(x[None], (H, W))
            shifts = jnp.stack([x, y, x, y], -1).reshape(-1, 1, 4)
            boxes = shifts + jnp.asarray(cell, jnp.float32)[None]
            found.append(boxes.reshape(-1, 4))
        return jnp.concatenate(found)

    def inside(self, image_sizes: jax.Array) -> jax.Array:
        """Returns whether `[N, A]` an anchor's position is on the unpadded image.

        Args:
            image_sizes: `[N, 2]`: heights and widths.
        """
        found = []
        for grid, strides, cell in zip(*self, strict=True):
            rows, columns = (
                jnp.arange(n)[None] < jnp.ceil(image_sizes[:, axis, None] / stride)
                for axis, (n, stride) in enumerate(zip(grid, strides, strict=True))
            )
            is_there = (rows[:, :, None] & columns[:, None]).reshape(len(rows), -1)
            found.append(jnp.repeat(is_there, len(cell), 1))
        return jnp.concatenate(found, 1)


def retina_pyramid(
    image_size: Sequence[int],
    maps: Sequence[jax.Array],
    anchor_base: float,
    layout: str,
) -> Pyramid:
    """Returns RetinaNet's anchors: of three sizes, a third of an octave apart.

    Args:
        image_size: Rows and columns of the network's input.
        maps: Of the levels, `[N, H, W, C]` each.
        anchor_base: The least size of a level, in units of its stride.
        layout: "mm" or "torchvision", which rounds them.
    """
    octave = [2 ** (i / 3) for i in range(3)]
    factors = [[anchor_base * factor for factor in octave]] * len(maps)
    return _pyramid(image_size, maps, factors, layout)


def rpn_pyramid(
    image_size: Sequence[int],
    maps: Sequence[jax.Array],
    anchor_base: float,
    layout: str,
) -> Pyramid:
    """Returns the anchors of a region proposal network: of one size a level.

    Args:
        image_size: As in `retina_pyramid`.
        maps: As there.
        anchor_base: As there.
        layout: As there.
    """
    return _pyramid(image_size, maps, [[anchor_base]] * len(maps), layout)


def level_strides(image_size: Sequence[int], maps: Sequence[jax.Array]) -> list[int]:
    """Returns the pixels of a position by level: powers of 2, each twice the last.

    Args:
        image_size: Rows and columns of the network's input.
        maps: Of the levels, `[N, H, W, C]` each.
    """
    first = 2 ** round(math.log2(image_size[0] / maps[0].shape[1]))
    return [first * 2**i for i in range(len(maps))]


def _pyramid(
    image_size: Sequence[int],
    maps: Sequence[jax.Array],
    factors: Sequence[Sequence[float]],
    layout: str,
) -> Pyramid:
    is_rounded = layout == "torchvision"
    strides = level_strides(image_size, maps)
    grids = tuple((m.shape[1], m.shape[2]) for m in maps)
    steps = [(stride, stride) for stride in strides]
    if is_rounded:  # the steps that the maps have, so that anchors cover the image
        steps = [(image_size[0] // h, image_size[1] // w) for h, w in grids]
    cells = [
        _cell([stride * factor for factor in own], is_rounded)
        for stride, own in zip(strides, factors, strict=True)
    ]
    return Pyramid(grids, tuple(steps), tuple(cells))


def _cell(sizes: Sequence[float], is_rounded: bool) -> Cell:
    """Returns the anchors around 0 of all ratios and sizes.

    Args:
        sizes: Sides of the squares of their areas.
        is_rounded: Sizes are cut to integers, and corners rounded.
    """
    tall = np.sqrt(np.asarray(_RATIOS, np.float32))[:, None]
    size = np.asarray([int(s) if is_rounded else s for s in sizes], np.float32)[None]
    w, h = (1 / tall * size).reshape(-1), (tall * size).reshape(-1)
    cell = np.stack([-w, -h, w, h], -1) / 2
    cell = np.round(cell) if is_rounded else cell
    return tuple(tuple(map(float, box)) for box in cell)
