"""Resizing of feature maps as PyTorch computes it."""

import itertools

import jax
import jax.numpy as jnp


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
