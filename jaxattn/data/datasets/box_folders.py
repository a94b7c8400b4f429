"""Photos with boxes in a folder of COCO's, Pascal VOC's or YOLO's kind."""

import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxattn.data import formats
from jaxattn.data.boxes import Annotated
from jaxattn.data.datasets.annotations import (
    Counts,
    Marked,
    annotate,
    is_coco,
    read_coco,
    read_voc,
    read_yolo,
    read_yolo_names,
)
from jaxattn.data.images import read_size
from jaxattn.errors import UserError
from jaxattn.text import printable, some_of

LAYOUTS = (
    "annotations/*.json (COCO), Annotations/*.xml with JPEGImages (Pascal VOC), or"
    " images and labels/*.txt (YOLO)"
)
_SPLITS = {"train": "train", "val": "val", "valid": "val", "test": "test"}

Marks = list[tuple[str, Any, list[Marked], str]]
"""Of a split: image file, its size, its objects and what errors call those."""


class Folder(NamedTuple):
    """What a folder holds.

    Attributes:
        splits: Of "train", "val" and "test" those that there are.
        class_names: The name of each class.
        notes: What a person should know of how they were found, a line each.
    """

    splits: dict[str, list[Annotated]]
    class_names: tuple[str, ...]
    notes: list[str]


def read_folder(path: pathlib.Path) -> Folder:
    """Finds the photos and the boxes of a folder; decodes none.

    Args:
        path: Laid out as COCO's, Pascal VOC's or YOLO's.

    Raises:
        UserError: It is neither, or something in it is wrong.
    """
    if not path.is_dir():
        raise UserError(f"data.path={path}: is a file; must be a folder: {LAYOUTS}")
    for read in (_find_coco, _find_voc, _find_yolo):
        if (folder := read(path)) is not None:
            if "train" not in folder.splits:
                found = ", ".join(folder.splits) or "no split"
                raise UserError(f"data.path={path}: holds {found}, must hold train")
            return folder
    raise UserError(f"data.path={path}: holds no annotations; must hold {LAYOUTS}")


def _split_of(name: str) -> str | None:
    """The split that a file or folder is named after: train2017, valid, ..."""
    found = re.search(r"(?:^|[^a-z])(train|valid|val|test)(?![a-z])", name.lower())
    return _SPLITS[found[1]] if found else None


def _folders(path: pathlib.Path) -> dict[str, pathlib.Path]:
    """The folders in a folder, by their name in small letters."""
    return {p.name.lower(): p for p in sorted(path.iterdir()) if p.is_dir()}


def _split_folders(path: pathlib.Path) -> dict[str, pathlib.Path]:
    """The folders of a folder that are named after splits; itself if there is none."""
    found = {_split_of(name): folder for name, folder in _folders(path).items()}
    found.pop(None, None)
    return {str(split): folder for split, folder in found.items()} or {"train": path}


def _annotate(
    path: pathlib.Path, marks: Mapping[str, Marks], classes: Mapping[Any, int]
) -> tuple[dict[str, list[Annotated]], list[str]]:
    """Returns the splits, their boxes checked, and what is to be said of them."""
    splits, notes = {}, []
    for split, own in marks.items():
        missing = [file for file, *_ in own if not os.path.isfile(file)]
        if missing:
            names = some_of([os.path.relpath(file, path) for file in missing], 3)
            raise UserError(
                f"data.path={path}: {len(missing)} of {len(own)} images of {split} are"
                f" missing: {printable(names)}"
            )
        counts = Counts()
        splits[split] = [
            annotate(file, marked, classes, size, origin, counts)
            for file, size, marked, origin in own
        ]
        if not sum(len(file.objects.boxes) for file in splits[split]):
            raise UserError(
                f"data.path={path}: none of the {len(own)} images of {split} has a box;"
                " must hold at least one"
            )
        notes += counts.notes(split)
    return splits, notes


def _find_coco(path: pathlib.Path) -> Folder | None:
    """COCO: `annotations/instances_train2017.json` with `train2017/`, and the like."""
    places = [path, *_folders(path).values()]
    found = [file for place in places for file in sorted(place.glob("*.json"))]
    files: dict[str, pathlib.Path] = {}
    # Of COCO's own files those of key points and captions are others.
    instances = [file for file in found if file.name.startswith("instances_")]
    for file in instances or found:
        beside = file.parent.name if file.parent != path else ""
        split = _split_of(file.stem) or _split_of(beside)
        if split is None and len(found) == 1 and is_coco(file):
            split = "train"
        if split is None:
            continue
        if other := files.get(split):
            raise UserError(
                f"data.path={path}: two files of {split}, {other.name} and {file.name};"
                " must be one"
            )
        files[split] = file
    if not files:
        return None
    read = {split: read_coco(file) for split, file in files.items()}
    first = "train" if "train" in read else next(iter(read))
    names = read[first].names
    for split, own in read.items():
        if own.names != names:
            raise UserError(
                f"{files[split]}: its categories are others than those of"
                f" {files[first].name}; must be the same"
            )
    marks: dict[str, Marks] = {}
    for split, own in read.items():
        file = files[split]
        root = _image_folder(path, file, split, [n for n, *_ in own.images])
        marks[split] = [
            (str(root / name), size, marked, f"{file}: {printable(name)}")
            for name, size, marked in own.images
        ]
    numbers = {category: i for i, category in enumerate(names)}
    splits, notes = _annotate(path, marks, numbers)
    return Folder(splits, tuple(names.values()), notes)


