"""Figures of a trained detector on a split with boxes."""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxattn.data.pipeline import targets_of
from jaxattn.data.source import Data, Source
from jaxattn.tasks.assessments import write_files
from jaxattn.tasks.detection.figures import draw_results
from jaxattn.tasks.detection.methods import Decision
from jaxattn.tasks.detection.metrics import (
    STATS,
    Predictions,
    evaluate_scenes,
    scenes,
)
from jaxattn.tasks.detection.report import class_table, number
from jaxattn.tasks.task import Predict, Summary

_VOC = "average_precision_voc"


class Assessment(NamedTuple):
    """Of one split.

    Attributes:
        summary: Figures of `evaluate_scenes`, with `count` and `predictions`.
        source: The split.
    """

    summary: Summary
    source: Source


def assess(predict: Predict, data: Data, split: str) -> Assessment:
    """Evaluates a detector on one split; every image counts once.

    Args:
        predict: From a source to a `Decision` about its images.
        data: The data set.
        split: "test", "val" or "train"; the data set has it.
    """
    source = getattr(data, split)
    decision: Decision = predict(source)
    targets, is_read = [], []
    for i in range(len(source)):  # one at a time, for all photos are too many to hold
        example = source[i]
        targets.append(targets_of(example))
        is_read.append("error" not in example)
    predictions = Predictions(
        *decision,
        targets={key: np.stack([t[key] for t in targets]) for key in targets[0]},
        mask=np.array(is_read),
    )
    figures = evaluate_scenes(list(scenes(predictions)))
    count = int(predictions.mask.sum())
    return Assessment({"count": count, **figures, "predictions": predictions}, source)


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
        **{key: number(summary[key]) for key in (*STATS, _VOC)},
        **{
            key: [number(value) for value in summary[key]]
            for key in ("class_ap", "class_ap_50", "class_ap_voc", "class_ar")
        },
    }
    text = format_assessment(assessed, class_names, about)
    draw = functools.partial(draw_results, summary, assessed.source, class_names)
    write_files(folder, results, text, draw)
    return text


def format_assessment(
    assessed: Assessment, class_names: Sequence[str], about: Mapping[str, Any]
) -> str:
    """Returns the text of the report, AP first."""
    summary = assessed.summary
    lines = [
        f"{key} {summary[key]:.4f}" if number(summary[key]) is not None else f"{key} -"
        for key in (*STATS, _VOC)
    ]
    said = ", ".join(f"{key} {value}" for key, value in about.items())
    table = class_table(summary, class_names)
    return "\n".join([*lines, "", said, "", *table]) + "\n"
