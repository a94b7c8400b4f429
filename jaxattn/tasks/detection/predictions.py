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
from jaxattn.data.preprocess import Canvas, ImageFiles
from jaxattn.data.source import Source
from jaxattn.tasks.detection.methods import Decision
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

    One at a time, for whole photos are large.

    Args:
        decision: About what the network was shown.
        source: The images.
    """
    for i, count in enumerate(decision.counts):
        boxes, scores, classes = (values[i, :count] for values in decision[:3])
        if not isinstance(source, ImageFiles):
            photo = source[i]["image"]
        elif i in source.unread:
            yield None
            continue
        else:
            photo = source.photo(i)
            assert isinstance(source.frame, Canvas)  # as of all detectors
            boxes = source.frame.restore_boxes(boxes, *photo.shape[:2])
        yield Found(photo, boxes, scores, classes)


def tell_predictions(
    decision: Decision, source: Source, class_names: Sequence[str]
) -> list[str]:
    """Returns how many objects of each class each photo shows, of those that are sure.

    Args:
        decision: What was found.
        source: The images.
        class_names: The name of each class.
    """
    unread = getattr(source, "unread", ())
    sure = (
        classes[:count][scores[:count] >= _LEAST_SCORE]
        for _, scores, classes, count in zip(*decision, strict=True)
    )
    return [
        "not known" if i in unread else count_classes(classes, class_names)
        for i, classes in enumerate(sure)
    ]


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
