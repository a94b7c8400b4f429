"""Figures of a trained network on a labelled split, its calibration among them."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxattn import viz
from jaxattn.data.source import Data, Source
from jaxattn.data.splits import read_labels
from jaxattn.tasks.assessments import write_files
from jaxattn.tasks.classification.figures import plot_reliability
from jaxattn.tasks.classification.methods import Decision
from jaxattn.tasks.classification.metrics import evaluation_sums, summarize
from jaxattn.tasks.classification.report import FIGURES, class_table
from jaxattn.tasks.task import Predict, Summary


class Assessment(NamedTuple):
    """Of one split.

    Attributes:
        summary: Figures of `jaxattn.tasks.classification.metrics.summarize`; the loss
            is the negative log likelihood, without label smoothing.
        calibrated: The same after dividing the log probabilities by `temperature`.
        temperature: Fitted; above 1 where the network is too sure of itself.
        fitted_on: The split that the temperature was fitted on.
    """

    summary: Summary
    calibrated: Summary
    temperature: float
    fitted_on: str


def assess(predict: Predict, data: Data, split: str) -> Assessment:
    """Evaluates a network on one split; every example counts once.

    The temperature is fitted on the validation split if there is one and it is not the
    one evaluated, else on the evaluated split itself.

    Args:
        predict: From a source to a `Decision` about its images.
        data: The data set.
        split: "test", "val" or "train"; the data set has it.
    """
    fitted_on = "val" if split == "test" and data.val is not None else split

    def scores(source: Source) -> tuple[np.ndarray, np.ndarray]:
        decision: Decision = predict(source)
        # As logits: a softmax gives the probabilities back.
        tiny = np.finfo(np.float32).tiny
        is_known = ~np.isnan(decision.probabilities[:, 0])  # others were skipped
        logits = np.log(decision.probabilities[is_known] + tiny)
        return logits, read_labels(source)[is_known]

    logits, labels = scores(getattr(data, split))
    is_other = fitted_on != split
    fitting = scores(getattr(data, fitted_on)) if is_other else (logits, labels)
    temperature = fit_temperature(*fitting)
    return Assessment(
        summary=_summary(logits, labels),
        calibrated=_summary(logits / temperature, labels),
        temperature=temperature,
        fitted_on=fitted_on,
    )


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the temperature that makes the labels most likely.

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 4.2.

    Args:
        logits: `[N, C]`.
        labels: int `[N]`.

    Returns:
        The divisor of the logits, between 0.05 and 20.
    """
    from scipy import optimize

    own = logits[np.arange(len(labels)), labels]

    def negative_log_likelihood(log_temperature: float) -> float:
        scale = np.exp(-log_temperature)
        scaled = scale * logits
        top = scaled.max(-1)
        partition = top + np.log(np.exp(scaled - top[:, None]).sum(-1))
        return float(np.mean(partition - scale * own))

    bounds = (np.log(0.05), np.log(20))
    found = optimize.minimize_scalar(
        negative_log_likelihood, bounds=bounds, method="bounded"
    )
    return float(np.exp(found.x))  # pyright: ignore[reportAttributeAccessIssue]


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
    summary, calibrated = assessed.summary, assessed.calibrated

    def draw() -> dict[str, Any]:
        confusion = viz.plot_confusion_matrix(summary["confusion"], class_names)
        return {
            "confusion_matrix": confusion,
            "reliability": plot_reliability(summary),
            "reliability_calibrated": plot_reliability(calibrated),
        }

    results = {
        **about,
        "num_examples": summary["count"],
        "accuracy": summary["accuracy"],
        "top5_accuracy": summary["top5_accuracy"],
        "negative_log_likelihood": summary["loss"],
        **{key: summary[key] for key in FIGURES},
        "temperature": assessed.temperature,
        "temperature_fitted_on": assessed.fitted_on,
        "negative_log_likelihood_calibrated": calibrated["loss"],
        "ece_calibrated": calibrated["ece"],
    }
    text = format_assessment(assessed, class_names, about)
    write_files(folder, results, text, draw)
    return text


def format_assessment(
    assessed: Assessment, class_names: Sequence[str], about: Mapping[str, Any]
) -> str:
    """Returns the text of the report."""
    s, c = assessed.summary, assessed.calibrated
    lines = [
        ", ".join(f"{key} {value}" for key, value in about.items()),
        "",
        f"accuracy                 {s['accuracy']:.4f}  of {s['count']}",
        f"top-5 accuracy           {s['top5_accuracy']:.4f}",
        f"negative log likelihood  {s['loss']:.4f}",
        *(f"{name:25}{s[key]:.4f}" for key, name in FIGURES.items()),
        f"with temperature {assessed.temperature:.3f}, fitted on"
        f" {assessed.fitted_on}: likelihood {c['loss']:.4f}, ECE {c['ece']:.4f}",
        "",
        *class_table(s, class_names),
    ]
    return "\n".join(lines) + "\n"


def _summary(logits: np.ndarray, labels: np.ndarray) -> Summary:
    mask = jnp.ones(len(labels), bool)
    scores = jnp.asarray(logits, jnp.float32)
    return summarize(evaluation_sums(scores, jnp.asarray(labels), mask))
