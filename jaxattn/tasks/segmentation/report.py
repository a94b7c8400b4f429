"""What a run or an evaluation says of its figures, in words and in `results.json`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxattn.data.augment.transform import IGNORED
from jaxattn.tasks.task import Summary, Tested

FIGURES = {
    "mean_iou": "mean IoU",
    "mean_accuracy": "mean accuracy",
    "pixel_accuracy": "pixel accuracy",
}
"""What reports show, by its key: figures of `summarize`, in [0, 1]."""


def results(tested: Tested) -> dict[str, Any]:
    """Returns the entries of a finished run's `results.json`.

    `test_mean_iou` is of the weights best by validation mean IoU, `test_mean_iou_ema`
    of the averaged ones best by theirs (None without an average), `last_test_mean_iou`
    of the last raw weights.
    """
    best = tested.summaries["best"]
    averaged = tested.summaries.get("best_ema")
    return {
        "best_val_mean_iou": tested.best_figure,
        **{f"test_{key}": best[key] for key in FIGURES},
        "test_loss": best["loss"],
        "test_mean_iou_ema": averaged and averaged["mean_iou"],
        "last_test_mean_iou": tested.summaries["last"]["mean_iou"],
    }


def headline(summary: Summary) -> str:
    """Returns the mean IoU in half a line."""
    figures = (
        f"{summary['mean_iou']:.4f}, pixel accuracy {summary['pixel_accuracy']:.4f}"
    )
    return f"mean IoU {figures} of {summary['count']} images"


def format_test(summary: Summary, class_names: Sequence[str]) -> list[str]:
    """Returns the lines of a test in `report.txt`."""
    return [
        *(f"{'test ' + name:21}{summary[key]:.4f}" for key, name in FIGURES.items()),
        f"{'test loss':21}{summary['loss']:.4f}  (without an auxiliary head's)",
        "",
        *class_table(summary, class_names),
    ]


def class_table(summary: Summary, class_names: Sequence[str]) -> list[str]:
    """Returns the lines of a table of IoU, accuracy and share of pixels by class.

    A class that no label map holds has no accuracy, one that is not predicted either no
    IoU; means leave them out.

    Args:
        summary: Figures of `figures_of`.
        class_names: The name of each class.
    """
    width = max(12, *(len(name) for name in class_names))
    shares = summary["support"] / max(summary["support"].sum(), 1)
    lines = [f"{'class':{width}}        IoU  accuracy  share of pixels"]
    for i, name in enumerate(class_names):
        figures = (_cell(summary[key][i]) for key in ("iou", "accuracy"))
        lines.append(f"{name:{width}} {''.join(figures)}{100 * shares[i]:15.2f} %")
    means = f"{summary['mean_iou']:10.4f}{summary['mean_accuracy']:10.4f}"
    lines.append(f"{'mean':{width}} {means}")
    return lines


def _cell(value: float) -> str:
    return f"{'-':>10}" if np.isnan(value) else f"{value:10.4f}"


def shares(
    label_map: np.ndarray, class_names: Sequence[str], count: int | None = None
) -> str:
    """Returns the classes of a label map by area, `road 41.0 %, sky 20.3 %`.

    Args:
        label_map: uint8 `[H, W]`.
        class_names: The name of each class.
        count: Classes at most; by default all that there are.
    """
    pixels = np.bincount(label_map.ravel(), minlength=IGNORED + 1)[:IGNORED]
    if not pixels.any():
        return "not known"
    return list_shares(pixels / pixels.sum(), class_names, count)


def list_shares(
    shares: np.ndarray, class_names: Sequence[str], count: int | None = None
) -> str:
    """Returns the largest shares and their classes as `road 41.0 %, sky 20.3 %`.

    Args:
        shares: Of each class, in [0, 1].
        class_names: The name of each class.
        count: Classes at most; by default all that have a share.
    """
    order = np.argsort(-shares, kind="stable")[:count]
    named = (f"{class_names[i]} {100 * shares[i]:.1f} %" for i in order if shares[i])
    return ", ".join(named)


def describe(figures: Mapping[str, float]) -> list[str]:
    """Returns loss, pixel accuracy and, if known, mean IoU as a person reads them."""
    known = [f"mIoU {100 * figures['mean_iou']:.1f}%"] if "mean_iou" in figures else []
    return [
        f"loss {figures['loss']:.3f}",
        f"pixel acc {100 * figures['pixel_accuracy']:.1f}%",
        *known,
    ]
