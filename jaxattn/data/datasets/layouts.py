"""Which files of a folder are images, and which are their label maps.

Known are the layout of our own, `images/<split>/*` and `annotations/<split>/*.png`;
that of ADE20K's challenge, which is the same with its list of classes beside; and that
of Pascal VOC, `JPEGImages`, `SegmentationClass` and `ImageSets/Segmentation/*.txt`.
"""

import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from jaxattn.data.datasets.classes import Classes
from jaxattn.data.files import Found, describe_left_out, fingerprint, scan
from jaxattn.data.labelled_images import LabelledImage
from jaxattn.errors import UserError, reraise_machine_fault
from jaxattn.text import some_of

LAYOUTS = (
    "a folder with images/<split>/ and annotations/<split>/, split train, val or test,"
    " or of Pascal VOC"
)

_SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "validation"),
    "test": ("test", "testing"),
}
_ADE20K_CLASSES = "objectInfo150.txt"
_VOC_FOLDERS = ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation")
_VOC_CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)


class Layout(NamedTuple):
    """The files of a data set.

    Attributes:
        root: The folder.
        splits: By "train", "val" and "test", those that there are.
        fingerprint: By split and kind: how many files of how many bytes there are, and
            a digest of their names and sizes.
        classes: Where the layout says them.
        reduce_zero_label: Whether 0 is ignored in its label maps.
        notes: What a person should know of how they were found, a line each.
    """

    root: pathlib.Path
    splits: Mapping[str, tuple[LabelledImage, ...]]
    fingerprint: Mapping[str, str]
    classes: Classes | None = None
    reduce_zero_label: bool = False
    notes: tuple[str, ...] = ()


def find_layout(root: pathlib.Path) -> Layout:
    """Finds images and their label maps; decodes none.

    Raises:
        UserError: If the folder is none that is known, it lacks a split, a split is
            empty, or an image or a label map is without the other.
    """
    if all((root / name).is_dir() for name in _VOC_FOLDERS):
        return _find_voc(root)
    kinds = ("images", "annotations")
    if lacking := [name for name in kinds if not (root / name).is_dir()]:
        raise UserError(
            f"data.path={root}: holds no folder {lacking[0]}; must be {LAYOUTS}"
        )
    splits, prints, notes = {}, {}, []
    for split, names in _SPLITS.items():
        found = {k: [n for n in names if (root / k / n).is_dir()] for k in kinds}
        if not found["annotations"]:
            notes += [
                f"left out images/{n}: has no label maps" for n in found["images"]
            ]
            continue
        name = found["annotations"][0]
        if name not in found["images"]:
            raise UserError(f"data.path={root}: holds no folder images/{name}")
        images, labels = (_scan(root / kind / name) for kind in kinds)
        splits[split] = _pair(root, name, images, labels)
        prints |= {
            f"{split}/{kind}": fingerprint(own)
            for kind, own in zip(kinds, (images, labels), strict=True)
        }
        if images.left_out:
            notes.append(f"images/{name}: {describe_left_out(images.left_out)}")
    if "train" not in splits or len(splits) == 1:
        wanted = "train" if "train" not in splits else "val or test"
        raise UserError(f"data.path={root}: annotations holds no folder {wanted}")
    is_ade20k = (root / _ADE20K_CLASSES).is_file()
    if is_ade20k:
        notes.append("0 is ignored in ADE20K's label maps (data.reduce_zero_label)")
    return Layout(
        root,
        splits,
        prints,
        classes=_read_ade20k(root / _ADE20K_CLASSES) if is_ade20k else None,
        reduce_zero_label=is_ade20k,
        notes=tuple(notes),
    )


def _scan(folder: pathlib.Path) -> Found:
    try:
        return scan(folder)
    except UserError as error:
        raise UserError(f"data.path: {error}") from error


