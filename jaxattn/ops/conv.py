"""Convolutions with PyTorch's padding, and the formulation that is fast where they run.

Feature maps are `[N, H, W, C]`, kernels `[KH, KW, C / groups, O]`. Padding is the same
on both sides of an axis; XLA's "SAME" is not (it pads a stride-2 convolution of an
even size by 0 and 1).
"""

import functools
import math
from collections.abc import Iterable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from jaxattn.errors import require
from jaxattn.host import has_cpu_flag
from jaxattn.ops import onednn
from jaxattn.ops.init import torch_bias, torch_kernel
from jaxattn.ops.inputs import as_feature_map
from jaxattn.ops.primitive import Window, make_convolution


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
    # It refuses what has no values.
    if 0 not in x.shape and onednn.is_used(x.dtype):
        return onednn.conv2d(x, kernel, stride, padding, dilation, groups)
    size = kernel.shape[:2]
    if (groups, dilation) == (1, 1):
        if size == (1, 1) and padding == 0:
            # What a stride skips is dropped before the product, not spread with zeros
            # in its gradient.
            return _patch_product(x[:, ::stride, ::stride], kernel)
        if size == (stride, stride) and padding == 0:
            return _patch_product(x, kernel)
        is_centred = size[0] == size[1] == 2 * padding + 1
        if is_centred and math.prod(size) > math.prod(x.shape[1:3]):
            return _shifts_product(x, kernel, stride)
        if size in ((3, 3), (5, 5)) and padding == size[0] // 2 and stride in (1, 2):
            return _conv(x, kernel, Window(stride, padding))
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def is_fast_in_loops(dtype: DTypeLike) -> bool:
    """Whether training in a loop, such as `jax.lax.scan`, is as fast as outside.

    In loops XLA's CPU backend computes the gradients of its own convolutions on a path
    that is 12 to 22 times slower (ResNet-18, CANet_tiny).

    Args:
        dtype: Of the convolutions.
    """
    if jax.default_backend() != "cpu":
        return True
    return onednn.is_used(dtype)


def is_faster_in_bfloat16() -> bool:
    """Whether networks train faster in bfloat16 than in float32 on the devices."""
    return jax.default_backend() != "cpu" or onednn.is_used(jnp.bfloat16)


def _patch_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution of patches that do not overlap is one matrix product."""
    N, H, W, C = x.shape
    k = kernel.shape[0]
    h, w = H // k, W // k  # torch drops what does not fill a patch
    x = x[:, : h * k, : w * k].reshape(N, h, k, w, k, C).swapaxes(2, 3)
    return _product(x.reshape(N, h, w, k * k * C), kernel)


def _shifts_product(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """K x K with padding K // 2 as one matrix product, for maps of fewer positions.

    There XLA takes the map for the kernel and the kernel for the map, which its CPU
    backend convolves in naive loops: 100 times as long with 512 channels.
    """
    K = kernel.shape[0]
    h, w = (-(-n // stride) for n in x.shape[1:3])
    edge = (K // 2, K // 2)
    padded = jnp.pad(x, ((0, 0), edge, edge, (0, 0)))
    taps = [
        padded[:, i : i + stride * h : stride, j : j + stride * w : stride]
        for i in range(K)
        for j in range(K)
    ]
    return _product(jnp.concatenate(taps, -1), kernel)


def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`[N, h, w, I]` by a kernel that has I values for each output."""
    return _conv(x, kernel.reshape(1, 1, -1, kernel.shape[-1]), Window(1, 0))


