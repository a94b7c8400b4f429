"""Annotations of objects: COCO's JSON, Pascal VOC's XML, YOLO's text.

Each reader returns what stands in its files, checked for what can be known without
the images. The files may come from anywhere: whatever is wrong with one is one line.
"""

import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np

from jaxattn.data.boxes import Annotated, Objects, Size
from jaxattn.errors import UserError, reason, reraise_machine_fault
from jaxattn.text import printable, some_of

# A box further beyond its image, in pixels, is told of when it is cut.
_LENIENCY_PX = 1.0


class Marked(NamedTuple):
    """An object as its file has it: a class by name or number, and its box."""

    label: Any
    box: tuple[float, float, float, float]  # x1, y1, x2, y2
    ignored: bool = False
    area: float = float("nan")


class Counts:
    """What was done to boxes, counted for the notes of a data set."""

    def __init__(self) -> None:
        self.empty = self.cut = self.ignored = 0

    def notes(self, split: str) -> list[str]:
        """Returns a line for each kind that there is."""
        lines = {
            "boxes of no width or height left out": self.empty,
            "boxes cut at the edge of their image": self.cut,
            "crowds or difficult objects, not learnt and not tested": self.ignored,
        }
        return [f"{split}: {count:,} {text}" for text, count in lines.items() if count]


def annotate(
    path: str,
    marked: Sequence[Marked],
    classes: Mapping[Any, int],
    size: Size | None,
    origin: str,
    counts: Counts,
) -> Annotated:
    """Returns an image and its objects, whose boxes lie in it.

    Args:
        path: The image file.
        marked: Its objects.
        classes: The number of each class by what `marked` calls it.
        size: Height and width of the image as the annotations say; None for boxes in
            shares of it.
        origin: What errors call the annotations.
        counts: Of boxes that were left out, cut or ignored.

    Raises:
        UserError: A class is unknown, or a box inverted or outside the image.
    """
    boxes = np.array([m.box for m in marked], np.float64).reshape(-1, 4)
    for m in marked:
        if m.label not in classes:
            known = some_of([printable(str(name)) for name in classes], 10)
            name = printable(str(m.label))
            raise UserError(f"{origin}: unknown class {name}; must be one of {known}")
    height, width = size or (1, 1)
    _refuse(origin, boxes, ~np.isfinite(boxes).all(1), "is not finite")
    is_inverted = (boxes[:, 2] < boxes[:, 0]) | (boxes[:, 3] < boxes[:, 1])
    _refuse(origin, boxes, is_inverted, "is inverted; must have x1 < x2 and y1 < y2")
    most = np.array([width, height] * 2, np.float64)
    is_outside = (boxes[:, :2] >= most[:2]).any(1) | (boxes[:, 2:] <= 0).any(1)
    is_empty = (boxes[:, 2:] <= boxes[:, :2]).any(1)
    where = f"of {width} x {height} pixels" if size else "from 0 to 1"
    wrong = is_outside & ~is_empty
    _refuse(origin, boxes, wrong, f"is outside the image, {where}")
    inside = np.clip(boxes, 0, most)
    leniency = _LENIENCY_PX if size else 0.01
    objects = Objects(
        boxes=inside,
        classes=np.array([classes[m.label] for m in marked], np.int32),
        ignored=np.array([m.ignored for m in marked], bool),
        areas=np.array([m.area for m in marked], np.float64),
    ).take(np.asarray(~is_empty))
    counts.empty += int(is_empty.sum())
    counts.cut += int((abs(inside - boxes)[~is_empty] > leniency).any(1).sum())
    counts.ignored += int(objects.ignored.sum())
    return Annotated(path, objects, size)


def _refuse(origin: str, boxes: np.ndarray, wrong: Any, why: str) -> None:
    if wrong.any():
        box = ", ".join(f"{side:g}" for side in boxes[int(np.argmax(wrong))])
        more = int(wrong.sum()) - 1
        others = f" (and {more} more)" if more else ""
        raise UserError(f"{origin}: the box x1, y1, x2, y2 = {box} {why}{others}")


# COCO -------------------------------------------------------------------------------


class CocoFile(NamedTuple):
    """A JSON file of COCO's kind: categories by id, and images with their objects.

    Attributes:
        names: Of the categories, by their id, sorted.
        images: File name, height and width, and objects of each.
    """

    names: dict[int, str]
    images: list[tuple[str, Size, list[Marked]]]


def is_coco(path: pathlib.Path) -> bool:
    """Returns whether a JSON file has what those of COCO's kind have.

    Raises:
        UserError: It cannot be read.
    """
    try:
        content = json.loads(_read(path))
    except ValueError:
        return False
    return isinstance(content, dict) and {"images", "annotations"} <= content.keys()


