"""COCO's metrics of boxes, by pycocotools alone, over all images at once.

Average precision is no sum over examples. So an evaluation collects what was found and
what is there, and the host judges both when the split is done, in the pixels of the
photos, by which COCO tells small objects from large ones.

Ignored objects are crowds to pycocotools: what overlaps with one is neither right nor
wrong, and none of them is missed. Of Pascal VOC's difficult objects that is nearly its
own rule; its average precision here takes the matches of COCO's evaluation.
"""

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxattn.errors import UserError

STATS = {
    "average_precision": "AP",
    "average_precision_50": "AP50",
    "average_precision_75": "AP75",
    "average_precision_small": "AP small",
    "average_precision_medium": "AP medium",
    "average_precision_large": "AP large",
    "average_recall_1": "AR, 1 detection",
    "average_recall_10": "AR, 10 detections",
    "average_recall_100": "AR, 100 detections",
    "average_recall_small": "AR small",
    "average_recall_medium": "AR medium",
    "average_recall_large": "AR large",
}
"""COCO's twelve numbers in its order, by key: what reports call them."""

_IOU_50, _ALL_AREAS, _MOST_DETECTIONS = 0, 0, -1  # places in pycocotools' arrays


@struct.dataclass
class EvalSums:
    """Sums over examples; adding two of them joins their examples.

    Attributes:
        count: Examples, int32.
        losses: Summed losses by name.
    """

    count: jax.Array
    losses: dict[str, jax.Array]

    def __add__(self, other: "EvalSums") -> "EvalSums":
        return jax.tree.map(jnp.add, self, other)


@struct.dataclass
class Predictions:
    """What was found in each example of a batch, and what is there.

    Attributes:
        boxes: float32 `[N, D, 4]`, pixels of the canvas.
        scores: float32 `[N, D]`, falling.
        classes: int32 `[N, D]`.
        counts: int32 `[N]`: how many of the D there are; 0 of padding.
        targets: Of the examples, as `jaxattn.data.boxes` has them.
        mask: bool `[N]`, False for padding.
    """

    boxes: Any
    scores: Any
    classes: Any
    counts: Any
    targets: Mapping[str, Any]
    mask: Any


class Scene(NamedTuple):
    """What is on a photo, and what was found there, in the photo's pixels.

    Attributes:
        boxes: float `[G, 4]`: x1, y1, x2, y2.
        classes: int `[G]`.
        ignored: bool `[G]`.
        areas: float `[G]`.
        found_boxes: float `[D, 4]`.
        found_scores: float `[D]`.
        found_classes: int `[D]`.
    """

    boxes: np.ndarray
    classes: np.ndarray
    ignored: np.ndarray
    areas: np.ndarray
    found_boxes: np.ndarray
    found_scores: np.ndarray
    found_classes: np.ndarray


def restore_boxes(
    boxes: np.ndarray, shown_size: np.ndarray, image_size: np.ndarray
) -> np.ndarray:
    """Returns boxes of a canvas as boxes of the photo on it, cut to it.

    Args:
        boxes: `[..., 4]`, pixels of the canvas.
        shown_size: Height and width of the photo on the canvas.
        image_size: Height and width of the photo.
    """
    scale = (np.asarray(image_size) / np.asarray(shown_size))[[1, 0, 1, 0]]
    most = np.asarray(image_size)[[1, 0, 1, 0]]
    return np.clip(np.asarray(boxes, np.float64) * scale, 0, most)


def have_area(boxes: np.ndarray) -> np.ndarray:
    """Whether each of boxes `[n, 4]` has any: what was found beside a photo has none.

    Args:
        boxes: Cut to the photo.
    """
    return np.all(boxes[:, :2] < boxes[:, 2:], axis=1)


def scenes(predictions: Predictions) -> Iterator[Scene]:
    """Yields what the examples of an evaluation are and were found to be.

    What was found wholly beside a photo, on the padding of its canvas, is left out.
    """
    p: Predictions = jax.tree.map(np.asarray, predictions)
    for i in np.flatnonzero(p.mask):
        own = {key: values[i] for key, values in p.targets.items()}
        sizes = own["shown_size"], own["image_size"]
        there, count = own["valid"], int(p.counts[i])
        found = restore_boxes(p.boxes[i, :count], *sizes)
        kept = have_area(found)
        yield Scene(
            boxes=restore_boxes(own["boxes"][there], *sizes),
            classes=own["classes"][there],
            ignored=own["ignored"][there],
            areas=own["areas"][there],
            found_boxes=found[kept],
            found_scores=p.scores[i, :count][kept],
            found_classes=p.classes[i, :count][kept],
        )


