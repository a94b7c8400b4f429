"""Pooling with the values and gradients of PyTorch."""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxattn.ops import cpu_kernels
from jaxattn.ops.primitive import make_operation


class Window(NamedTuple):
    """How the windows of a pool lie on a feature map; see `max_pool`."""

    size: int
    stride: int
    padding: int


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
    winner = _first_maximum(x, axis)
    chosen = jax.lax.broadcasted_iota(winner.dtype, x.shape, axis % x.ndim) == winner
    x_dot = jnp.where(chosen, x_dot, 0)
    return max_along(x, axis), jnp.sum(x_dot, axis, keepdims=True)


def _first_maximum(x: jax.Array, axis: int) -> jax.Array:
    """Returns where the maximum of `x` along an axis is, int32; the axis has size 1."""
    is_last = axis % x.ndim == x.ndim - 1 and x.size > 0
    if is_last and x.dtype in (jnp.float32, jnp.bfloat16) and cpu_kernels.is_enabled():
        result = jax.ShapeDtypeStruct(x.shape[:-1], jnp.int32)
        x = jax.lax.stop_gradient(x)  # the call has no derivative
        return cpu_kernels.call("jaxattn_first_maximum", result, x)[..., None]
    return jnp.argmax(x, axis, keepdims=True)


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
    return _max_of_windows(x, Window(size, stride, padding))[0]


def _reduce_window(x: jax.Array, window: Window) -> jax.Array:
    size, stride, padding = window
    pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    return jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, size, size, 1), (1, stride, stride, 1), pads
    )


def _chosen(v: jax.Array, x: jax.Array, window: Window) -> jax.Array:
    """The values of `v` where the windows of `x` have their first maximum."""

    def plain(v: jax.Array, x: jax.Array) -> jax.Array:
        return jax.jvp(lambda x: _reduce_window(x, window), (x,), (v,))[1]

    def fast(v: jax.Array, x: jax.Array) -> jax.Array:
        winner, places = _winners(x, window), range(window.size**2)
        taps = (jnp.where(winner == p, _tap(v, p, window), 0) for p in places)
        return functools.reduce(jnp.add, taps)

    return jax.lax.platform_dependent(v, x, cpu=fast, default=plain)


def _gradient(g: jax.Array, x: jax.Array, window: Window) -> jax.Array:
    """Each window's `g` at its first maximum in `x`."""

    def plain(g: jax.Array, x: jax.Array) -> jax.Array:
        return jax.vjp(lambda x: _reduce_window(x, window), x)[1](g)[0]

    fast = functools.partial(_phase_gradient, window=window)
    return jax.lax.platform_dependent(g, x, cpu=fast, default=plain)


# Maxima of windows that may overlap, with fast derivatives on CPUs. What the formula
# picks by changes only where two values are equal.
_max_of_windows = make_operation(
    lambda x, window: (_chosen(x, jax.lax.stop_gradient(x), window),),
    lambda x, window: (_reduce_window(x, window),),
    lambda operands, _, cotangents, window: (
        _gradient(cotangents[0], operands[0], window),
    ),
)


def _phase_gradient(g: jax.Array, x: jax.Array, window: Window) -> jax.Array:
    """The input gradient of a max-pool, for each of `stride` x `stride` phases.

    XLA's own is a scatter by maps of positions, which takes the CPU backend 6 times as
    long. Along an axis, position `m * stride + phase` receives the gradient of window
    `m + d` if its tap `phase + padding - d * stride` has won, for every d that gives
    a tap.
    """
    size, stride, padding = window
    N, H, W, C = x.shape
    h, w = (-(-n // stride) for n in (H, W))  # positions of a phase
    winner = _winners(x, window)
    zero = jnp.zeros((), g.dtype)

    def taps(phase: int) -> list[tuple[int, int]]:
        """Returns the taps of a phase, each with its d."""
        last = phase + padding
        return [(t, (last - t) // stride) for t in range(last % stride, size, stride)]

    def phase(row: int, column: int) -> jax.Array:
        total = jnp.zeros((N, h, w, C), g.dtype)
        for (i, down), (j, right) in itertools.product(taps(row), taps(column)):
            won = jnp.where(winner == i * size + j, g, zero)
            edges = [
                (-d, n + d - m, 0)
                for d, n, m in zip((down, right), (h, w), g.shape[1:3], strict=True)
            ]
            total += jax.lax.pad(won, zero, ((0, 0, 0), *edges, (0, 0, 0)))
        return total

    rows = [
        jnp.stack([phase(row, c) for c in range(stride)], 3) for row in range(stride)
    ]
    dx = jnp.stack(rows, 2).reshape(N, stride * h, stride * w, C)
    return dx[:, :H, :W]


def _winners(x: jax.Array, window: Window) -> jax.Array:
    """Returns each window's first maximum as its place in row-major order, uint8."""
    best = _tap(x, 0, window, -jnp.inf)
    winner = jnp.zeros(best.shape, jnp.uint8)
    for place in range(1, window.size**2):
        challenger = _tap(x, place, window, -jnp.inf)
        is_better = challenger > best
        best = jnp.where(is_better, challenger, best)
        winner = jnp.where(is_better, jnp.uint8(place), winner)
    return winner


def _tap(x: jax.Array, place: int, window: Window, fill: float = 0) -> jax.Array:
    """Returns the value at one place of every window, `fill` in the padding."""
    size, stride, padding = window
    pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    padded = jnp.pad(x, pads, constant_values=fill)
    i, j = divmod(place, size)
    N, H, W, C = padded.shape
    h, w = ((n - size) // stride for n in (H, W))  # windows but the last
    end = (N, i + h * stride + 1, j + w * stride + 1, C)
    return jax.lax.slice(padded, (0, i, j, 0), end, (1, stride, stride, 1))


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
