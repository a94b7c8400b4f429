"""Convolutions with PyTorch's padding, and the formulation that is fast where they run.

Feature maps are `[N, H, W, C]`, kernels `[KH, KW, C / groups, O]`. Padding is the same
on both sides of an axis; XLA's "SAME" is not (it pads a stride-2 convolution of an
even size by 0 and 1).
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from jaxattn.ops.init import torch_bias, torch_kernel


def conv2d(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
) -> jax.Array:
    """Convolves `x` with `kernel` (cross-correlation, as in PyTorch).

    Args:
        x: `[N, H, W, C]`.
        kernel: `[KH, KW, C / groups, O]`, the dtype of `x`.
        stride: Step along H and W.
        padding: Zeros added on each of the four sides.
        dilation: Distance between the taps of the kernel.
        groups: Groups of channels that do not see each other.

    Returns:
        `[N, H', W', O]`.
    """
    size = kernel.shape[:2]
    if (groups, dilation, padding) == (1, 1, 0) and size == (stride, stride) != (1, 1):
        return _patch_product(x, kernel)
    if (groups, dilation, padding) == (1, 1, 1) and (*size, stride) == (3, 3, 2):
        return _conv3x3_stride2(x, kernel)
    if size == (1, 1) and padding == 0 and stride > 1:
        # What a stride skips is dropped before the product, not spread with zeros in
        # its gradient.
        x, stride = x[:, ::stride, ::stride], 1
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _patch_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution of patches that do not overlap is one matrix product."""
    N, H, W, C = x.shape
    k, O = kernel.shape[0], kernel.shape[-1]  # noqa: E741
    h, w = H // k, W // k  # torch drops what does not fill a patch
    x = x[:, : h * k, : w * k].reshape(N, h, k, w, k, C).swapaxes(2, 3)
    return x.reshape(N, h, w, k * k * C) @ kernel.reshape(k * k * C, O)


@jax.custom_vjp
def _conv3x3_stride2(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """3x3, stride 2, padding 1, with a fast input gradient on CPUs."""
    return _plain_conv3x3_stride2(x, kernel)


def _plain_conv3x3_stride2(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _conv3x3_stride2_fwd(
    x: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _plain_conv3x3_stride2(x, kernel), (x, kernel)


def _conv3x3_stride2_bwd(
    residuals: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    (dkernel,) = jax.vjp(functools.partial(_plain_conv3x3_stride2, x), kernel)[1](g)
    dx = jax.lax.platform_dependent(
        x, kernel, g, cpu=_phase_input_gradient, default=_plain_input_gradient
    )
    return dx, dkernel


_conv3x3_stride2.defvjp(_conv3x3_stride2_fwd, _conv3x3_stride2_bwd)


def _plain_input_gradient(x: jax.Array, kernel: jax.Array, g: jax.Array) -> jax.Array:
    return jax.vjp(lambda x: _plain_conv3x3_stride2(x, kernel), x)[1](g)[0]


def _phase_input_gradient(x: jax.Array, kernel: jax.Array, g: jax.Array) -> jax.Array:
    """The input gradient as four convolutions of `g`, one per parity of row and column.

    XLA's own is a convolution of `g` spread out with zeros, which the CPU backend runs
    on a slow path. Along an axis an even position 2m receives g[m] through tap 1, an
    odd one 2m+1 receives g[m] through tap 2 and g[m+1] through tap 0.
    """
    N, H, W, C = x.shape
    h, w = g.shape[1:3]
    flipped = kernel.swapaxes(2, 3)  # O in, C out
    taps = ((1,), (2, 0))

    def phase(row: int, column: int) -> jax.Array:
        k = flipped[jnp.array(taps[row])][:, jnp.array(taps[column])]
        return jax.lax.conv_general_dilated(
            g, k, (1, 1), ((0, row), (0, column)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip

    rows = [jnp.stack([phase(row, 0), phase(row, 1)], 3) for row in (0, 1)]
    dx = jnp.stack(rows, 2).reshape(N, 2 * h, 2 * w, C)
    return dx[:, :H, :W]


class ConvKernel(nn.Module):
    """The kernel of a convolution without the convolution.

    For blocks that convolve in a way of their own and yet keep the published name.

    Attributes:
        shape: `(KH, KW, C / groups, O)`; `(K, C / groups, O)` for one dimension.
        kernel_init: Initialiser of the kernel.
    """

    shape: tuple[int, ...]
    kernel_init: Initializer = torch_kernel

    @nn.compact
    def __call__(self) -> jax.Array:
        """Returns the float32 kernel `shape`."""
        return self.param("kernel", self.kernel_init, self.shape, jnp.float32)


class Conv(nn.Module):
    """A 2-D convolution with PyTorch's padding and default initialisation.

    Attributes:
        features: Output channels.
        kernel_size: Side of the square kernel.
        stride: Step along H and W.
        padding: Zeros added on each side.
        dilation: Distance between the taps of the kernel.
        groups: Groups of channels that do not see each other.
        use_bias: Adds a bias per output channel.
        kernel_init: Initialiser of the kernel.
        dtype: Computation dtype; None keeps the input's. Parameters are float32.
    """

    features: int
    kernel_size: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    use_bias: bool = False
    kernel_init: Initializer = torch_kernel
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolves `x` `[N, H, W, C]` and returns `[N, H', W', features]`."""
        dtype = x.dtype if self.dtype is None else self.dtype
        k, C = self.kernel_size, x.shape[-1] // self.groups
        kernel = self.param(
            "kernel", self.kernel_init, (k, k, C, self.features), jnp.float32
        )
        y = conv2d(
            x.astype(dtype),
            kernel.astype(dtype),
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
        )
        if self.use_bias:
            init = torch_bias(k * k * C)
            bias = self.param("bias", init, (self.features,), jnp.float32)
            y = y + bias.astype(dtype).reshape(1, 1, 1, -1)
        return y
