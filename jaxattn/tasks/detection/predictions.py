"""What was found as files: COCO's JSON, a table, and photos with their boxes.

Boxes are in the pixels of the photos, whatever size the network was shown.
"""

import csv
import io
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxattn import viz
from jaxattn.atomic import require_writable, write_atomically
from jaxattn.data.images import read_size
from jaxattn.data.preprocess import Canvas, Frame, ImageFiles
from jaxattn.data.source import Source
from jaxattn.tasks.detection.methods import Decision
from jaxattn.tasks.detection.metrics import have_area
from jaxattn.tasks.detection.report import count_classes
from jaxattn.tasks.pictures import file_names, keep_photos, write_png

JSON, TABLE, PHOTOS = "detections.json", "detections.csv", "photos"
"""What a folder of predictions holds."""

HEADER = ("ID", "Label", "Score", "x1", "y1", "x2", "y2")
# Photos show what the network is as sure of; the files have all.
_LEAST_SCORE = 0.3


class Found(NamedTuple):
    """A photo, and what was found on it.

    Attributes:
        photo: uint8 `[h, w, C]`.
        boxes: float32 `[n, 4]`: x1, y1, x2, y2, pixels of the photo.
        scores: float32 `[n]`, falling.
        classes: int `[n]`.
    """

    photo: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray


def restored(decision: Decision, source: Source) -> Iterator[Found | None]:
    """Yields each photo and what was found on it; None where it could not be read.

    What was found wholly beside it, on the padding of its canvas, is left out.

    One at a time, for whole photos are large.

    Args:
        decision: About what the network was shown.
        source: The images.
    """
    for i in range(len(decision.counts)):
        if not isinstance(source, ImageFiles):
            yield Found(source[i]["image"], *_cut(decision, i))
        elif i in source.unread:
            yield None
        else:
            photo = source.photo(i)
            size = photo.shape[0], photo.shape[1]
            yield Found(photo, *_cut(decision, i, source.frame, size))


def _cut(
    decision: Decision,
    i: int,
    frame: Frame | None = None,
    size: tuple[int, int] = (0, 0),
) -> tuple[np.ndarray, ...]:
    """Boxes, scores and classes on a photo, without those beside it.

    Args:
        decision: What was found.
        i: Of the photo.
        frame: What the network was shown of it; None: all, as it is.
        size: Its height and width, with a frame.
    """
    count = int(decision.counts[i])
    boxes, *others = (values[i, :count] for values in decision[:3])
    if frame is not None:
        assert isinstance(frame, Canvas)  # as of all detectors
        boxes = frame.restore_boxes(boxes, *size)
    kept = have_area(boxes)
    return boxes[kept], *(values[kept] for values in others)


def tell_predictions(
    decision: Decision, source: Source, class_names: Sequence[str]
) -> list[str]:
    """Returns how many objects of each class each photo shows, of those that are sure.

    Args:
        decision: What was found.
        source: The images.
        class_names: The name of each class.
    """
    unread, told = getattr(source, "unread", ()), []
    for i in range(len(decision.counts)):
        if i in unread:
            told.append("not known")
            continue
        if isinstance(source, ImageFiles):
            cut = _cut(decision, i, source.frame, read_size(source.paths[i]))
        else:
            cut = _cut(decision, i)
        _, scores, classes = cut
        told.append(count_classes(classes[scores >= _LEAST_SCORE], class_names))
    return told


def write_predictions(
    folder: pathlib.Path,
    ids: Sequence[int] | Sequence[str],
    decision: Decision,
    class_names: Sequence[str],
    source: Source,
    *,
    names: bool,
) -> None:
    """Writes what was found on each photo, and the photos with their boxes.

    Args:
        folder: Where to; made if missing.
        ids: What each photo is called.
        decision: What was found.
        class_names: The name of each class.
        source: The images.
        names: Writes names of classes into the table in place of their numbers.

    Raises:
        UserError: If two photos would have one file, or a file cannot be written.
    """
    for file in (JSON, TABLE):
        require_writable(folder / file)
    images, annotations = [], []
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(HEADER)
    pictures = file_names(ids)
    keep_photos([folder / PHOTOS / picture for picture in pictures], source)
    files = zip(ids, pictures, restored(decision, source), strict=True)
    for own, name, found in files:
        if found is None:
            continue
        h, w = found.photo.shape[:2]
        image = {"id": len(images) + 1, "file_name": str(own), "height": h, "width": w}
        images.append(image)
        for box, score, k in zip(*found[1:], strict=True):
            x1, y1, x2, y2 = (round(float(side), 2) for side in box)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": int(k) + 1,
                    "bbox": [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)],
                    "area": round((x2 - x1) * (y2 - y1), 2),
                    "iscrowd": 0,
                    "score": round(float(score), 5),
                }
            )
            label = class_names[int(k)] if names else int(k)
            rows.writerow((own, label, f"{score:.5f}", x1, y1, x2, y2))
        write_png(folder / PHOTOS / name, _drawn(found, class_names))
    categories = [{"id": i, "name": name} for i, name in enumerate(class_names, 1)]
    content = {
        "images": images,
        "categories": categories,
        "annotations": annotations,
    }
    write_atomically(folder / JSON, json.dumps(content) + "\n")
    write_atomically(folder / TABLE, table.getvalue())


def _drawn(found: Found, class_names: Sequence[str]) -> object:
    """A photo with its boxes, as an image of Pillow."""
    sure = found.scores >= _LEAST_SCORE
    classes = found.classes[sure].tolist()
    labels = [
        f"{class_names[k]} {score:.2f}"
        for k, score in zip(classes, found.scores[sure], strict=True)
    ]
    colors = [viz.class_color(k) for k in classes]
    return viz.draw_boxes(found.photo, found.boxes[sure], labels, colors)
