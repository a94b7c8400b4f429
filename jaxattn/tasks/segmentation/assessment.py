"""Figures of a trained network on a split with label maps."""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxattn.data.augment.transform import IGNORED
from jaxattn.data.source import Data, Source
from jaxattn.tasks.assessments import write_files
from jaxattn.tasks.segmentation import figures
from jaxattn.tasks.segmentation.methods import Decision
from jaxattn.tasks.segmentation.metrics import (
    Predictions,
    confusions,
    figures_of,
    image_iou,
)
from jaxattn.tasks.segmentation.report import FIGURES, class_table
from jaxattn.tasks.task import Predict, Summary
from jaxattn.viz.palette import Colors


class Assessment(NamedTuple):
    """Of one split.

    Attributes:
        summary: Figures of `jaxattn.tasks.segmentation.metrics.figures_of`, `count`
            (images) and `predictions`.
        source: What was predicted.
        class_colors: The colour of each class, where the data name them.
    """

    summary: Summary
    source: Source
    class_colors: Colors | None


def assess(predict: Predict, data: Data, split: str) -> Assessment:
    """Evaluates a network on one split; every pixel not ignored counts once.

    Args:
        predict: From a source to a `Decision` about its images.
        data: The data set.
        split: "test", "val" or "train"; the data set has it.
    """
    source: Source = getattr(data, split)
    decision: Decision = predict(source)
    K = data.num_classes
    count = jax.jit(confusions, static_argnums=2)
    total, known, ious = np.zeros((K, K), np.int64), 0, []
    for i, predicted in enumerate(decision.label_map):
        example = source[i]
        # An image that stands in for one that cannot be read counts nothing.
        was_read = "error" not in example
        label_map = np.asarray(example["label_map"], np.uint8)
        label_map = label_map if was_read else np.full_like(label_map, IGNORED)
        confusion = count(label_map[None], predicted[None], K)
        ious.append(float(image_iou(confusion)[0]))
        total += np.asarray(confusion[0], np.int64)
        known += was_read
    predictions = Predictions(decision.label_map, np.array(ious, np.float32))  # pyright: ignore[reportArgumentType]
    summary = {"count": known, "predictions": predictions, **figures_of(total)}
    return Assessment(summary, source, data.class_colors)


def write_assessment(
    folder: pathlib.Path,
    assessed: Assessment,
    class_names: Sequence[str],
    about: Mapping[str, Any],
) -> str:
    """Writes report, figures and `results.json` into a folder.

    Args:
        folder: Where to; it is there.
        assessed: What to write.
        class_names: Of the network.
        about: Further entries of `results.json`: what was evaluated.

    Returns:
        The text of the report.
    """
    summary = assessed.summary
    results = {
        **about,
        "num_examples": summary["count"],
        **{key: summary[key] for key in FIGURES},
        "class_iou": {
            name: None if np.isnan(value) else float(value)
            for name, value in zip(class_names, summary["iou"], strict=True)
        },
    }
    text = format_assessment(summary, class_names, about)
    draw = functools.partial(
        figures.draw_results,
        *(summary, assessed.source, class_names, assessed.class_colors),
    )
    write_files(folder, results, text, draw)
    return text


def format_assessment(
    summary: Summary, class_names: Sequence[str], about: Mapping[str, Any]
) -> str:
    """Returns the text of the report; its first figure is the mean IoU."""
    count, pixels = summary["count"], int(summary["support"].sum())
    main, *others = FIGURES
    lines = [
        f"{main} {summary[main]:.4f}  of {count:,} images, {pixels:,} pixels",
        *(f"{key} {summary[key]:.4f}" for key in others),
        ", ".join(f"{key} {value}" for key, value in about.items()),
        "",
        *class_table(summary, class_names),
    ]
    return "\n".join(lines) + "\n"