def _image_folder(
    path: pathlib.Path, file: pathlib.Path, split: str, names: Sequence[str]
) -> pathlib.Path:
    """Where the images of a JSON file are: the first place that has one of them."""
    stem = file.stem.removeprefix("instances_")
    near = (file.parent, path / stem, path / split, path)
    inner = (path / "images" / stem, path / "images" / split, path / "images")
    places = [*near, *inner]
    for place in places:
        if any((place / name).is_file() for name in names[:10]):
            return place
    return path / stem


def _find_voc(path: pathlib.Path) -> Folder | None:
    """Pascal VOC: `Annotations/`, `JPEGImages/` and `ImageSets/Main/train.txt`.

    Without lists of the splits folders of that name hold them, or all is for training.
    """
    folders = _folders(path)
    marks: dict[str, Marks] = {}
    if "annotations" in folders and any(folders["annotations"].glob("*.xml")):
        annotations = folders["annotations"]
        images = folders.get("jpegimages", folders.get("images", annotations))
        for split, stems in _image_sets(path, annotations).items():
            marks[split] = _read_voc(annotations, images, stems)
    else:
        for split, folder in _split_folders(path).items():
            if stems := sorted(file.stem for file in folder.glob("*.xml")):
                marks[split] = _read_voc(folder, folder, stems)
    if not marks:
        return None
    train = marks.get("train") or next(iter(marks.values()))
    names = sorted({m.label for _, _, marked, _ in train for m in marked})
    classes = {name: i for i, name in enumerate(names)}
    splits, notes = _annotate(path, marks, classes)
    return Folder(splits, tuple(names), notes)


def _image_sets(
    path: pathlib.Path, annotations: pathlib.Path
) -> Mapping[str, Sequence[str]]:
    """The images of each split by the stem of their files."""
    lists = path / "ImageSets" / "Main"
    names = ("train", "trainval", "val", "test")
    found = {
        split: list(filter(None, map(str.strip, text.split("\n"))))
        for split in names
        if (text := _read_text(lists / f"{split}.txt")) is not None
    }
    both = found.pop("trainval", [])
    if both and "train" not in found:
        val = {*found.get("val", ())}
        found = {"train": [stem for stem in both if stem not in val], **found}
    return found or {"train": sorted(file.stem for file in annotations.glob("*.xml"))}


def _read_text(file: pathlib.Path) -> str | None:
    if not file.is_file():
        return None
    return file.read_text(encoding="utf-8", errors="surrogateescape")


def _read_voc(
    annotations: pathlib.Path, images: pathlib.Path, stems: Sequence[str]
) -> Marks:
    # By the stem: what stands in the file of its image's name is often wrong.
    files = _images_by_stem(images)
    marks: Marks = []
    for stem in stems:
        file = annotations / f"{stem}.xml"
        size, marked = read_voc(file)
        image = files.get(stem, str(images / f"{stem}.jpg"))
        if size is None and os.path.isfile(image):
            size = read_size(image)
        marks.append((image, size, marked, str(file)))
    return marks


def _images_by_stem(folder: pathlib.Path) -> dict[str, str]:
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    images = [name for name in names if formats.has_image_ending(name)]
    return {pathlib.Path(name).stem: str(folder / name) for name in reversed(images)}


def _find_yolo(path: pathlib.Path) -> Folder | None:
    """YOLO: `images/train/` with `labels/train/`, or `train/images` with its labels."""
    pairs: dict[str, tuple[pathlib.Path, pathlib.Path]] = {}
    folders = _folders(path)
    if {"images", "labels"} <= set(folders):
        for split, images in _split_folders(folders["images"]).items():
            is_all = images == folders["images"]
            labels = folders["labels"] / ("" if is_all else images.name)
            pairs[split] = images, labels
    else:
        for split, folder in _split_folders(path).items():
            inner = _folders(folder)
            if {"images", "labels"} <= set(inner):
                pairs[split] = inner["images"], inner["labels"]
    if not pairs:
        return None
    marks: dict[str, Marks] = {
        split: [
            (file, None, read_yolo(labels / f"{stem}.txt"), f"{labels / stem}.txt")
            for stem, file in sorted(_images_by_stem(images).items())
        ]
        for split, (images, labels) in pairs.items()
    }
    names = read_yolo_names(_name_files(path, pairs))
    if names is None:
        labels = (m.label for own in marks.values() for _, _, ms, _ in own for m in ms)
        names = [str(i) for i in range(max(labels, default=-1) + 1)]
    splits, notes = _annotate(path, marks, {i: i for i in range(len(names))})
    return Folder(splits, tuple(names), notes)


def _name_files(
    path: pathlib.Path, pairs: Mapping[str, tuple[pathlib.Path, pathlib.Path]]
) -> Iterable[pathlib.Path]:
    """Where the names of YOLO's classes may stand."""
    yield from (path / "data.yaml", path / "data.yml")
    yield from sorted([*path.glob("*.yaml"), *path.glob("*.yml")])
    for _, labels in pairs.values():
        yield from (labels / "classes.txt", labels.parent / "classes.txt")
    yield from (path / name for name in ("classes.txt", "obj.names"))
