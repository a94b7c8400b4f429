"""The head of DeepLabV3: atrous spatial pyramid pooling.

Chen, Papandreou, Schroff, Adam, "Rethinking Atrous Convolution for Semantic Image
Segmentation", 2017. https://arxiv.org/abs/1706.05587
Reference code: torchvision/models/segmentation/deeplabv3.py, whose layers these are;
names are those of mmsegmentation's ASPPHead, which has no `project`.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxattn.models.heads.dense import DenseHead, Mark, unmarked
from jaxattn.ops.inputs import at_least_float32


class DeepLabV3Head(DenseHead):
    """Looks at the last map at several distances, and at its mean.

        y = project([conv1x1(x), conv3x3_d(x) for d in atrous_rates, conv1x1(mean(x))])
        logits = conv1x1(conv3x3(y))

    Dropout is behind `project` as in torchvision, with the layout "mm" before the
    classifier.

    Attributes:
        atrous_rates: Distances between the taps of the dilated convolutions.
    """

    atrous_rates: Sequence[int] = (12, 24, 36)

    @nn.compact
    def __call__(
        self,
        maps: Sequence[jax.Array],
        *,
        train: bool = False,
        mark: Mark = unmarked,
    ) -> jax.Array:
        """Returns the logits of a network's last map.

        Args:
            maps: By stage, `[N, H, W, C]`.
            train: Selects batch statistics, those of a map's mean need a batch of two
                or more; and dropout.
            mark: Applied to the map that is classified.

        Returns:
            float32 `[N, H, W, num_classes]`, of the size of the last map.
        """
        x, is_mm = maps[-1], self.layout == "mm"
        y = self._convolve(self._pyramid(x, train), 1, "project", train)
        y = y if is_mm else self._drop(y, train)
        y = mark(self._convolve(y, 3, "bottleneck", train))
        return self._classify(self._drop(y, train) if is_mm else y)

    def _pyramid(self, x: jax.Array, train: bool) -> jax.Array:
        """Returns what all branches make of a map, side by side."""
        branches = [self._convolve(x, 1, "aspp_modules.0", train)]
        for i, rate in enumerate(self.atrous_rates, 1):
            branches.append(self._convolve(x, 3, f"aspp_modules.{i}", train, rate))
        mean = jnp.mean(at_least_float32(x), (1, 2), keepdims=True).astype(x.dtype)
        whole = self._convolve(mean, 1, "image_pool.1", train)
        branches.append(jnp.broadcast_to(whole, branches[0].shape))
        return jnp.concatenate(branches, -1)
