"""SCCNet: residual networks whose only activations are SCC's selections.

Reference code read: Raven-Z-china/SCCNet @3d2a535, model/SCCNet.py (numbers compared in
tests/test_scc.py)

Notation: N batch, H, W spatial, C channels.
Deviations from the code:
  - the shortcut's convolution is chosen by `downsample` (the code has "scc5" alone; its
    README's table compares the others);
  - the stem "cifar" (the code has ImageNet's alone);
  - dilated stages, where `output_stride` asks for them, as a ResNet of basic blocks has
    them in mmseg.
"""

from collections.abc import Iterator, Sequence

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from jaxattn.attention.scc import SCC, uniform_within
from jaxattn.errors import choose
from jaxattn.models.attention_network import AttentionNetwork
from jaxattn.models.heads.classification import classify
from jaxattn.models.slots import Slot
from jaxattn.models.stems import STEMS, dilate
from jaxattn.ops.conv import Conv
from jaxattn.ops.init import kaiming_normal
from jaxattn.ops.inputs import as_feature_map
from jaxattn.ops.norm import BatchNorm
from jaxattn.ops.pool import max_pool
from jaxattn.ops.stochastic_depth import depth_rates, drop_path

# Of the first stage's map, at the size of images that a stem is for.
_FIRST_SIDE = {"imagenet": 56, "cifar": 32}
DOWNSAMPLES = ("conv1", "conv3", "conv5", "scc1", "scc3", "scc5")


