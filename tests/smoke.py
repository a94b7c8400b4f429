"""A config that trains in seconds and uses every part of the trainer."""

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import numpy as np  # noqa: E402
from ml_collections.config_dict import placeholder  # noqa: E402
from PIL import Image  # noqa: E402

from configs import canet  # noqa: E402


def one_device():
    return jax.devices()[:1]


def get_config(variant="small"):
    """Variants: small and its `steady` one; canet and its `folder` of photos."""
    config = canet.get_config("tiny")
    config.seed = 0
    config.num_epochs = 4
    config.batch_size = 16
    config.data.name = "synthetic"
    config.data.image_size = 8
    config.data.val_fraction = 0.25
    config.unlock()
    config.data.num_train = 120  # 90 to train: 6 steps an epoch, the last completed
    config.data.num_test = 45  # 3 batches, the last of 13
    config.data.num_classes = 5
    config.schedule.learning_rate = 3e-3
    config.augment.crop_padding_px = 1
    config.optimizer.switch_fraction = 0.5
    config.ema.decay = 0.9
    config.log.every_steps = 2
    config.log.tensorboard = False
    if variant in ("steady", "folder"):
        make_steady(config)
    if variant in ("small", "steady"):
        # 11,000 parameters, compiled in seconds; CANet_tiny takes a minute.
        config.model = {"name": "efficient_resnet", "base_width": 2}
    if variant == "steady":
        config.model.dropout_rate = 0.0  # whose draws pmap's replicas make on their own
    if variant == "folder":
        config.data = {"name": "imagefolder", "image_size": 16, "val_fraction": 0.25}
        config.data.path = placeholder(str)
        # Kinks add up over 100 steps: to 1e-3 of 1 at a rate of 1e-3, 2e-4 at 1e-4.
        config.schedule.learning_rate = 1e-5
    config.lock()
    return config


def make_steady(config):
    """Makes runs comparable that round differently: on other devices, say.

    Adam divides by the gradient's size, which makes rounding as large as a step where
    a gradient is all but zero. And a maximum or a ReLU within rounding of its kink may
    go the other way, which moves a gradient by up to 1e-3; so the rate is small. A
    missing mean over devices would move a gradient by its own size, 1.
    """
    config.optimizer = {"name": "sgd", "momentum": 0.9, "weight_decay": 1e-3}
    config.schedule.learning_rate = 1e-3
    config.data.image_size = 16


def write_photos(folder):
    """Makes an image folder of three classes: 96 images to train on, 24 to test."""
    rng = np.random.default_rng(0)
    for split, size in (("train", 32), ("val", 8)):
        for label in range(3):
            (folder / split / str(label)).mkdir(parents=True)
            for i in range(size):
                pixels = rng.integers(0, 128, (20, 24, 3), np.uint8)
                pixels[..., label] += 100
                image = Image.fromarray(pixels)
                image.save(folder / split / str(label) / f"{i}.png")


class InterruptedAt:
    """Stands in for `Interrupt`: a signal arrives before the n-th time it is asked."""

    exit_code = 143

    def __init__(self, n):
        self.left = n

    @property
    def requested(self):
        self.left -= 1
        return self.left < 0

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass
