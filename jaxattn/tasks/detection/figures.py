"""The pictures of a detection run: photos with boxes, curves, and what went wrong."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxattn import viz
from jaxattn.data.source import Example, Source
from jaxattn.errors import UserError
from jaxattn.tasks.detection.metrics import Predictions, have_area
from jaxattn.tasks.task import Pages, Summary

_NUM_PHOTOS = 4  # beside their truth
_NUM_WORST = 6
# What pictures show: what the network is as sure of, and what counts as found.
_LEAST_SCORE, _LEAST_IOU = 0.3, 0.5
_MISSED, _FALSE = "#ff3030", "#ffb000"
_BACKGROUND = -1


class Judged(NamedTuple):
    """An image on its canvas: what is there, what was found, and which is which.

    Attributes:
        boxes: `[G, 4]`, without what is ignored.
        classes: int `[G]`.
        found_boxes: `[D, 4]`, of scores that are shown.
        found_scores: `[D]`, falling.
        found_classes: int `[D]`.
        matches: int `[D]`: the object that each overlaps with most, of whichever class;
            each object has one at most, the others `_BACKGROUND`.
    """

    boxes: np.ndarray
    classes: np.ndarray
    found_boxes: np.ndarray
    found_scores: np.ndarray
    found_classes: np.ndarray
    matches: np.ndarray

    @property
    def is_right(self) -> np.ndarray:
        """Which of those found are of an object's class, bool `[D]`."""
        own = np.append(self.classes, _BACKGROUND)[self.matches]
        return (self.matches != _BACKGROUND) & (own == self.found_classes)

    @property
    def is_missed(self) -> np.ndarray:
        """Which objects were not found as what they are, bool `[G]`."""
        return ~np.isin(np.arange(len(self.boxes)), self.matches[self.is_right])


def draw_results(
    summary: Summary, source: Source, class_names: Sequence[str]
) -> dict[str, Any]:
    """Draws the figures of a finished run.

    Args:
        summary: Of the test, with its `predictions`.
        source: What was tested.
        class_names: The name of each class.

    Returns:
        Matplotlib figures by the name of their file.
    """
    predictions: Predictions = jax.tree.map(np.asarray, summary["predictions"])
    places = np.flatnonzero(predictions.mask).tolist()
    judged = {i: judge(predictions, i) for i in places}
    spread = np.linspace(0, len(places) - 1, min(_NUM_PHOTOS, len(places))).round()
    legend = [(viz.class_color(k), name) for k, name in enumerate(class_names)]
    panels = [
        panel
        for i in spread.astype(int)
        for panel in _beside_truth(source, places[i], judged[places[i]], class_names)
    ]
    confusion = confuse(list(judged.values()), len(class_names))
    drawn = {
        "detections": viz.plot_boxes(panels, legend, columns=2),
        "precision_recall": viz.plot_precision_recall(
            summary["precision_50"], summary["class_ap_50"], class_names
        ),
        "confusion_matrix": viz.plot_confusion_matrix(
            confusion, (*class_names, "background")
        ),
    }
    if worst := _worst(judged):
        panels = [_mistakes(source, i, judged[i], class_names) for i in worst]
        kinds = [(_MISSED, "missed"), (_FALSE, "wrong"), (viz.class_color(3), "right")]
        drawn["misses"] = viz.plot_boxes(panels, kinds, columns=2)
    return drawn


def make_pages(
    model: nn.Module, class_names: Sequence[str], chosen: int | None
) -> Pages:
    """Returns what draws pages of Grad-CAM and gates.

    Grad-CAM is of the largest logit of an image's anchors: of the box that the network
    is surest of.

    Args:
        model: The network.
        class_names: The name of each logit.
        chosen: The class of the box; None: any.
    """

    def judge_surest(outputs: Any) -> tuple[jax.Array, jax.Array]:
        if not hasattr(outputs, "logits"):
            raise UserError(
                f"{type(model).__name__}: pages of attention are drawn of detectors of"
                " one stage alone, such as retinanet"
            )
        surest = jnp.max(outputs.logits, 1)
        of = jnp.max(surest, -1) if chosen is None else surest[:, chosen]
        return of, nn.sigmoid(surest)

    attend = viz.make_attend(model, judge_surest)

    def draw(
        variables: Any,
        x: jax.Array,
        images: np.ndarray,
        names: Sequence[str],
        examples: Sequence[Example],
        pattern: str | None = None,
    ) -> Sequence[Any]:
        del examples
        attention = attend(variables, x)
        titles = []
        for scores, name in zip(attention.probabilities, names, strict=True):
            k = int(np.argmax(scores)) if chosen is None else chosen
            of = f"{viz.shorten(class_names[k])}, score {scores[k]:.2f}"
            titles.append(f"{viz.shorten(name, 40)}\nGrad-CAM of the surest box: {of}")
        return viz.plot_pages(attention, images, titles, pattern)

    return draw