class SCCBlock(nn.Module):
    """A basic residual block of two 3x3 SCC, without any other activation.

        out = bn2(scc(bn1(scc(x)))) + shortcut(x)

    The stride is on the first convolution. The shortcut is the identity where stride
    and channels allow, else a convolution and a batch normalisation.

    Attributes:
        features: Output channels.
        stride: Step of the block along H and W.
        downsample: The shortcut's convolution: "conv" or "scc", and its kernel size 1,
            3 or 5.
        mask_prob: See `SCC`.
        forcing: See `SCC`.
        dilation: Distance between the taps of the first SCC.
        slot: The block's attention module, and where it sits.
        drop_path_rate: Share of the images whose branch training leaves out.
        dtype: Computation dtype; None keeps the input's. Parameters are float32.
        axis_name: Mapped axis over which BatchNorm averages its statistics.
    """

    features: int
    stride: int = 1
    downsample: str = "scc5"
    mask_prob: float = 0.005
    forcing: str = "uniform"
    dilation: int = 1
    slot: Slot = Slot()
    drop_path_rate: float = 0.0
    dtype: DTypeLike | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Applies the block.

        Args:
            x: Feature map `[N, H, W, C]`, any float dtype.
            train: Selects batch statistics in BatchNorm, and forcing in SCC (rng stream
                "forcing").

        Returns:
            `[N, ceil(H / stride), ceil(W / stride), features]`, in `dtype`.

        Raises:
            ValueError: If `downsample`, `mask_prob` or `forcing` is not accepted.
        """
        choose("downsample", self.downsample, DOWNSAMPLES)
        x = as_feature_map(self, x)
        # First, as in the code, whose recorded draws the tests replay in call order.
        slot, shortcut = self.slot, self._shortcut(x, train)
        y = self._scc(x, 3, self.stride, "conv1", train, self.dilation)
        y = self._norm("bn1")(y, train=train)
        y = slot.attend(y, "inside", train=train)
        if slot.is_at("replace"):
            y = slot.convolve(y, self.features, 1, train=train, name="conv2")
        else:
            y = self._scc(y, 3, 1, "conv2", train)
        y = slot.attend(y, "before_norm", train=train)
        norm = self._norm("bn2")
        if not (slot.is_at("after") or self.drop_path_rate):
            return norm(y, train=train, residual=shortcut)
        y = slot.attend(norm(y, train=train), "after", train=train)
        return drop_path(y, self.drop_path_rate, train=train) + shortcut

    def _shortcut(self, x: jax.Array, train: bool) -> jax.Array:
        if (self.stride, x.shape[-1]) == (1, self.features):
            return x
        kind, size = self.downsample[:-1], int(self.downsample[-1])
        name = "downsample.0"
        if kind == "scc":
            y = self._scc(x, size, self.stride, name, train)
        else:
            y = _conv(x, self.features, size, self.stride, name, self.slot, train)
        return self._norm("downsample.1")(y, train=train)

    def _scc(
        self,
        x: jax.Array,
        kernel_size: int,
        stride: int,
        name: str,
        train: bool,
        dilation: int = 1,
    ) -> jax.Array:
        x = self.slot.attend(x, "before_convs", train=train, name=f"{name}.attn")
        scc = SCC(
            self.features,
            kernel_size,
            stride,
            dilation=dilation,
            mask_prob=self.mask_prob,
            forcing=self.forcing,
            kernel_init=uniform_within(1.0),
            affine_init=uniform_within(1.0),
            name=name,
        )
        return scc(x, train=train)

    def _norm(self, name: str) -> BatchNorm:
        return BatchNorm(axis_name=self.axis_name, name=name)


class SCCNet(AttentionNetwork):
    """Stages of `SCCBlock` after a linear stem, for images of any size.

    The strides of its maps are 4, 8, 16 and so on (with the stem "cifar" 1, 2, 4).

    Attributes:
        stage_sizes: Blocks of every stage; (2, 2, 2, 2) is SCCNet18, (3, 4, 6, 3)
            SCCNet34. Each stage but the first halves H and W.
        widths: Channels of every stage; the stem has the first's.
        num_classes: Number of logits; 0: the pooled features are returned.
        downsample: Convolution of the shortcuts that change the shape: "conv" or "scc",
            and its kernel size 1, 3 or 5.
        stem: "imagenet", a 7x7 convolution and a maximum that reduce H and W by 4, or
            "cifar", a 3x3 convolution that keeps them.
        output_stride: The most that a map's stride may be, 8, 16 or 32: stages that
            would exceed it are dilated instead.
        mask_prob: See `SCC`.
        forcing: See `SCC`.
        drop_path_rate: Share of the images whose last residual branch training leaves
            out; 0 of the first branch, and rising evenly (rng stream "dropout").
    """

    stage_sizes: Sequence[int] = (2, 2, 2, 2)
    widths: Sequence[int] = (64, 128, 256, 512)
    num_classes: int = 10
    downsample: str = "scc5"
    stem: str = "imagenet"
    output_stride: int = 32
    mask_prob: float = 0.005
    forcing: str = "uniform"
    drop_path_rate: float = 0.0

    @nn.nowrap
    def _stages(self, x: jax.Array, train: bool) -> Iterator[jax.Array]:
        self._check()
        slots = self._slots(_FIRST_SIDE[self.stem], len(self.widths))
        x = self._stem(x, slots[0], train)
        rates = iter(depth_rates(self.drop_path_rate, sum(self.stage_sizes)))
        stem = STEMS[self.stem]
        strides = [1, *[2] * (len(self.widths) - 1)]
        before = stem.stride * (2 if stem.pools else 1)
        steps = dilate(strides, before, self.output_stride)
        stages = zip(self.stage_sizes, self.widths, slots[1:], steps, strict=True)
        for i, (blocks, width, slot, step) in enumerate(stages, 1):
            for j in range(blocks):
                x = SCCBlock(
                    width,
                    step.stride if j == 0 else 1,
                    self.downsample,
                    mask_prob=self.mask_prob,
                    forcing=self.forcing,
                    dilation=step.dilation_before if j == 0 else step.dilation,
                    slot=slot,
                    drop_path_rate=next(rates),
                    axis_name=self.axis_name,
                    name=f"layer{i}.{j}",
                )(x, train=train)
            x = slot.attend(x, "stage", train=train, name=f"attn{i}")
            yield x

    def _head(self, x: jax.Array, train: bool) -> jax.Array:
        del train
        return classify(self, x, self.num_classes, name="head")

    def _check(self) -> None:
        choose("downsample", self.downsample, DOWNSAMPLES)
        choose("stem", self.stem, STEMS)
        if len(self.stage_sizes) != len(self.widths):
            raise ValueError(
                f"stage_sizes={tuple(self.stage_sizes)} and"
                f" widths={tuple(self.widths)}: must have one entry a stage each"
            )

    def _stem(self, x: jax.Array, slot: Slot, train: bool) -> jax.Array:
        size, stride, pools, _ = STEMS[self.stem]
        x = _conv(x, self.widths[0], size, stride, "conv", slot, train)
        x = BatchNorm(axis_name=self.axis_name, name="bn1")(x, train=train)
        return max_pool(x, 3, stride=2, padding=1) if pools else x


def _conv(
    x: jax.Array,
    features: int,
    kernel_size: int,
    stride: int,
    name: str,
    slot: Slot,
    train: bool,
) -> jax.Array:
    x = slot.attend(x, "before_convs", train=train, name=f"{name}.attn")
    conv = Conv(
        features,
        kernel_size,
        stride,
        padding=kernel_size // 2,
        kernel_init=kaiming_normal,
        name=name,
    )
    return conv(x)