def _pair(
    root: pathlib.Path, split: str, images: Found, labels: Found
) -> tuple[LabelledImage, ...]:
    """Pairs images and label maps by their names, but for the ending."""
    folders = root / "images" / split, root / "annotations" / split
    maps = [path for path in labels.paths if path.lower().endswith(".png")]
    for folder, paths in zip(folders, (images.paths, maps), strict=True):
        if not paths:
            raise UserError(
                f"data.path: {folder}: is empty, must hold images"
                " (annotations/<split>: label maps, .png)"
            )
    of_images = _by_stem(folders[0], images.paths)
    of_maps = _by_stem(folders[1], maps)
    _require_others(folders[0], of_images, "a label map", folders[1], of_maps)
    _require_others(folders[1], of_maps, "an image", folders[0], of_images)
    return tuple(
        LabelledImage(str(folders[0] / path), str(folders[1] / of_maps[stem]))
        for stem, path in of_images.items()
    )


def _by_stem(folder: pathlib.Path, paths: Iterable[str]) -> dict[str, str]:
    by_stem: dict[str, str] = {}
    for path in paths:
        stem = os.path.splitext(path)[0]
        if (other := by_stem.setdefault(stem, path)) != path:
            raise UserError(
                f"data.path: {folder}: holds {other} and {path}, which differ in their"
                " ending alone; one label map cannot be of both"
            )
    return by_stem


def _require_others(
    folder: pathlib.Path,
    own: Mapping[str, str],
    what: str,
    where: pathlib.Path,
    others: Mapping[str, str],
) -> None:
    if lacking := [path for stem, path in own.items() if stem not in others]:
        raise UserError(
            f"data.path: {folder}: without {what} of the same name in {where}:"
            f" {some_of(lacking)}"
        )


def _read_ade20k(path: pathlib.Path) -> Classes:
    """Reads the table that comes with ADE20K's challenge; of synonyms the first."""
    try:
        rows = [line.split("\t") for line in path.read_text().splitlines() if line]
        column = [cell.strip() for cell in rows[0]].index("Name")
        names = [row[column].strip() for row in rows[1:]]
    except (OSError, ValueError, IndexError) as error:
        reraise_machine_fault(error)
        raise UserError(
            f"{path}: not ADE20K's table of classes, with a column Name"
        ) from error
    shortest = [name.split(",")[0].split(";")[0] for name in names]
    # Two are called "screen", of other synonyms each.
    unique = [
        s if shortest.count(s) == 1 else name
        for s, name in zip(shortest, names, strict=True)
    ]
    return Classes(tuple(unique))


def _find_voc(root: pathlib.Path) -> Layout:
    images, labels, lists = (root / name for name in _VOC_FOLDERS)
    splits, prints = {}, {}
    found = {"images": _scan(images), "annotations": _scan(labels)}
    sizes = {k: dict(zip(f.paths, f.sizes, strict=True)) for k, f in found.items()}
    folders = {"images": images, "annotations": labels}
    stems = {kind: _by_stem(folders[kind], own) for kind, own in sizes.items()}
    for split in ("train", "val"):
        names = _read_list(lists / f"{split}.txt")
        for kind, folder in folders.items():
            if lacking := [name for name in names if name not in stems[kind]]:
                raise UserError(
                    f"data.path: {lists / split}.txt names what {folder} does not hold:"
                    f" {some_of(lacking)}"
                )
            paths = [stems[kind][name] for name in names]
            own = Found(paths, [sizes[kind][path] for path in paths], {})
            prints[f"{split}/{kind}"] = fingerprint(own)
        splits[split] = tuple(
            LabelledImage(
                str(images / stems["images"][name]),
                str(labels / stems["annotations"][name]),
            )
            for name in names
        )
    return Layout(root, splits, prints, classes=Classes(_VOC_CLASSES))


def _read_list(path: pathlib.Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is no text in UTF-8") from error
    except OSError as error:
        reraise_machine_fault(error)
        raise UserError(f"{path}: not readable ({error.strerror})") from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise UserError(f"{path}: is empty, must name images, one a line")
    return names
