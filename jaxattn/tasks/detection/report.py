"""What a run or an evaluation says of its figures, in words and in `results.json`."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxattn.tasks.detection.metrics import STATS
from jaxattn.tasks.task import Summary, Tested

_VOC = "average_precision_voc"
_LOSS = "_loss"  # how the parts of a loss end
_MAIN = "average_precision", "average_precision_50", "average_precision_75", _VOC


def results(tested: Tested) -> dict[str, Any]:
    """Returns the entries of a finished run's `results.json`.

    `test_average_precision` is of the weights best by that of validation,
    `test_average_precision_ema` of the averaged ones best by theirs (None without an
    average), `last_test_average_precision` of the last raw weights.
    """
    best = tested.summaries["best"]
    averaged = tested.summaries.get("best_ema")
    return {
        "best_val_average_precision": tested.best_figure,
        **{f"test_{key}": number(best[key]) for key in (*STATS, _VOC)},
        "test_class_ap_50": [number(value) for value in best["class_ap_50"]],
        "test_loss": best.get("loss"),
        "test_average_precision_ema": averaged and number(averaged[_MAIN[0]]),
        "last_test_average_precision": number(
            tested.summaries["last"]["average_precision"]
        ),
    }


def number(value: float) -> float | None:
    """Returns a figure as JSON has it: None where there was nothing to find."""
    return None if math.isnan(value) else float(value)


def describe(figures: Mapping[str, float]) -> list[str]:
    """Returns the loss and its parts, and AP where it is known."""
    parts = [
        f"{key.removesuffix(_LOSS).replace('_', ' ')} {value:.3f}"
        for key, value in figures.items()
        if key.endswith(_LOSS)
    ]
    said = [f"loss {figures['loss']:.3f}"] if "loss" in figures else []
    said += [f"({', '.join(parts)})"] if parts else []
    if (precision := figures.get("average_precision")) is not None:
        said.append(f"AP {precision:.3f}")
    return said


def headline(summary: Summary) -> str:
    """Returns AP in half a line."""
    main, at_50 = summary["average_precision"], summary["average_precision_50"]
    return f"AP {main:.4f}, AP50 {at_50:.4f} of {summary['count']} images"


def format_test(summary: Summary, class_names: Sequence[str]) -> list[str]:
    """Returns the lines of a test in `report.txt`."""
    return [
        *(f"{'test ' + name:24}{_shown(summary[key])}" for key, name in STATS.items()),
        f"{'test AP50, Pascal VOC':24}{_shown(summary[_VOC])}",
        *([f"{'test loss':24}{summary['loss']:.4f}"] if "loss" in summary else []),
        "",
        *class_table(summary, class_names),
    ]


def class_table(summary: Summary, class_names: Sequence[str]) -> list[str]:
    """Returns the lines of a table of AP, AP50, recall and objects by class.

    A class that is not there has none; means leave it out.

    Args:
        summary: Figures of `evaluate_scenes`.
        class_names: The name of each class.
    """
    columns = {"AP": "class_ap", "AP50": "class_ap_50", "VOC AP50": "class_ap_voc"}
    columns |= {"recall": "class_ar"}
    width = max(12, *(len(name) for name in class_names))
    lines = [f"{'class':{width}}" + "".join(f"{c:>10}" for c in columns) + "   objects"]
    for k, name in enumerate(class_names):
        is_known = k < len(summary["support"])  # else neither there nor found
        values = [summary[c][k] if is_known else math.nan for c in columns.values()]
        support = summary["support"][k] if is_known else 0
        figures = "".join(f"{_shown(value):>10}" for value in values)
        lines.append(f"{name:{width}}{figures}{support:10,d}")
    means = "".join(f"{_shown(_mean(summary[c])):>10}" for c in columns.values())
    lines.append(f"{'mean':{width}}{means}{int(np.sum(summary['support'])):10,d}")
    return lines


def _mean(values: Any) -> float:
    known = np.asarray(values)[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


def _shown(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def count_classes(classes: Any, class_names: Sequence[str]) -> str:
    """Returns how many objects there are of each class, as `2 dog, 1 cat`.

    Args:
        classes: int `[n]`.
        class_names: The name of each class.
    """
    numbers, counts = np.unique(np.asarray(classes), return_counts=True)
    order = np.argsort(-counts, kind="stable")
    said = [f"{counts[i]} {class_names[int(numbers[i])]}" for i in order]
    return ", ".join(said) or "nothing"
