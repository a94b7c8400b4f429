"""A data set of images as torchvision has it, and its loaders. Needs PyTorch."""
# pyright: reportMissingImports=false

import functools
import math
import random
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.steps import Work


def make_loaders(work: Work, data: Any, recipe: Any, workers: int) -> dict[str, Any]:
    """Returns the DataLoaders of the splits `train` and `test`.

    Args:
        work: What is trained.
        data: Has both splits, in memory.
        recipe: Config with the sections `augment` and `normalize`.
        workers: Processes of either; 0 loads in this one.
    """
    make: Any = functools.partial(
        DataLoader,
        batch_size=work.batch_size,
        num_workers=workers,
        pin_memory=work.device == "gpu",
        persistent_workers=workers > 0,
    )
    return {
        "train": make(TorchImages(data.train, recipe, train=True), shuffle=True),
        "test": make(TorchImages(data.test, recipe, train=False)),
    }


class TorchImages:
    """A split as torchvision has it: Pillow images, transformed one by one.

    Args:
        source: The split, in memory.
        recipe: Config with the sections `augment` and `normalize`.
        train: Augments the images.
    """

    def __init__(self, source: Any, recipe: Any, *, train: bool) -> None:
        self._images, self._labels = source.images, source.labels.tolist()
        self._augment = recipe.augment if train else None
        self._mean, self._std = (
            torch.tensor(values).reshape(3, 1, 1)
            for values in (recipe.normalize.mean, recipe.normalize.std)
        )

    def __len__(self) -> int:
        """The number of images."""
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Returns a normalised image, float32 `[3, H, W]`, and its label."""
        image = Image.fromarray(self._images[index])
        if self._augment:
            image = _flip_and_crop(image, self._augment)
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        x = x.float().div_(255)
        if self._augment:
            _erase(x, self._augment)
        return x.sub_(self._mean).div_(self._std), self._labels[index]


def _flip_and_crop(image: Image.Image, augment: Any) -> Image.Image:
    """Transforms a Pillow image."""
    if random.random() < augment.flip_probability:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    padding, (width, height) = augment.crop_padding_px, image.size
    left, top = (random.randint(0, 2 * padding) for _ in range(2))
    padded = ImageOps.expand(image, padding, fill=0)
    return padded.crop((left, top, left + width, top + height))


def _erase(x: Tensor, augment: Any) -> None:
    """Makes a rectangle of `[3, H, W]` black, as torchvision's RandomErasing does."""
    if random.random() >= augment.erase_probability:
        return
    _, H, W = x.shape
    low, high = (math.log(aspect) for aspect in augment.erase_aspect)
    for _ in range(10):
        area = H * W * random.uniform(*augment.erase_area)
        aspect = math.exp(random.uniform(low, high))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < H and w < W:
            row, column = random.randint(0, H - h), random.randint(0, W - w)
            x[:, row : row + h, column : column + w] = 0
            return
