"""The head of a fully convolutional network.

Long, Shelhamer, Darrell, "Fully Convolutional Networks for Semantic Segmentation",
CVPR 2015. https://arxiv.org/abs/1411.4038
Reference code: torchvision/models/segmentation/fcn.py; mmsegmentation's FCNHead of one
convolution, with which UPerNet's auxiliary head is the same.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax

from jaxattn.models.heads.dense import DenseHead, Mark, unmarked


class FCNHead(DenseHead):
    """A 3x3 convolution and a classifier of every position.

    Attributes:
        stage: Which map it sees, counted from 1, from the last by -1.
    """

    stage: int = -1

    @nn.compact
    def __call__(
        self,
        maps: Sequence[jax.Array],
        *,
        train: bool = False,
        mark: Mark = unmarked,
    ) -> jax.Array:
        """Returns the logits of a network's maps.

        Args:
            maps: By stage, `[N, H, W, C]`.
            train: Selects batch statistics and dropout.
            mark: Applied to the map that is classified.

        Returns:
            float32 `[N, H, W, num_classes]`, of the size of the map that it sees.
        """
        x = maps[self.stage - 1 if self.stage > 0 else self.stage]
        x = mark(self._convolve(x, 3, "convs.0", train))
        return self._classify(self._drop(x, train))
