"""Stochastic depth: training leaves out whole residual branches, image by image.

Huang, Sun, Liu, Sedra, Weinberger, "Deep Networks with Stochastic Depth", ECCV 2016.
https://arxiv.org/abs/1603.09382
Deviation from the paper, as in timm and torchvision: what stays is scaled by
1 / (1 - rate) in training, instead of by 1 - rate in evaluation; the first block is
never left out, and the last one at the given rate.
"""

import flax.linen as nn
import jax


def drop_path(x: jax.Array, rate: float, *, train: bool) -> jax.Array:
    """Returns a residual branch, left out for some images; call it in `__call__`.

    Args:
        x: What the branch made, `[N, H, W, C]`, before it is added to the shortcut.
        rate: Share of the images whose branch training sets to 0, in [0, 1), by the rng
            stream "dropout"; the others are divided by 1 - rate.
        train: Selects it; otherwise `x` is returned.
    """
    drop = nn.Dropout(rate, broadcast_dims=(1, 2, 3), name="drop_path")
    return drop(x, deterministic=not train)


def depth_rates(last: float, num_blocks: int) -> list[float]:
    """Returns the rate of every block: 0 of the first, rising evenly to the last.

    Args:
        last: Rate of the last block; of a network of one block, its rate is 0.
        num_blocks: Residual blocks of the network.
    """
    return [last * i / max(1, num_blocks - 1) for i in range(num_blocks)]
