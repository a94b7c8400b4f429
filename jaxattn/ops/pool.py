"""Pooling with the values and gradients of PyTorch."""

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def max_along(x: jax.Array, axis: int) -> jax.Array:
    """Returns the maximum of `x` along one axis, kept with size 1.

    The whole gradient goes to the first winner, as in PyTorch. `jnp.max` is no
    substitute: its gradient looks for elements equal to the maximum, and under jit
    XLA may recompute the operand with other rounding, so that none is found and the
    gradient is silently wrong.

    Args:
        x: Array of any shape and float dtype.
        axis: The axis to reduce.
    """
    return jnp.max(x, axis, keepdims=True)


@max_along.defjvp
def _max_along_jvp(
    axis: int, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (x,), (x_dot,) = primals, tangents
    winner = jnp.argmax(x, axis, keepdims=True)
    chosen = jax.lax.broadcasted_iota(winner.dtype, x.shape, axis % x.ndim) == winner
    x_dot = jnp.where(chosen, x_dot, 0)
    return max_along(x, axis), jnp.sum(x_dot, axis, keepdims=True)


def max_pool(x: jax.Array, size: int, *, stride: int, padding: int) -> jax.Array:
    """Returns the maxima of `size` x `size` windows, as `torch.nn.MaxPool2d`.

    The gradient of a window goes to its first maximum in row-major order. Padding never
    wins; it is the same on all four sides, which "SAME" of an even size is not.

    Args:
        x: Feature map `[N, H, W, C]`, any float dtype.
        size: Side of a window.
        stride: Step between windows along H and W.
        padding: Rows and columns added on each side, at most `size // 2`.

    Returns:
        `[N, H', W', C]` with `H' = (H + 2 * padding - size) // stride + 1`.
    """
    if stride == size and padding == 0:
        return _max_of_patches(x, size)
    pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    return jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, size, size, 1), (1, stride, stride, 1), pads
    )


def _max_of_patches(x: jax.Array, size: int) -> jax.Array:
    """Maxima of windows that do not overlap.

    The gradient of `lax.reduce_window` is a scatter, which takes XLA's CPU backend 12
    times as long as the comparisons that do here.
    """
    N, H, W, C = x.shape
    h, w = H // size, W // size  # torch drops what does not fill a window
    x = x[:, : h * size, : w * size].reshape(N, h, size, w, size, C).swapaxes(2, 3)
    return max_along(x.reshape(N, h, w, size * size, C), 3)[:, :, :, 0]


def adaptive_avg_pool(x: jax.Array, output_size: int) -> jax.Array:
    """Averages a feature map into `output_size` x `output_size` windows.

    Window i of an axis of length n is [floor(i*n/size), ceil((i+1)*n/size)), as in
    `torch.nn.AdaptiveAvgPool2d`; windows overlap where `size` does not divide n.

    Args:
        x: Feature map `[N, H, W, C]`.
        output_size: Windows along H and along W.

    Returns:
        `[N, output_size, output_size, C]`.
    """
    for axis in (1, 2):
        n = x.shape[axis]
        windows = [
            jax.lax.slice_in_dim(
                x, i * n // output_size, -(-(i + 1) * n // output_size), axis=axis
            )
            for i in range(output_size)
        ]
        x = jnp.stack([jnp.mean(window, axis) for window in windows], axis)
    return x
