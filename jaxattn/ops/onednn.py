"""oneDNN's convolutions on CPUs, where `cpu_kernels.is_enabled`.

XLA's CPU backend has no fast weight gradients, nor depthwise convolutions. `onednn.cc`
calls those of oneDNN from inside a compiled program.
"""

import jax
import jax.numpy as jnp

from jaxattn.ops import cpu_kernels
from jaxattn.ops.primitive import Window, make_convolution, output_shape


def _output(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    shape = output_shape(x.shape, kernel.shape, window)
    return _call("jaxattn_conv_forward", shape, x, kernel, window)


def _input_gradient(
    kernel: jax.Array, g: jax.Array, window: Window, size: tuple[int, int]
) -> jax.Array:
    shape = (len(g), *size, kernel.shape[2] * window.groups)
    return _call("jaxattn_conv_input_gradient", shape, kernel, g, window)


def _kernel_gradient(
    x: jax.Array, g: jax.Array, window: Window, size: tuple[int, int]
) -> jax.Array:
    shape = (*size, x.shape[-1] // window.groups, g.shape[-1])
    return _call("jaxattn_conv_kernel_gradient", shape, x, g, window)


_conv = make_convolution(
    "onednn_conv", _output, _input_gradient, _kernel_gradient, one_by_one=True
)


def conv2d(
    x: jax.Array,
    kernel: jax.Array,
    stride: int,
    padding: int,
    dilation: int,
    groups: int,
) -> jax.Array:
    """Convolves float32 as `jaxattn.ops.conv.conv2d`."""
    return _conv(x, kernel, Window(stride, padding, dilation, groups))


def _call(
    name: str, shape: tuple[int, ...], a: jax.Array, b: jax.Array, window: Window
) -> jax.Array:
    result = jax.ShapeDtypeStruct(shape, jnp.float32)
    return cpu_kernels.call(name, result, a, b, **window._asdict())
