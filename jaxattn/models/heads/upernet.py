"""The head of UPerNet: a pyramid of pooled maps on top of a feature pyramid.

Xiao, Liu, Zhou, Jiang, Sun, "Unified Perceptual Parsing for Scene Understanding", ECCV
2018. https://arxiv.org/abs/1807.10221
Reference code: mmsegmentation's UPerHead, whose names these are, and transformers'
UperNetHead, which is equal but for its dropout.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxattn.models.heads.dense import DenseHead, Mark, unmarked
from jaxattn.ops.pool import adaptive_avg_pool
from jaxattn.ops.resize import resize_bilinear


class UPerHead(DenseHead):
    """Adds coarse maps to fine ones, and classifies all of them together.

        l_4 = bottleneck([x_4, up(conv1x1(pool_s(x_4))) for s in pool_scales])
        l_i = conv1x1(x_i) + up(l_{i+1})                              i = 3, 2, 1
        logits = conv1x1(fpn_bottleneck([conv3x3(l_1), up(conv3x3(l_2)), ..., up(l_4)]))

    `up` is bilinear; a normalisation and a ReLU follow every convolution but the last.

    Attributes:
        pool_scales: Windows along H and W of the poolings of the last map.
    """

    pool_scales: Sequence[int] = (1, 2, 3, 6)

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
            maps: By stage, `[N, H, W, C]`, the largest first.
            train: Selects batch statistics, those of a pooled map need a batch of two
                or more where one of `pool_scales` is 1; and dropout.
            mark: Applied to the map that is classified.

        Returns:
            float32 `[N, H, W, num_classes]`, of the size of the first map.
        """
        *fine, coarse = maps
        x = self._pool(coarse, train)
        laterals = [x]
        for i in reversed(range(len(fine))):
            lateral = self._convolve(fine[i], 1, f"lateral_convs.{i}", train)
            x = lateral + resize_bilinear(x, _size(lateral))
            laterals.insert(0, x)
        levels = [
            self._convolve(lateral, 3, f"fpn_convs.{i}", train)
            for i, lateral in enumerate(laterals[:-1])
        ]
        levels.append(laterals[-1])
        size = _size(levels[0])
        x = jnp.concatenate([resize_bilinear(level, size) for level in levels], -1)
        x = mark(self._convolve(x, 3, "fpn_bottleneck", train))
        return self._classify(self._drop(x, train))

    def _pool(self, x: jax.Array, train: bool) -> jax.Array:
        """Returns the last map together with what poolings make of it (PPM)."""
        levels = [x]
        for i, scale in enumerate(self.pool_scales):
            pooled = adaptive_avg_pool(x, scale)
            pooled = self._convolve(pooled, 1, f"psp_modules.{i}.1", train)
            levels.append(resize_bilinear(pooled, _size(x)))
        return self._convolve(jnp.concatenate(levels, -1), 3, "bottleneck", train)


def _size(x: jax.Array) -> tuple[int, int]:
    return x.shape[1], x.shape[2]