def evaluate_scenes(scenes: Sequence[Scene]) -> dict[str, Any]:
    """Returns COCO's numbers of what was found in photos.

    Args:
        scenes: All photos of a split, each once.

    Returns:
        The keys of `STATS`, floats in [0, 1], NaN where there is nothing to find;
        `average_precision_voc`, the mean over the classes of Pascal VOC's at IoU 0.5;
        by class, float64 `[K]`, NaN of one that is not there, `class_ap`,
        `class_ap_50`, `class_ap_voc` and `class_ar`; `support`, objects of each class
        that are not ignored, int64 `[K]`; `precision_50`, float64 `[101, K]`: at each
        hundredth of recall, IoU 0.5. K is as many as are there or were found.

    Raises:
        UserError: pycocotools is not installed.
    """
    try:
        from pycocotools.cocoeval import COCOeval
    except ModuleNotFoundError as error:
        raise UserError(
            f"{error}: detection is judged by pycocotools; pip install pycocotools"
        ) from error

    labels = [c for s in scenes for c in (*s.classes, *s.found_classes)]
    num_classes = 1 + max(map(int, labels), default=0)
    with contextlib.redirect_stdout(io.StringIO()):  # it tells of every step
        truth, found = _truth(scenes, num_classes), _found(scenes, num_classes)
        judged: Any = COCOeval(truth, found, "bbox")
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    precision = judged.eval["precision"][:, :, :, _ALL_AREAS, _MOST_DETECTIONS]
    recall = judged.eval["recall"][:, :, _ALL_AREAS, _MOST_DETECTIONS]
    curves = precision[_IOU_50]
    support = np.zeros(num_classes, np.int64)
    for scene in scenes:
        np.add.at(support, scene.classes[~scene.ignored], 1)
    voc = np.array([_voc_precision(judged, k) for k in range(num_classes)])
    return {
        **{key: _known(stat) for key, stat in zip(STATS, judged.stats, strict=True)},
        "average_precision_voc": _known(voc),
        "class_ap": np.array([_known(precision[..., k]) for k in range(num_classes)]),
        "class_ap_50": np.array([_known(curves[:, k]) for k in range(num_classes)]),
        "class_ap_voc": np.where(voc < 0, np.nan, voc),
        "class_ar": np.array([_known(recall[:, k]) for k in range(num_classes)]),
        "support": support,
        "precision_50": np.where(curves < 0, np.nan, curves),
    }


def _known(values: Any) -> float:
    """The mean of what is not -1, which stands for nothing to find."""
    values = np.asarray(values, np.float64)
    known = values[values > -1]
    return float(known.mean()) if known.size else float("nan")


def _truth(scenes: Sequence[Scene], num_classes: int) -> Any:
    annotations = []
    for image_id, scene in enumerate(scenes, 1):
        rows = zip(*scene[:4], strict=True)
        for box, label, is_ignored, area in rows:
            annotation = _annotation(len(annotations), image_id, box, label)
            annotation |= {"area": float(area), "iscrowd": int(is_ignored)}
            annotations.append(annotation)
    return _coco(len(scenes), num_classes, annotations)


def _found(scenes: Sequence[Scene], num_classes: int) -> Any:
    annotations = []
    for image_id, scene in enumerate(scenes, 1):
        rows = zip(*scene[4:], strict=True)
        for box, score, label in rows:
            annotation = _annotation(len(annotations), image_id, box, label)
            *_, w, h = annotation["bbox"]
            annotation |= {"area": w * h, "iscrowd": 0, "score": float(score)}
            annotations.append(annotation)
    return _coco(len(scenes), num_classes, annotations)


def _annotation(count: int, image_id: int, box: Any, label: Any) -> dict[str, Any]:
    x1, y1, x2, y2 = map(float, box)
    return {
        "id": count + 1,  # from 1: pycocotools takes 0 for no match
        "image_id": image_id,
        "category_id": int(label) + 1,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
    }


def _coco(num_images: int, num_classes: int, annotations: list[dict[str, Any]]) -> Any:
    from pycocotools.coco import COCO

    coco: Any = COCO()
    coco.dataset = {
        "images": [{"id": i + 1} for i in range(num_images)],
        "categories": [{"id": k + 1} for k in range(num_classes)],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def _voc_precision(judged: Any, k: int) -> float:
    """The area under a class's precision and recall at IoU 0.5, as Pascal VOC's.

    Since 2010: precision is made not to rise with recall, and no point is left out. -1
    of a class that is not there.
    """
    num_areas, num_images = len(judged.params.areaRng), len(judged.params.imgIds)
    start = k * num_areas * num_images  # of the class, all areas
    images = [e for e in judged.evalImgs[start : start + num_images] if e is not None]
    count = sum(int(np.sum(~np.asarray(e["gtIgnore"], bool))) for e in images)
    if not count:
        return -1.0
    scores = np.concatenate([e["dtScores"] for e in images])
    order = np.argsort(-scores, kind="stable")
    is_ignored, matches = (
        np.concatenate([e[key][_IOU_50] for e in images])[order].astype(bool)
        for key in ("dtIgnore", "dtMatches")
    )
    hits = np.cumsum(matches & ~is_ignored)
    misses = np.cumsum(~matches & ~is_ignored)
    precision = hits / np.maximum(hits + misses, 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(hits / count, prepend=0) * precision))
