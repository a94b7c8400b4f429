"""What the heads of dense networks are made of: layers, their start, their classifier.

Names are mmsegmentation's: a `ConvModule` has `conv` and `bn`, the classifier is
`conv_seg`. What differs between mmsegmentation and torchvision beside the names is a
`Layout`.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
from jax.nn.initializers import Initializer

from jaxattn.ops.conv import Conv
from jaxattn.ops.init import kaiming_normal, torch_kernel
from jaxattn.ops.inputs import at_least_float32
from jaxattn.ops.norm import BatchNorm

Mark = Callable[[jax.Array], jax.Array]


class Layout(NamedTuple):
    """How a head starts, and what its dropout leaves out.

    Attributes:
        kernel_init: Of its convolutions but the last.
        last_kernel_init: Of the last one.
        last_bias_init: Of its bias; None is torch's default.
        drops_channels: Whether dropout leaves out whole channels of an image, instead
            of single values.
    """

    kernel_init: Initializer
    last_kernel_init: Initializer
    last_bias_init: Initializer | None
    drops_channels: bool


LAYOUTS = {
    "mm": Layout(
        kernel_init=kaiming_normal,
        last_kernel_init=nn.initializers.normal(0.01),
        last_bias_init=nn.initializers.zeros,
        drops_channels=True,
    ),
    "torchvision": Layout(
        kernel_init=torch_kernel,
        last_kernel_init=torch_kernel,
        last_bias_init=None,
        drops_channels=False,
    ),
}


class DenseHead(nn.Module, kw_only=True):
    """What the heads of a segmenter share.

    Attributes:
        num_classes: Logits of a position.
        channels: Of its maps.
        dropout_rate: Share of its last map that training sets to 0, by the rng stream
            "dropout".
        layout: A key of `LAYOUTS`.
        axis_name: Mapped axis over which BatchNorm averages its statistics.
    """

    num_classes: int
    channels: int
    dropout_rate: float = 0.1
    layout: str = "mm"
    axis_name: str | None = None

    def _convolve(
        self, x: jax.Array, size: int, name: str, train: bool, dilation: int = 1
    ) -> jax.Array:
        """A convolution to `channels`, its norm and ReLU; call in `compact`."""
        module = ConvModule(
            self.channels,
            size,
            dilation,
            LAYOUTS[self.layout].kernel_init,
            self.axis_name,
            name=name,
        )
        return module(x, train=train)

    def _drop(self, x: jax.Array, train: bool) -> jax.Array:
        """Leaves out a share of a map in training; call in `compact`."""
        whole = (1, 2) if LAYOUTS[self.layout].drops_channels else ()
        drop = nn.Dropout(self.dropout_rate, broadcast_dims=whole, name="dropout")
        return drop(x, deterministic=not train)

    def _classify(self, x: jax.Array) -> jax.Array:
        """Returns float32 logits `[N, H, W, K]` of a map; call in `compact`."""
        layout = LAYOUTS[self.layout]
        conv = Conv(
            self.num_classes,
            1,
            use_bias=True,
            kernel_init=layout.last_kernel_init,
            bias_init=layout.last_bias_init,
            name="conv_seg",
        )
        return at_least_float32(conv(x))


class ConvModule(nn.Module):
    """A convolution, its normalisation and a ReLU, with mmsegmentation's names.

    Attributes:
        features: Output channels.
        kernel_size: Side of the kernel, odd.
        dilation: Distance between the taps of the kernel.
        kernel_init: Initialiser of the kernel.
        axis_name: Mapped axis over which BatchNorm averages its statistics.
    """

    features: int
    kernel_size: int = 1
    dilation: int = 1
    kernel_init: Initializer = kaiming_normal
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Applies the three to `x` `[N, H, W, C]`; train selects batch statistics."""
        conv = Conv(
            self.features,
            self.kernel_size,
            padding=self.dilation * (self.kernel_size // 2),
            dilation=self.dilation,
            kernel_init=self.kernel_init,
            name="conv",
        )
        norm = BatchNorm(axis_name=self.axis_name, name="bn")
        return norm(conv(x), train=train, activation="relu")


def unmarked(x: jax.Array) -> jax.Array:
    """Returns a map as it is: what a head that nobody looks at makes of its last."""
    return x
