"""How a network begins: the keyword `stem`, which follows the size of the images."""

from typing import NamedTuple


class Stem(NamedTuple):
    """The layers before a network's first stage.

    Attributes:
        kernel_size: Side of the convolution's kernel in a residual network.
        stride: Step of the convolution along H and W.
        pools: Whether a residual network has a max-pool of stride 2 after it.
    """

    kernel_size: int
    stride: int
    pools: bool


# For images of about 224 pixels, and of about 32.
STEMS = {"imagenet": Stem(7, 2, pools=True), "cifar": Stem(3, 1, pools=False)}
