"""Resizing of feature maps as PyTorch's `interpolate` computes it, without antialias.

What a place of the result is made of depends on the sizes alone, so that both kinds are
written without an index: a gather's gradient is a scatter, which is slow.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxattn.ops.inputs import at_least_float32

SCOPE = "resize_bilinear"
"""Name of the scope of its products, which are no layer's."""


def resize_nearest(
    x: jax.Array,
    size: tuple[int, int] | None = None,
    *,
    scale_factor: float | None = None,
) -> jax.Array:
    """Takes the nearest row and column, as torch's mode "nearest".

    Position i of n is position floor(i * m / n) of the m there are.

    Args:
        x: Feature map `[N, h, w, C]`, any dtype.
        size: Height and width of the result.
        scale_factor: Instead of `size`: the result has floor(m * scale_factor)
            positions, and position i is floor(i / scale_factor), as in torch.

    Returns:
        `[N, *size, C]`, the dtype of `x`.
    """
    for axis, n in enumerate(_sizes(x, size, scale_factor), 1):
        m = x.shape[axis]
        taken = [i * m // n for i in range(n)]
        if scale_factor is not None:  # rounded as torch's
            ratio = np.float32(1 / scale_factor)
            taken = [min(int(np.float32(i) * ratio), m - 1) for i in range(n)]
        x = _repeated(x, [taken.count(row) for row in range(m)], axis)
    return x


def _repeated(x: jax.Array, counts: list[int], axis: int) -> jax.Array:
    """Returns each row of an axis as often as `counts` says, in order."""
    if len(set(counts)) == 1:
        return jnp.repeat(x, counts[0], axis)
    pieces, start = [], 0
    for count, run in itertools.groupby(counts):
        stop = start + len([*run])
        rows = jax.lax.slice_in_dim(x, start, stop, axis=axis)
        pieces += [jnp.repeat(rows, count, axis)] if count else []
        start = stop
    return jnp.concatenate(pieces, axis)


def resize_bilinear(
    x: jax.Array,
    size: tuple[int, int] | None = None,
    *,
    scale_factor: float | None = None,
    align_corners: bool = False,
) -> jax.Array:
    """Interpolates linearly between positions, as torch's mode "bilinear".

    Args:
        x: Feature map `[N, h, w, C]`, any float dtype.
        size: Height and width of the result, any above 0.
        scale_factor: Instead of `size`: the result has floor(m * scale_factor)
            positions of m, at distances of 1 / scale_factor, as in torch.
        align_corners: Puts the corner positions of both maps on each other, instead of
            the corners of the images that they cover.

    Returns:
        `[N, *size, C]`, the dtype of `x`; computed in float32 at least.
    """
    rows, columns = (
        _weights(m, n, scale_factor, align_corners)
        for m, n in zip(x.shape[1:3], _sizes(x, size, scale_factor), strict=True)
    )
    wide = at_least_float32(x)
    with jax.named_scope(SCOPE):
        if align_corners:  # in the order that blocks were trained with
            wide = _product("Hh,nhwc->nHwc", rows, wide)
            wide = _product("Ww,nhwc->nhWc", columns, wide)
        else:
            # Columns first: the larger product is then one of tall matrices in their
            # order in memory, for each image, and takes CPUs half as long.
            wide = _product("Ww,nhwc->nhWc", columns, wide)
            wide = _tall_product(rows, wide)
    return wide.astype(x.dtype)


# Products, as then are the gradients. Exact: accelerators would round float32 to fewer
# digits.
_EXACT = jax.lax.Precision.HIGHEST


def _tall_product(weights: np.ndarray, x: jax.Array) -> jax.Array:
    """Resizes rows."""
    N, h, w, C = x.shape
    if (matrix := _as_matrix(weights, x)) is None:
        return x
    # One matrix an image, without which the result would be transposed.
    matrices = jnp.broadcast_to(matrix, (N, *matrix.shape))
    y = jax.lax.dot_general(
        matrices, x.reshape(N, h, w * C), (((2,), (1,)), ((0,), (0,))), precision=_EXACT
    )
    return y.reshape(N, len(weights), w, C)


def _product(equation: str, weights: np.ndarray, x: jax.Array) -> jax.Array:
    """Resizes along the axis that an equation names."""
    if (matrix := _as_matrix(weights, x)) is None:
        return x
    return jnp.einsum(equation, matrix, x, precision=_EXACT)


def _as_matrix(weights: np.ndarray, x: jax.Array) -> jax.Array | None:
    """Returns the weights in the dtype of `x`, None where they change nothing."""
    if np.array_equal(weights, np.eye(weights.shape[1])):
        return None
    return jnp.asarray(weights, x.dtype)


def _weights(
    m: int, n: int, scale_factor: float | None, align_corners: bool
) -> np.ndarray:
    """Returns the weights `[n, m]` of m positions in each of n."""
    if align_corners:
        places = np.linspace(0, m - 1, n)
    else:
        ratio = m / n if scale_factor is None else 1 / scale_factor
        places = np.clip((np.arange(n) + 0.5) * ratio - 0.5, 0, m - 1)
    return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(m)))


def _sizes(
    x: jax.Array, size: tuple[int, int] | None, scale_factor: float | None
) -> tuple[int, int]:
    """Returns height and width of a result."""
    if scale_factor is None:
        assert size is not None, "size or scale_factor"
        return size
    assert size is None, "size or scale_factor, not both"
    H, W = (math.floor(m * scale_factor) for m in x.shape[1:3])
    return H, W
