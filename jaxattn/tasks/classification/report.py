"""What a run or an evaluation says of its figures, in words and in `results.json`."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxattn.tasks.task import Summary, Tested

FIGURES = {"ece": "calibration (ECE)"}
"""What reports show beside accuracies and loss, by its key: a figure of `summarize`.

Reports and `results.json`, of runs and of evaluations, take them from here.
"""


def results(tested: Tested) -> dict[str, Any]:
    """Returns the entries of a finished run's `results.json`.

    `test_accuracy` is of the weights best by validation accuracy, `test_accuracy_ema`
    of the averaged ones best by theirs (None without an average), `last_test_accuracy`
    of the last raw weights.
    """
    best = tested.summaries["best"]
    averaged = tested.summaries.get("best_ema")
    return {
        "best_val_accuracy": tested.best_figure,
        "test_accuracy": best["accuracy"],
        "test_top5_accuracy": best["top5_accuracy"],
        "test_loss": best["loss"],
        **{f"test_{key}": best[key] for key in FIGURES},
        "test_accuracy_ema": averaged and averaged["accuracy"],
        "last_test_accuracy": tested.summaries["last"]["accuracy"],
    }


def headline(summary: Summary) -> str:
    """Returns the outcome of a test in half a line."""
    return f"accuracy {100 * summary['accuracy']:.2f}% of {summary['count']} images"


def likeliest(
    probabilities: np.ndarray, class_names: Sequence[str], count: int = 3
) -> str:
    """Returns the likeliest classes as `horse 92.1 %, dog 4.0 %, deer 2.1 %`.

    Args:
        probabilities: `[C]` in [0, 1]; NaN where nothing is known.
        class_names: The name of each class.
        count: Classes at most.
    """
    if np.isnan(probabilities).any():
        return "not known"
    order = np.argsort(-probabilities, kind="stable")[:count]
    return ", ".join(f"{class_names[i]} {100 * probabilities[i]:.1f} %" for i in order)


def format_test(summary: Summary, class_names: Sequence[str]) -> list[str]:
    """Returns the lines of a test in `report.txt`."""
    return [
        f"test accuracy        {summary['accuracy']:.4f}",
        f"test top-5 accuracy  {summary['top5_accuracy']:.4f}",
        f"test loss            {summary['loss']:.4f}  (labels smoothed as in training)",
        *(f"{name:21}{summary[key]:.4f}" for key, name in FIGURES.items()),
        "",
        *class_table(summary, class_names),
    ]


def class_table(summary: Summary, class_names: Sequence[str]) -> list[str]:
    """Returns the lines of a table of precision, recall, F1 and support by class.

    Args:
        summary: Figures of `summarize`.
        class_names: The name of each class.
    """
    width = max(12, *(len(name) for name in class_names))
    columns = ("precision", "recall", "f1")
    lines = [f"{'class':{width}}  precision    recall        f1   support"]
    for i, name in enumerate(class_names):
        figures = "".join(f"{summary[column][i]:10.4f}" for column in columns)
        lines.append(f"{name:{width}} {figures}{summary['support'][i]:10d}")
    means = "".join(f"{np.mean(summary[column]):10.4f}" for column in columns)
    lines.append(f"{'mean':{width}} {means}{summary['count']:10d}")
    return lines
