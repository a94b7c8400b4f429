"""oneDNN's convolutions on CPUs, where `cpu_kernels.is_enabled`.

XLA's CPU backend has no fast weight gradients, nor depthwise convolutions. `onednn.cc`
calls those of oneDNN from inside a compiled program.
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxattn.host import has_cpu_flag
from jaxattn.ops import cpu_kernels
from jaxattn.ops.primitive import Window, make_convolution, output_shape


def _output(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    shape = output_shape(x.shape, kernel.shape, window)
    return _call("jaxattn_conv_forward", shape, x, kernel, window)


def _input_gradient(
    kernel: jax.Array, g: jax.Array, window: Window, size: tuple[int, int]
) -> jax.Array:
    shape, dtype = (len(g), *size, kernel.shape[2] * window.groups), g.dtype
    if kernel.shape[3] == window.groups:
        # With one output channel a group, as has a depthwise convolution, oneDNN's in
        # bfloat16 takes 3 to 25 times as long as in float32.
        kernel, g = kernel.astype(jnp.float32), g.astype(jnp.float32)
    dx = _call("jaxattn_conv_input_gradient", shape, kernel, g, window)
    return dx.astype(dtype)


def _kernel_gradient(
    x: jax.Array, g: jax.Array, window: Window, size: tuple[int, int]
) -> jax.Array:
    shape = (*size, x.shape[-1] // window.groups, g.shape[-1])
    return _call("jaxattn_conv_kernel_gradient", shape, x, g, window)


_conv = make_convolution(
    "onednn_conv", _output, _input_gradient, _kernel_gradient, one_by_one=True
)


def is_used(dtype: DTypeLike) -> bool:
    """Whether what is traced now convolves by oneDNN.

    Args:
        dtype: Of the convolutions: float32, or bfloat16 where `has_bfloat16`.
    """
    is_fast = dtype == jnp.float32 or (dtype == jnp.bfloat16 and has_bfloat16())
    return is_fast and cpu_kernels.is_enabled()


def has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 faster than float32."""
    return has_cpu_flag("avx512_bf16")


def conv2d(
    x: jax.Array,
    kernel: jax.Array,
    stride: int,
    padding: int,
    dilation: int,
    groups: int,
) -> jax.Array:
    """Convolves as `jaxattn.ops.conv.conv2d`, where `is_used`."""
    return _conv(x, kernel, Window(stride, padding, dilation, groups))


def _call(
    name: str, shape: tuple[int, ...], a: jax.Array, b: jax.Array, window: Window
) -> jax.Array:
    result = jax.ShapeDtypeStruct(shape, a.dtype)
    return cpu_kernels.call(name, result, a, b, **window._asdict())
