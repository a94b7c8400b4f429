"""Your own arrays and your own network in the trainer: logged, saved, resumed exactly.

Learns to tell in which direction the stripes of an image run. Kill it and start it
again: it goes on from the last epoch, to the same weights.

Needs the extra `train`: python examples/own_data.py workdir/stripes
"""

import sys

import flax.linen as nn
import jax
import numpy as np

from jaxattn.attention import CBAM
from jaxattn.training import build, load_trained, train_and_evaluate

CLASSES = ("horizontal", "rising", "vertical", "falling")
CONFIG = {
    "seed": 0,
    "num_epochs": 4,
    "batch_size": 32,
    "normalize": {"mean": (0.5,), "std": (0.25,)},
    "augment": {"crop_padding_px": 2},
    "schedule": {"name": "constant", "learning_rate": 3e-3},
    "optimizer": {"name": "adamw", "weight_decay": 1e-4},
    "log": {"tensorboard": False},
}


class StripeNet(nn.Module):
    """A small network with a block of attention."""

    num_classes: int = len(CLASSES)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Classifies images `[N, H, W, 3]`; logits `[N, 4]`."""
        x = nn.relu(nn.Conv(16, (5, 5), strides=2, name="stem")(x))
        x = CBAM(reduction=4, name="attention")(x, train=train)
        x = nn.relu(nn.Conv(32, (3, 3), name="conv")(x))
        return nn.Dense(self.num_classes, name="head")(x.mean((1, 2)))


def make_stripes(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns noisy images uint8 `[N, 16, 16, 3]` and their directions, `[N]`."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(CLASSES), count)
    angle, phase = (
        a.reshape(-1, 1, 1) for a in (labels * np.pi / len(CLASSES), rng.random(count))
    )
    y, x = np.mgrid[:16, :16][:, None]
    turns = (np.cos(angle) * x + np.sin(angle) * y) / 4 + phase
    noise = rng.normal(size=(count, 16, 16, 3))
    images = 128 + 40 * (np.sin(2 * np.pi * turns)[..., None] + noise)
    return np.clip(images, 0, 255).astype(np.uint8), labels


def main(workdir: str) -> None:
    """Trains, or goes on, and loads what came of it."""
    data = {"train": make_stripes(640, seed=0), "test": make_stripes(160, seed=1)}
    run = build(CONFIG, data=data, model=StripeNet())
    results = train_and_evaluate(run, workdir)
    trained = load_trained(workdir, model=StripeNet())
    leaves = jax.tree.leaves(trained.variables)
    print(f"test accuracy {results['test_accuracy']:.4f}, step {trained.step}")
    print(f"sum of the weights {sum(float(np.sum(leaf)) for leaf in leaves)!r}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "workdir/stripes")
