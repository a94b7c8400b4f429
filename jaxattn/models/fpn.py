"""The feature pyramid network.

Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017.
Parameter names are MMDetection's. Initialisation: MMDetection's (Xavier uniform) or
torchvision's (uniform in +-sqrt(3 / fan_in)); biases 0.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
from jax.nn.initializers import Initializer, variance_scaling

from jaxattn.errors import choose
from jaxattn.ops.conv import Conv
from jaxattn.ops.resize import resize_nearest

xavier_uniform: Initializer = variance_scaling(1.0, "fan_avg", "uniform")
_lecun_uniform: Initializer = variance_scaling(1.0, "fan_in", "uniform")

EXTRA_LEVELS = ("input", "output", "pool")


class FPN(nn.Module):
    """Maps of equal width, each of which knows what the smaller ones do.

    Attributes:
        features: Channels of all levels.
        extra: Where levels beyond the last are from: "input": two, by convolutions of
            stride 2 of the last map that is given; "output": of the last level's; or
            "pool": one, every second row and column of the last level.
        relu: Applies a ReLU before the second of two extra levels.
        layout: "mm" or "torchvision", for how it starts.
    """

    features: int = 256
    extra: str = "pool"
    relu: bool = False
    layout: str = "mm"

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        """Returns the levels `[N, H', W', features]`, from the largest on.

        Args:
            maps: `[N, H, W, C]`, each about half as high and wide as the one before.
        """
        choose("extra", self.extra, EXTRA_LEVELS)
        inner = [
            self._conv(1, f"lateral_convs.{i}.conv")(x) for i, x in enumerate(maps)
        ]
        for i in reversed(range(len(maps) - 1)):
            _, H, W, _ = inner[i].shape
            inner[i] = inner[i] + resize_nearest(inner[i + 1], (H, W))
        levels = [self._conv(3, f"fpn_convs.{i}.conv")(x) for i, x in enumerate(inner)]
        if self.extra == "pool":
            return (*levels, levels[-1][:, ::2, ::2])
        source = maps[-1] if self.extra == "input" else levels[-1]
        for i in (len(maps), len(maps) + 1):
            source = self._conv(3, f"fpn_convs.{i}.conv", stride=2)(source)
            levels.append(source)
            source = nn.relu(source) if self.relu else source
        return tuple(levels)

    def _conv(self, size: int, name: str, stride: int = 1) -> Conv:
        init = xavier_uniform if self.layout == "mm" else _lecun_uniform
        return Conv(
            self.features,
            size,
            stride,
            size // 2,
            use_bias=True,
            kernel_init=init,
            bias_init=nn.initializers.zeros,
            name=name,
        )
