"""oneDNN's convolutions of inference on CPUs, where `onednn.is_used`.

They take what often follows in the same pass over memory, a kernel that was packed
ahead, and all threads for one image. They have no derivatives.
"""

import os
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxattn.ops import cpu_kernels
from jaxattn.ops.primitive import Window, output_shape

ACTIVATIONS = (None, "relu", "relu6")


class Closing(NamedTuple):
    """What follows a convolution, in this order.

    Attributes:
        other: A map that is added, of the output's shape and dtype; None if there is
            none.
        activation: One of `ACTIVATIONS`.
    """

    other: jax.Array | None = None
    activation: str | None = None


def conv2d(
    x: jax.Array,
    kernel: jax.Array,
    offset: jax.Array,
    window: Window,
    closing: Closing,
) -> jax.Array:
    """Convolves, adds an offset to every channel, and closes with what follows.

    Args:
        x: `[N, H, W, C]`, float32 or bfloat16.
        kernel: `[KH, KW, C / groups, O]`, the dtype of `x`.
        offset: float32 `[O]`.
        window: How the kernel moves.
        closing: What follows.

    Returns:
        `[N, H', W', O]`, the dtype of `x`.
    """
    (kh, kw, _, O), others = kernel.shape, [closing.other]  # noqa: E741
    others = [other for other in others if other is not None]
    sizes = dict(zip("nhwc", x.shape, strict=True))
    how = {**window._asdict(), "parts": _num_threads()}
    activation = ACTIVATIONS.index(closing.activation)
    adds, is_bfloat16 = len(others), int(x.dtype == jnp.bfloat16)
    numbers = (*sizes.values(), kh, kw, O, *how.values())
    size = cpu_kernels.count(
        "jaxattn_packed_bytes", *numbers, is_bfloat16, adds, activation
    )
    assert size, "oneDNN has every convolution"
    # Of weights alone: what freezes a network takes it out of the program.
    packed = cpu_kernels.call(
        "jaxattn_conv_pack",
        jax.ShapeDtypeStruct((size,), jnp.uint8),
        kernel,
        **sizes,
        **how,
        adds=adds,
        activation=activation,
    )
    shape = output_shape(x.shape, kernel.shape, window)
    return cpu_kernels.call(
        "jaxattn_conv_packed",
        jax.ShapeDtypeStruct(shape, x.dtype),
        x,
        packed,
        offset,
        *others,
        kh=kh,
        kw=kw,
        **how,
        activation=activation,
    )


def _num_threads() -> int:
    """Returns how many threads XLA computes with."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
