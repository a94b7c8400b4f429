"""Image files in a folder with one folder per split and class."""

import itertools
import os
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxattn.data.crops import File, check_on_bad_image, make_crops, make_sources
from jaxattn.data.datasets.paths import existing
from jaxattn.data.images import find_images
from jaxattn.data.source import Data
from jaxattn.errors import UserError, reraise_machine_fault

_LAYOUT = "a folder with train/<class>/ and val/<class>/"


def load_imagefolder(
    name: str,
    *,
    path: str | None = None,
    image_size: int | None = None,
    resize_px: int | None = None,
    crop_scale: tuple[float, float] | None = None,
    crop_ratio: tuple[float, float] | None = None,
    on_bad_image: str | None = None,
) -> Data:
    """Loads image files from `train/<class>/` and `val/<class>/`.

    They are decoded when asked for, as RGB: in training a random crop (torchvision's
    `RandomResizedCrop`), in evaluation the centre of the scaled image. `val` is the
    test split.

    Args:
        name: What the data set is called.
        path: The folder that holds `train` and `val`.
        image_size: Height and width in pixels that images are cropped to (224).
        resize_px: Their shorter side in evaluation, before the crop; at least
            `image_size` (256/224 of it).
        crop_scale: Smallest and largest share of the area that a random crop takes
            (0.08, 1). A smallest share of 1 turns random crops off: training images
            are then shown as in evaluation.
        crop_ratio: Smallest and largest width / height of a random crop (3/4, 4/3).
        on_bad_image: What is done about an image that cannot be decoded. "error" ends
            the run, "skip" names it, trains on the next image of the split in its
            place, and leaves it out of evaluations ("error"). A file that cannot be
            opened is always an error.

    Raises:
        UserError: The data cannot be had, or a value is out of its range.
    """
    check_on_bad_image(on_bad_image)
    if path is None:
        raise UserError(f"data.path: needed with data.name={name}: {_LAYOUT}")
    crops = make_crops(image_size, resize_px, crop_scale, crop_ratio)
    found = read_folder(existing(path))
    train, test = make_sources(found.train, found.test, crops, on_bad_image)
    return Data(
        name=name,
        train=train,
        val=None,
        test=test,
        class_names=found.class_names,
        image_shape=crops.frame.image_shape,
        resize_px=crops.frame.resize_px,
    )


@dataclass(frozen=True, eq=False)
class FolderFiles:
    """Image files and their classes.

    Attributes:
        paths: The files.
        labels: int32 `[N]`.
    """

    paths: tuple[str, ...]
    labels: np.ndarray

    def __len__(self) -> int:
        """The number of files."""
        return len(self.paths)

    def __getitem__(self, index: int) -> File:
        """The file at a position."""
        path = self.paths[index]
        return File(path, int(self.labels[index]), path)


class Folder(NamedTuple):
    """The files of a folder with one folder per split and class."""

    train: FolderFiles
    test: FolderFiles
    class_names: tuple[str, ...]


def read_folder(path: pathlib.Path) -> Folder:
    """Finds the images of `train/<class>/` and `val/<class>/`; decodes none.

    Classes are the folders of `train`, sorted by name. Images may lie in folders inside
    those; hidden files and folders are skipped.

    Args:
        path: The folder that holds `train` and `val`.

    Returns:
        The files of both splits; `val` is the test split.

    Raises:
        UserError: A folder is missing, a class is empty or the only one, or the splits
            have other classes.
    """
    names = {split: _class_names(path, split) for split in ("train", "val")}
    classes = names["train"]
    if len(classes) == 1:
        raise UserError(
            f"data.path={path}: train holds one class, {classes[0]}; must hold at "
            "least two"
        )
    for split, other in (("val", "train"), ("train", "val")):
        if lacking := [name for name in names[split] if name not in set(names[other])]:
            raise UserError(
                f"data.path={path}: {other} lacks classes of {split}: {_list(lacking)}"
            )
    return Folder(
        train=_find_files(path / "train", classes),
        test=_find_files(path / "val", classes),
        class_names=classes,
    )


def _class_names(path: pathlib.Path, split: str) -> tuple[str, ...]:
    """The folders of a split, sorted."""
    if not (path / split).is_dir():
        raise UserError(f"data.path={path}: holds no folder {split}; must be {_LAYOUT}")
    try:
        with os.scandir(path / split) as entries:
            names = [e.name for e in entries if e.is_dir() and e.name[0] != "."]
    except OSError as error:
        reraise_machine_fault(error)
        raise UserError(
            f"data.path={path}: {split} is not readable ({error.strerror})"
        ) from error
    if not names:
        raise UserError(f"data.path={path}: {split} holds no folder; must be {_LAYOUT}")
    return tuple(sorted(names))


def _find_files(folder: pathlib.Path, class_names: tuple[str, ...]) -> FolderFiles:
    try:
        # As strings: a million paths as objects are slow to pickle, and large.
        found = [[str(p) for p in find_images(folder / name)] for name in class_names]
    except UserError as error:  # an empty class
        raise UserError(f"data.path: {error}") from error
    counts = [len(files) for files in found]
    labels = np.repeat(np.arange(len(found), dtype=np.int32), counts)
    return FolderFiles(tuple(itertools.chain(*found)), labels)


def _list(names: Sequence[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