def _output(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    if kernel.shape[:2] == (1, 1):
        return x @ kernel[0, 0]
    padding = (window.padding, window.padding)
    strides = (window.stride, window.stride)
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        strides,
        (padding, padding),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _input_gradient(
    kernel: jax.Array, g: jax.Array, window: Window, size: tuple[int, int]
) -> jax.Array:
    if kernel.shape[:2] == (1, 1):
        return g @ kernel[0, 0].T
    if window.stride == 1:
        return _plain_input_gradient(kernel, g, window, size)
    # XLA's own is the slower one.
    fast, plain = (
        functools.partial(_phase_input_gradient, size=size),
        functools.partial(_plain_input_gradient, window=window, size=size),
    )
    return jax.lax.platform_dependent(kernel, g, cpu=fast, default=plain)


def _plain_input_gradient(
    kernel: jax.Array, g: jax.Array, window: Window, size: tuple[int, int]
) -> jax.Array:
    """The operation that JAX's transpose of a convolution is."""
    K, stride = kernel.shape[0], window.stride
    before = K - 1 - window.padding
    # As many zeros behind as the input has places.
    padding = [
        (before, n + K - 2 - before - (m - 1) * stride)
        for n, m in zip(size, g.shape[1:3], strict=True)
    ]
    return jax.lax.conv_general_dilated(
        g,
        jax.lax.rev(kernel, (0, 1)),
        (1, 1),
        padding,
        lhs_dilation=(stride, stride),
        dimension_numbers=("NHWC", "HWOI", "NHWC"),
    )


def _kernel_gradient(
    x: jax.Array, g: jax.Array, window: Window, size: tuple[int, int]
) -> jax.Array:
    if size == (1, 1):
        # Of matrices: else XLA's CPU backend transposes the whole of `x` first.
        return _contract(x, g)[None, None]
    is_wide = max(x.shape[-1], g.shape[-1]) > 16
    if window.stride > 1 or not is_wide or _has_avx512():
        return _plain_kernel_gradient(x, g, window, size)
    # XLA's own is the slower one.
    fast, plain = (
        functools.partial(_row_kernel_gradient, K=size[0]),
        functools.partial(_plain_kernel_gradient, window=window, size=size),
    )
    return jax.lax.platform_dependent(x, g, cpu=fast, default=plain)


def _plain_kernel_gradient(
    x: jax.Array, g: jax.Array, window: Window, size: tuple[int, int]
) -> jax.Array:
    """The operation that JAX's transpose of a convolution is."""
    stride, before = window.stride, window.padding
    padding = [
        (before, k - 1 + (m - 1) * stride + 1 - n - before)
        for k, n, m in zip(size, x.shape[1:3], g.shape[1:3], strict=True)
    ]
    return jax.lax.conv_general_dilated(
        x,
        g,
        (1, 1),
        padding,
        rhs_dilation=(stride, stride),
        dimension_numbers=("CHWN", "IHWO", "HWNC"),
    )


# K x K, padding K // 2, strides of 1 and 2 (of 1 x 1 only 1), with fast gradients on
# CPUs.
_conv = make_convolution("conv", _output, _input_gradient, _kernel_gradient)


def _has_avx512() -> bool:
    """Whether this CPU's vectors have 512 bits, as far as can be told."""
    return has_cpu_flag("avx512f")


def _row_kernel_gradient(x: jax.Array, g: jax.Array, K: int) -> jax.Array:
    """The kernel gradient as K matrix products, one for each row of the kernel.

    XLA's own is a convolution with a window as large as the image, which the CPU
    backend runs up to seven times slower with AVX2 (and up to 2.5 times faster with
    AVX-512). The columns of a row are one product: whichever of `x` and `g` has fewer
    channels is copied in K shifts.
    """
    H, W, C = x.shape[1:]
    O = g.shape[-1]  # noqa: E741
    pad = ((0, 0), (K // 2, K // 2), (K // 2, K // 2), (0, 0))
    if C <= O:
        shifted = _column_shifts(jnp.pad(x, pad), W, range(K))
        rows = [_contract(shifted[:, i : i + H], g) for i in range(K)]
        return jnp.stack(rows).reshape(K, K, C, O)
    shifted = _column_shifts(jnp.pad(g, pad), W, reversed(range(K)))
    rows = [_contract(x, shifted[:, i : i + H]) for i in reversed(range(K))]
    return jnp.stack(rows).reshape(K, C, K, O).swapaxes(1, 2)


def _column_shifts(padded: jax.Array, width: int, starts: Iterable[int]) -> jax.Array:
    """Windows of columns side by side along the channels."""
    return jnp.concatenate([padded[:, :, s : s + width] for s in starts], -1)


def _contract(a: jax.Array, b: jax.Array) -> jax.Array:
    """`[..., I]` and `[..., O]` to `[I, O]`, summed over all else."""
    return jax.lax.collapse(a, 0, a.ndim - 1).T @ jax.lax.collapse(b, 0, b.ndim - 1)


def _phase_input_gradient(
    kernel: jax.Array, g: jax.Array, size: tuple[int, int]
) -> jax.Array:
    """The input gradient at stride 2 as four convolutions of `g`.

    XLA's own is a convolution of `g` spread out with zeros, which the CPU backend runs
    on a slow path. Along an axis, position 2m + parity receives g[m + d] through tap
    parity + K // 2 - 2d, for every d that gives a tap.
    """
    (H, W), C = size, kernel.shape[2]
    N, h, w = g.shape[:3]
    flipped = kernel.swapaxes(2, 3)  # O in, C out

    def phase(row: int, column: int) -> jax.Array:
        (rows, above), (columns, beside) = (
            _taps(parity, len(kernel)) for parity in (row, column)
        )
        return jax.lax.conv_general_dilated(
            g,
            _picked(_picked(flipped, rows, 0), columns, 1),
            (1, 1),
            (above, beside),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    rows = [jnp.stack([phase(row, 0), phase(row, 1)], 3) for row in (0, 1)]
    dx = jnp.stack(rows, 2).reshape(N, 2 * h, 2 * w, C)
    return dx[:, :H, :W]


def _picked(kernel: jax.Array, taps: Sequence[int], axis: int) -> jax.Array:
    """Returns taps of a parity, backwards; by an index it would be a slow gather."""
    rising = jax.lax.slice_in_dim(kernel, taps[-1], taps[0] + 1, 2, axis)
    return jax.lax.rev(rising, (axis,))


def _taps(parity: int, K: int) -> tuple[list[int], tuple[int, int]]:
    """Returns the taps of a parity by rising d, and the padding before and behind."""
    last = parity + K // 2
    taps = [t for t in reversed(range(K)) if (last - t) % 2 == 0]
    return taps, ((taps[0] - last) // 2, (last - taps[-1]) // 2)


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
        bias_init: Initialiser of the bias; None is torch's default.
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
    bias_init: Initializer | None = None
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolves `x` `[N, H, W, C]` and returns `[N, H', W', features]`."""
        x = as_feature_map(self, x)
        for key in ("features", "kernel_size", "stride", "dilation", "groups"):
            require(key, getattr(self, key), getattr(self, key) >= 1, "at least 1")
        k, C = self.kernel_size, x.shape[-1] // self.groups
        kernel = self.param(
            "kernel", self.kernel_init, (k, k, C, self.features), jnp.float32
        )
        y = conv2d(
            x,
            kernel.astype(x.dtype),
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
        )
        if self.use_bias:
            init = self.bias_init or torch_bias(k * k * C)
            bias = self.param("bias", init, (self.features,), jnp.float32)
            y = y + bias.astype(x.dtype).reshape(1, 1, 1, -1)
        return y
