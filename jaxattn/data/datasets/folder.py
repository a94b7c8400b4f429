"""Image files in a folder with one folder per split and class."""

import collections
import os
import pathlib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxattn.data.crops import File, check_on_bad_image, make_crops, make_sources
from jaxattn.data.datasets.paths import existing
from jaxattn.data.files import (
    Found,
    describe_left_out,
    fingerprint,
    require_images,
    scan,
)
from jaxattn.data.source import Data, describe_numbering
from jaxattn.errors import UserError, reraise_machine_fault
from jaxattn.text import some_of

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
        files=found.fingerprint,
        notes=found.notes,
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
    """The files of a folder with one folder per split and class.

    Attributes:
        train: Training images.
        test: Test images, those of `val`.
        class_names: The folders of `train`.
        fingerprint: By split and class, such as "train/cat": how many files of how many
            bytes there are, and a digest of their names and sizes.
        notes: What a person should know of how they were found, a line each.
    """

    train: FolderFiles
    test: FolderFiles
    class_names: tuple[str, ...]
    fingerprint: Mapping[str, str]
    notes: tuple[str, ...]


def read_folder(path: pathlib.Path) -> Folder:
    """Finds the images of `train/<class>/` and `val/<class>/`; decodes none.

    Classes are the folders of `train`, sorted by name. Which files inside them are
    images, `jaxattn.data.files.scan` says.

    Args:
        path: The folder that holds `train` and `val`.

    Returns:
        The files of both splits; `val` is the test split.

    Raises:
        UserError: A folder is missing, a class is empty or the only one, or the splits
            have other classes.
    """
    if not path.is_dir():
        raise UserError(
            f"data.path={path}: is a file, which must be unpacked if it is an archive;"
            f" must be {_LAYOUT}"
        )
    folders = {split: _class_folders(path, split) for split in ("train", "val")}
    classes = folders["train"]
    if len(classes) == 1:
        (name,) = classes.values()
        raise UserError(
            f"data.path={path}: train holds one class, {name}; must hold at least two"
        )
    for split, other in (("val", "train"), ("train", "val")):
        if lacking := [v for k, v in folders[split].items() if k not in folders[other]]:
            raise UserError(
                f"data.path={path}: {other} lacks classes of {split}:"
                f" {some_of(lacking)}"
            )
    found = {
        split: [_scan(path / split / folders[split][name]) for name in classes]
        for split in folders
    }
    names = tuple(classes.values())
    numbering = describe_numbering(names)
    return Folder(
        train=_files(path / "train", classes.values(), found["train"]),
        test=_files(path / "val", [folders["val"][k] for k in classes], found["val"]),
        class_names=names,
        fingerprint={
            f"{split}/{name}": fingerprint(own)
            for split in found
            for name, own in zip(names, found[split], strict=True)
        },
        notes=(*_left_out(found), *([numbering] if numbering else [])),
    )


def _class_folders(path: pathlib.Path, split: str) -> dict[str, str]:
    """The folders of a split, sorted; by how they read, whatever way accents are put.

    A Mac writes an accent as a letter of its own (Unicode's NFD), others do not (NFC).
    """
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
    folders: dict[str, str] = {}
    for name in sorted(names):
        if (other := folders.setdefault(_composed(name), name)) != name:
            raise UserError(
                f"data.path={path}: {split} holds two folders that read alike, {name}:"
                f" {other!a} and {name!a}; put their images into one"
            )
    return folders


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _scan(folder: pathlib.Path) -> Found:
    try:
        found = scan(folder)
        require_images(folder, found)
    except UserError as error:
        raise UserError(f"data.path: {error}") from error
    return found


def _files(
    root: pathlib.Path, folders: Iterable[str], found: Sequence[Found]
) -> FolderFiles:
    # As strings: a million paths as objects are slow to pickle, and large.
    heads = [f"{root / folder}/" for folder in folders]
    paths = [
        head + path
        for head, own in zip(heads, found, strict=True)
        for path in own.paths
    ]
    counts = [len(own.paths) for own in found]
    labels = np.repeat(np.arange(len(found), dtype=np.int32), counts)
    return FolderFiles(tuple(paths), labels)


def _left_out(found: Mapping[str, Sequence[Found]]) -> list[str]:
    """What was left out of each split, a line each."""
    lines = []
    for split, classes in found.items():
        total: collections.Counter[str] = collections.Counter()
        for own in classes:
            total.update(own.left_out)
        if total:
            lines.append(f"{split}: {describe_left_out(total)}")
    return lines
