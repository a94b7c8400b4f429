"""Resizing of feature maps as PyTorch computes it."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np


def upsample_nearest(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Repeats rows and columns, as `torch.nn.functional.interpolate` by default.

    Position i of n is position floor(i * m / n) of the m there are.

    Args:
        x: Feature map `[N, h, w, C]`.
        size: H and W, no smaller than h and w.

    Returns:
        `[N, H, W, C]`.
    """
    for axis, n in enumerate(size, 1):
        m = x.shape[axis]
        # A gather would do, whose gradient is a scatter: slow on CPUs.
        starts = [-(-i * n // m) for i in range(m + 1)]
        counts = [b - a for a, b in itertools.pairwise(starts)]
        if len(set(counts)) == 1:
            x = jnp.repeat(x, counts[0], axis)
            continue
        rows = (jax.lax.slice_in_dim(x, i, i + 1, axis=axis) for i in range(m))
        copies = [jnp.repeat(row, k, axis) for row, k in zip(rows, counts, strict=True)]
        x = jnp.concatenate(copies, axis)
    return x


def upsample_bilinear(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Interpolates linearly between positions, the corners kept (align_corners=True).

    Args:
        x: Feature map `[N, h, w, C]`.
        size: Height and width of the result.

    Returns:
        `[N, *size, C]`, the dtype of `x`.
    """
    rows, columns = (
        jnp.asarray(_linear(n, length), x.dtype)
        for n, length in zip(x.shape[1:3], size, strict=True)
    )
    # Products, as then are the gradients, where those of an index would be scatters.
    # Exact: accelerators would round float32 to fewer digits.
    exact = jax.lax.Precision.HIGHEST
    x = jnp.einsum("Hh,nhwc->nHwc", rows, x, precision=exact)
    return jnp.einsum("Ww,nHwc->nHWc", columns, x, precision=exact)


def _linear(n: int, length: int) -> np.ndarray:
    """Returns the weights `[length, n]` of n positions in each of `length`."""
    places = np.linspace(0, n - 1, length)
    return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(n)))