def judge(predictions: Predictions, i: int) -> Judged:
    """Returns example `i` of an evaluation, its boxes matched, the surest first.

    They are cut to what the canvas shows of the photo, as figures are made of them.
    """
    own = {key: np.asarray(values[i]) for key, values in predictions.targets.items()}
    scores = predictions.scores[i, : int(predictions.counts[i])]
    is_sure = scores >= _LEAST_SCORE
    height, width = own["shown_size"]
    boxes = predictions.boxes[i, : len(scores)]
    boxes = np.clip(boxes, 0, [width, height, width, height])
    is_sure &= have_area(boxes)
    boxes = boxes[is_sure]
    there, ignored = (own["valid"] & (own["ignored"] == flag) for flag in (False, True))
    matches = _match(boxes, own["boxes"][there])
    # Beside an ignored object nothing is wrong.
    among = _overlaps(boxes, own["boxes"][ignored]).max(1, initial=0) >= _LEAST_IOU
    kept = (matches != _BACKGROUND) | ~among
    classes = predictions.classes[i, : len(scores)][is_sure]
    return Judged(
        boxes=own["boxes"][there],
        classes=own["classes"][there],
        found_boxes=boxes[kept],
        found_scores=scores[is_sure][kept],
        found_classes=classes[kept],
        matches=matches[kept],
    )


def _match(found: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """The box that each of those found overlaps with most, each box once."""
    matches = np.full(len(found), _BACKGROUND)
    overlaps = _overlaps(found, boxes)
    for d in range(len(found) if len(boxes) else 0):
        best = int(np.argmax(overlaps[d]))
        if overlaps[d, best] >= _LEAST_IOU:
            matches[d] = best
            overlaps[:, best] = 0
    return matches


def _overlaps(boxes1: np.ndarray, boxes2: np.ndarray) -> np.ndarray:
    """Intersection over union `[M, N]`; 0 of what has no area."""
    a, b = boxes1[:, None], boxes2[None]
    low, high = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])
    inter = np.clip(high - low, 0, None).prod(-1)
    areas = [(v[..., 2:] - v[..., :2]).prod(-1) for v in (a, b)]
    return inter / np.maximum(areas[0] + areas[1] - inter, 1e-9)


def confuse(judged: Sequence[Judged], num_classes: int) -> np.ndarray:
    """Returns how often each class was found as which.

    Args:
        judged: The images.
        num_classes: K.

    Returns:
        int64 `[K + 1, K + 1]`, rows are what is there, columns what was found; the last
        ones are the background.
    """
    confusion = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    for image in judged:
        there = np.append(image.classes, num_classes)[image.matches]
        np.add.at(confusion, (there, image.found_classes), 1)
        is_lost = ~np.isin(np.arange(len(image.boxes)), image.matches)
        np.add.at(confusion[:, num_classes], image.classes[is_lost], 1)
    return confusion


def _worst(judged: dict[int, Judged]) -> list[int]:
    """The images with the most mistakes, the worst first."""
    counts = {
        i: int(j.is_missed.sum() + (~j.is_right).sum()) for i, j in judged.items()
    }
    order = sorted(counts, key=lambda i: -counts[i])
    return [i for i in order if counts[i]][:_NUM_WORST]


def _photo(source: Source, i: int) -> np.ndarray:
    """The photo on the canvas, without what is beside it."""
    example = source[i]
    h, w = example["shown_size"]
    return example["image"][:h, :w]


def _beside_truth(
    source: Source, i: int, judged: Judged, class_names: Sequence[str]
) -> "tuple[viz.BoxPanel, viz.BoxPanel]":
    image, n = _photo(source, i), len(judged.boxes)
    truth = viz.BoxPanel(
        image,
        judged.boxes,
        [viz.class_color(int(k)) for k in judged.classes],
        [""] * n,
        [False] * n,
        f"image {i}: {n} objects",
    )
    found = viz.BoxPanel(
        image,
        judged.found_boxes,
        [viz.class_color(int(k)) for k in judged.found_classes],
        _labels(judged, class_names),
        [False] * len(judged.found_boxes),
        f"{len(judged.found_boxes)} found with a score of {_LEAST_SCORE} or more",
    )
    return truth, found


def _labels(judged: Judged, class_names: Sequence[str]) -> list[str]:
    """What is written at each box that was found; names where colours repeat."""
    are_many = viz.colors_repeat(len(class_names))
    rows = zip(judged.found_scores, judged.found_classes, strict=True)
    return [
        f"{class_names[k]} {score:.2f}" if are_many else f"{score:.2f}"
        for score, k in rows
    ]


def _mistakes(
    source: Source, i: int, judged: Judged, class_names: Sequence[str]
) -> "viz.BoxPanel":
    missed, right = judged.is_missed, judged.is_right
    lost = [str(class_names[int(k)]) for k in judged.classes[missed]]
    found = _labels(judged, class_names)
    names = [class_names[k] for k in judged.found_classes]
    said = [
        "" if r else f"{name} {text.split()[-1]}"
        for r, name, text in zip(right, names, found, strict=True)
    ]
    colors = [viz.class_color(3) if r else _FALSE for r in right]
    return viz.BoxPanel(
        _photo(source, i),
        np.concatenate([judged.found_boxes, judged.boxes[missed]]),
        [*colors, *[_MISSED] * len(lost)],
        [*said, *lost],
        [False] * len(colors) + [True] * len(lost),
        f"image {i}: {len(lost)} of {len(judged.boxes)} missed, {sum(~right)} wrong",
    )
