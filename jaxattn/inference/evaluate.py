"""Figures of a trained network on a labelled split, its calibration among them."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy import optimize

from jaxattn.atomic import write_atomically, write_json
from jaxattn.config.bind import bind
from jaxattn.data.source import Data, Source, load_data, read_labels
from jaxattn.errors import UserError, choose
from jaxattn.inference.predict import Predictor
from jaxattn.tasks.classification.methods import Method
from jaxattn.tasks.classification.metrics import evaluation_sums, summarize
from jaxattn.training.checkpoints.trained import SPLITS, Trained
from jaxattn.training.records.report import class_table
from jaxattn.viz.classification import plot_confusion_matrix, plot_reliability
from jaxattn.viz.figure import save_figure


class Evaluation(NamedTuple):
    """Of one split.

    Attributes:
        summary: Figures of `jaxattn.tasks.classification.metrics.summarize`; the loss
            is the negative log likelihood, without label smoothing.
        calibrated: The same after dividing the log probabilities by `temperature`.
        temperature: Fitted; above 1 where the network is too sure of itself.
        fitted_on: The split that the temperature was fitted on.
    """

    summary: dict[str, Any]
    calibrated: dict[str, Any]
    temperature: float
    fitted_on: str


def load_data_of(trained: Trained, overrides: Mapping[str, Any]) -> Data:
    """Loads the data set that a network was trained on, or another one.

    Args:
        trained: The network.
        overrides: Keys of the config's section `data` to replace; None keeps.

    Raises:
        UserError: If the data cannot be had, or do not fit the network.
    """
    given = {key: value for key, value in overrides.items() if value is not None}
    own = trained.config.get("data", {})
    is_own = given.get("name", own.get("name")) == own.get("name")
    # Of other data, and those of imported weights, no part is known to be held out.
    section = {**(own if own and is_own else {"val_fraction": 0.0}), **given}
    if "name" not in section:
        raise UserError(
            "data.name: imported weights come without data; name a data set"
        )
    data = bind(load_data, section, "data")()
    for key, found, wanted in (
        ("classes", data.num_classes, len(trained.class_names)),
        ("image shape", data.image_shape, trained.image_shape),
    ):
        if found != wanted:
            raise UserError(
                f"data.name={section['name']}: {key} {found}, the network has {wanted}"
            )
    names, known = data.class_names, trained.class_names
    numbers = tuple(str(i) for i in range(len(names)))
    # Numbers stand for names that a file of the same data does not hold.
    if names != known and not (numbers in (names, known) and (is_own or not own)):
        raise UserError(
            f"data.name={section['name']}: its classes are {', '.join(names[:3])}, ...,"
            f" the network's {', '.join(known[:3])}, ..."
        )
    return data


def evaluate(
    predictor: Predictor,
    data: Data,
    method: Method,
    *,
    split: str = "test",
    seed: int = 0,
) -> Evaluation:
    """Evaluates a network on one split; every example counts once.

    The temperature is fitted on the validation split if there is one and it is not the
    one evaluated, else on the evaluated split itself.

    Args:
        predictor: The network.
        data: The data set.
        method: How to predict.
        split: "test", "val" or "train".
        seed: Of random views.

    Raises:
        UserError: If the data set has no such split.
    """
    choose("split", split, SPLITS)
    source = _split(data, split)
    fitted_on = "val" if split == "test" and data.val is not None else split

    def scores(source: Source) -> tuple[np.ndarray, np.ndarray]:
        decision = predictor.predict(source, method, seed=seed)
        # As logits: a softmax gives the probabilities back.
        tiny = np.finfo(np.float32).tiny
        is_known = ~np.isnan(decision.probabilities[:, 0])  # others were skipped
        logits = np.log(decision.probabilities[is_known] + tiny)
        return logits, read_labels(source)[is_known]

    logits, labels = scores(source)
    fitting = (
        (logits, labels) if fitted_on == split else scores(_split(data, fitted_on))
    )
    temperature = fit_temperature(*fitting)
    return Evaluation(
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


def write_evaluation(
    folder: str | os.PathLike[str],
    evaluation: Evaluation,
    class_names: tuple[str, ...],
    **about: Any,
) -> str:
    """Writes report, figures and `results.json` of an evaluation into a folder.

    Args:
        folder: Made if it is missing.
        evaluation: What to write.
        class_names: Of the network.
        **about: Further entries of `results.json`: what was evaluated.

    Returns:
        The text of the report.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    summary, calibrated = evaluation.summary, evaluation.calibrated
    results = {
        **about,
        "num_examples": summary["count"],
        "accuracy": summary["accuracy"],
        "top5_accuracy": summary["top5_accuracy"],
        "negative_log_likelihood": summary["loss"],
        "ece": summary["ece"],
        "temperature": evaluation.temperature,
        "temperature_fitted_on": evaluation.fitted_on,
        "negative_log_likelihood_calibrated": calibrated["loss"],
        "ece_calibrated": calibrated["ece"],
    }
    text = format_evaluation(evaluation, class_names, about)
    write_json(folder / "results.json", results)
    write_atomically(folder / "report.txt", text)
    figures = {
        "confusion_matrix": plot_confusion_matrix(summary["confusion"], class_names),
        "reliability": _reliability(summary),
        "reliability_calibrated": _reliability(calibrated),
    }
    for name, figure in figures.items():
        save_figure(figure, folder / f"{name}.png")
    return text


def format_evaluation(
    evaluation: Evaluation, class_names: tuple[str, ...], about: Mapping[str, Any]
) -> str:
    """Returns the text of an evaluation's report."""
    s, c = evaluation.summary, evaluation.calibrated
    lines = [
        ", ".join(f"{key} {value}" for key, value in about.items()),
        "",
        f"accuracy                 {s['accuracy']:.4f}  of {s['count']}",
        f"top-5 accuracy           {s['top5_accuracy']:.4f}",
        f"negative log likelihood  {s['loss']:.4f}",
        f"calibration (ECE)        {s['ece']:.4f}",
        f"with temperature {evaluation.temperature:.3f}, fitted on"
        f" {evaluation.fitted_on}: likelihood {c['loss']:.4f}, ECE {c['ece']:.4f}",
        "",
        *class_table(s, class_names),
    ]
    return "\n".join(lines) + "\n"


def _split(data: Data, split: str) -> Source:
    source = getattr(data, split)
    if source is None:
        raise UserError(
            f"split='val': {data.name} was split without one (val_fraction 0)"
        )
    return source


def _summary(logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    mask = jnp.ones(len(labels), bool)
    scores = jnp.asarray(logits, jnp.float32)
    return summarize(evaluation_sums(scores, jnp.asarray(labels), mask))


def _reliability(summary: dict[str, Any]) -> Any:
    return plot_reliability(
        summary["bin_confidence"], summary["bin_accuracy"], summary["bin_count"]
    )