def read_coco(path: pathlib.Path) -> CocoFile:
    """Reads a JSON file of COCO's kind.

    Args:
        path: With `images`, `annotations` and `categories`.

    Raises:
        UserError: It cannot be read, or lacks something.
    """
    try:
        content = json.loads(_read(path))
        names = {int(c["id"]): str(c["name"]) for c in content["categories"]}
        objects: dict[int, list[Marked]] = {}
        images = {}
        for image in content["images"]:
            size = int(image["height"]), int(image["width"])
            images[image["id"]] = str(image["file_name"]), size
            objects[image["id"]] = []
        for annotation in content["annotations"]:
            image_id = annotation["image_id"]
            if image_id not in objects:
                raise ValueError(f"annotation of image {image_id}, which is not there")
            x, y, w, h = map(float, annotation["bbox"])
            box = (x, y, x + w, y + h)
            is_crowd = bool(annotation.get("iscrowd", 0))
            area = float(annotation.get("area", "nan"))
            marked = Marked(int(annotation["category_id"]), box, is_crowd, area)
            objects[image_id].append(marked)
    except UserError:
        raise
    except Exception as error:
        reraise_machine_fault(error)
        lacks = f"lacks {error}" if isinstance(error, KeyError) else reason(error)
        raise UserError(f"{path}: not annotations as COCO's ({lacks})") from error
    listed = [(*images[i], objects[i]) for i in images]
    return CocoFile(dict(sorted(names.items())), listed)


# Pascal VOC -------------------------------------------------------------------------


def read_voc(path: pathlib.Path) -> tuple[Size | None, list[Marked]]:
    """Reads an XML file of Pascal VOC's kind.

    Its pixels count from 1, and the last one of a box belongs to it. A box from a pixel
    to the same one, as a click leaves it, has no size here.

    Args:
        path: With an `annotation` of `object`s, each a `name` and a `bndbox`.

    Returns:
        Height and width, None if the file does not say; and the objects.

    Raises:
        UserError: It cannot be read, lacks something, or declares entities.
    """
    try:
        root = parse_xml(_read(path))
        if root.tag != "annotation":
            raise ValueError(f"its root is {root.tag}, must be annotation")
        width, height = (int(float(_text(root, f"size/{k}", "0"))) for k in _SIDES)
        size = (height, width) if min(height, width) > 0 else None
        objects = [_voc_object(item) for item in root.iter("object")]
    except UserError:
        raise
    except Exception as error:
        reraise_machine_fault(error)
        why = printable(reason(error))
        raise UserError(f"{path}: not annotations as Pascal VOC's ({why})") from error
    return size, objects


_SIDES = ("width", "height")


def _voc_object(item: ElementTree.Element) -> Marked:
    x1, y1, x2, y2 = (
        float(_text(item, f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax")
    )
    left, top = x1 - 1, y1 - 1
    if x2 <= x1 or y2 <= y1:  # to be left out, or inverted
        left, top = x1, y1
    is_difficult = _text(item, "difficult", "0").strip() == "1"
    return Marked(_text(item, "name").strip(), (left, top, x2, y2), is_difficult)


def _text(item: ElementTree.Element, path: str, default: str | None = None) -> str:
    found = item.findtext(path) or default
    if found is None:
        raise ValueError(f"{item.tag} without {path}")
    return found


def parse_xml(content: bytes) -> ElementTree.Element:
    """Returns the root of an XML document, which must declare no entities.

    Entities that stand for others can fill any memory, and others read files.

    Raises:
        ValueError: It has a document type, where entities are declared.
        xml.parsers.expat.ExpatError: It is no XML.
    """
    builder, parser = ElementTree.TreeBuilder(), expat.ParserCreate()

    def refuse(*_: Any) -> None:
        raise ValueError("has a document type (DOCTYPE); must have none")

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.Parse(content, True)
    return builder.close()


# YOLO -------------------------------------------------------------------------------


def read_yolo(path: pathlib.Path) -> list[Marked]:
    """Reads a text file of YOLO's kind, boxes in shares of the image.

    Args:
        path: A line for each object: number of its class, x and y of its centre, width
            and height. A file that is not there is an image without objects.

    Raises:
        UserError: It cannot be read, or a line is not of five numbers.
    """
    if not path.exists():
        return []
    objects = []
    for number, line in enumerate(_read(path).decode(errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            label, x, y, w, h = line.split()
            x, y, w, h = map(float, (x, y, w, h))
            marked = Marked(
                int(label), (x - w / 2, y - h / 2, x + w / 2, y + h / 2), False
            )
        except ValueError as error:
            raise UserError(
                f"{path}: line {number}: {printable(line[:60])!r} must be a class and"
                " four numbers: x, y, width and height of the box"
            ) from error
        objects.append(marked)
    return objects


def read_yolo_names(files: Iterable[pathlib.Path]) -> list[str] | None:
    """Returns the names of the classes in the first file that has them.

    Args:
        files: `data.yaml` with an entry `names`, or text with a name on each line.

    Raises:
        UserError: The first that is there has none.
    """
    path = next((path for path in files if path.is_file()), None)
    if path is None:
        return None
    text = _read(path).decode(errors="replace")
    if path.suffix.lower() not in (".yaml", ".yml"):
        return [line.strip() for line in text.splitlines() if line.strip()]
    import yaml

    try:
        names = yaml.safe_load(text)["names"]
        named = dict(enumerate(names) if isinstance(names, list) else names.items())
        return [str(named[i]) for i in range(len(named))]
    except Exception as error:
        reraise_machine_fault(error)
        raise UserError(
            f"{path}: has no names of classes; must have an entry names, a list"
        ) from error


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        return pathlib.Path(path).read_bytes()
    except OSError as error:
        reraise_machine_fault(error)
        raise UserError(f"{path}: not readable ({error.strerror})") from error
