"""Depthwise convolutions, each channel by itself, with large kernels."""

import itertools

import jax
import jax.numpy as jnp

from jaxattn.ops import onednn
from jaxattn.ops.primitive import Window, make_convolution


def depthwise_conv2d(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves every channel of `x` with its own kernel; H and W stay.

    Args:
        x: `[N, H, W, C]`.
        kernel: `[KH, KW, 1, C]`, KH and KW odd, the dtype of `x`.

    Returns:
        `[N, H, W, C]`.
    """
    h, w, _, C = kernel.shape
    x = jnp.pad(x, ((0, 0), (h // 2, h // 2), (w // 2, w // 2), (0, 0)))
    if 0 not in x.shape and onednn.is_used(x.dtype):
        return onednn.conv2d(x, kernel, stride=1, padding=0, dilation=1, groups=C)
    return _conv(x, kernel, Window(stride=1, padding=0, groups=C))


def _output(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    return _grouped(x, kernel, (0, 0), window.groups)


def _input_gradient(
    kernel: jax.Array, g: jax.Array, window: Window, size: tuple[int, int]
) -> jax.Array:
    del size  # that of the input follows from `g`
    h, w = kernel.shape[:2]
    flipped = jax.lax.rev(kernel, (0, 1))
    return _grouped(g, flipped, (h - 1, w - 1), window.groups)


def _grouped(
    x: jax.Array, kernel: jax.Array, padding: tuple[int, int], groups: int
) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding=[(p, p) for p in padding],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _kernel_gradient(
    x: jax.Array, g: jax.Array, window: Window, size: tuple[int, int]
) -> jax.Array:
    def plain(x: jax.Array, g: jax.Array) -> jax.Array:
        kernel = jnp.zeros((*size, 1, g.shape[-1]), x.dtype)
        return jax.vjp(lambda kernel: _output(x, kernel, window), kernel)[1](g)[0]

    def by_tap(x: jax.Array, g: jax.Array) -> jax.Array:
        def tap(place: jax.Array) -> jax.Array:
            seen = jax.lax.dynamic_slice(x, (0, place[0], place[1], 0), g.shape)
            return jnp.sum(seen * g, (0, 1, 2))

        places = jnp.array([*itertools.product(*map(range, size))])
        return jax.lax.map(tap, places).reshape(*size, 1, g.shape[-1])

    # XLA's own is on CPUs that of a dense convolution: C times the operations.
    return jax.lax.platform_dependent(x, g, cpu=by_tap, default=plain)


_conv = make_convolution("depthwise_conv", _output, _input_gradient, _kernel_gradient)
