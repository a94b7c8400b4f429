"""How a network begins: the keyword `stem`, which follows the size of the images.

A stage that would exceed the keyword `output_stride` keeps its maps as large as those
before it; its convolutions are dilated instead.
"""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn

from jaxattn.errors import require


class Stem(NamedTuple):
    """The layers before a network's first stage.

    Attributes:
        kernel_size: Side of the convolution's kernel in a residual network.
        stride: Step of the convolution along H and W.
        pools: Whether a residual network has a max-pool of stride 2 after it.
        is_deep: Whether three convolutions, of which the first has the stride, stand
            for the one.
    """

    kernel_size: int
    stride: int
    pools: bool
    is_deep: bool = False


class Step(NamedTuple):
    """How the blocks of a stage move over their maps.

    Attributes:
        stride: Of the first block along H and W.
        dilation: Distance between the taps of the blocks' 3x3 convolutions.
        dilation_before: That of the stage before.
    """

    stride: int
    dilation: int
    dilation_before: int


# For images of about 224 pixels, and of about 32.
STEMS = {"imagenet": Stem(7, 2, pools=True), "cifar": Stem(3, 1, pools=False)}
# Of ResNets: the stem of ResNet-C too (He and others, "Bag of Tricks for Image
# Classification with Convolutional Neural Networks", CVPR 2019), as mmseg calls it.
RESNET_STEMS = {**STEMS, "v1c": Stem(3, 2, pools=True, is_deep=True)}
OUTPUT_STRIDES = (8, 16, 32)


def find_stem(model: nn.Module) -> str:
    """Returns a network's stem, or that of its backbone; "" if it has none."""
    return getattr(getattr(model, "backbone", model), "stem", "")


def is_for_photos(stem: str) -> bool:
    """Whether a network of this stem, "" of none, is for images of about 224 pixels."""
    return stem in RESNET_STEMS and RESNET_STEMS[stem].stride > 1


def dilate(strides: Sequence[int], before: int, output_stride: int) -> list[Step]:
    """Returns how each stage moves so that no map has more than a stride.

    Args:
        strides: Of the stages.
        before: Stride of the map that the first stage takes.
        output_stride: The most that a map may have, one of `OUTPUT_STRIDES`.
    """
    wanted = f"one of {', '.join(map(str, OUTPUT_STRIDES))}"
    require("output_stride", output_stride, output_stride in OUTPUT_STRIDES, wanted)
    steps, dilation = [], 1
    for stride in strides:
        last = dilation
        if before * stride > output_stride:
            dilation *= stride
            stride = 1
        before *= stride
        steps.append(Step(stride, dilation, last))
    return steps
