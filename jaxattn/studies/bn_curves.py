"""What the runs of the study recorded, as arrays, and the bands they make."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxattn.training.records.writer import read_metrics

NETWORKS = ("plain", "bn")
"""The two networks of the study, in the order in which they train."""

# Of the project's events.
_TAGS = {
    "loss": "Loss/train_step_of_{}",
    "train_loss": "Loss/train_epoch_of_{}",
    "train_accuracy": "Accuracy/epoch_train_of_{}",
    "test_accuracy": "Accuracy/epoch_val_of_{}",
    "gradient_max": "{}/GradMax_Step",
    "gradient_min": "{}/GradMin_Step",
    "gradient_range": "{}/GradMaxMinusMin_Step",
    "mean_gradient_max": "{}/GradMax_EpochAvg",
    "mean_gradient_min": "{}/GradMin_EpochAvg",
    "mean_gradient_range": "{}/GradRange_EpochAvg",
}


class Member(NamedTuple):
    """One training run of the study.

    Attributes:
        network: "plain" or "bn".
        model: Name of the network.
        rate: Learning rate.
    """

    network: str
    model: str
    rate: float

    @property
    def name(self) -> str:
        """Name of its folder and of its curves: the network's, then the rate."""
        return f"{self.model}{self.rate:g}"


def tag(key: str, name: str) -> str:
    """Returns what a run calls a quantity in its events and its `metrics.jsonl`.

    Args:
        key: The quantity.
        name: Of the run.
    """
    return _TAGS.get(key, f"{{}}/{key}").format(name)


@dataclasses.dataclass(frozen=True, eq=False)
class Curves:
    """What the runs of one network recorded, for R learning rates.

    Attributes:
        model: Name of the network.
        rates: Learning rates, float `[R]`.
        loss: Of the batch at every step, `[R, T]`.
        gradient_max: Largest element of the last kernel's gradient, `[R, T]`.
        gradient_min: Smallest one, `[R, T]`.
        train_loss: Mean of the steps of an epoch, `[R, E]`.
        train_accuracy: After every epoch, `[R, E]`.
        test_accuracy: The same, of the test images, `[R, E]`.
        images_per_s: Median training speed of the epochs, of every run `[R]`; NaN if it
            is not known.
        look_steps: Steps at which the run looked along its step, int `[P]`.
        step_length: L2 norm of the step, `[R, P]`.
        look_loss: Loss at the S points, `[R, P, S]`.
        gradient_change: L2 distance of the gradient there, `[R, P, S]`.
    """

    model: str
    rates: np.ndarray
    loss: np.ndarray
    gradient_max: np.ndarray
    gradient_min: np.ndarray
    train_loss: np.ndarray
    train_accuracy: np.ndarray
    test_accuracy: np.ndarray
    images_per_s: np.ndarray
    look_steps: np.ndarray
    step_length: np.ndarray
    look_loss: np.ndarray
    gradient_change: np.ndarray

    def smoothness(self, factors: Sequence[float]) -> np.ndarray:
        """Returns the effective beta-smoothness `[R, P]`.

        The largest change of the gradient per distance, of the points along a step.

        Args:
            factors: Their distances in units of the step.
        """
        distance = self.step_length[..., None] * np.asarray(factors)
        return np.max(self.gradient_change / distance, -1)


def read_curves(
    workdir: pathlib.Path, members: Sequence[Member], factors: Sequence[float]
) -> dict[str, Curves]:
    """Reads what the runs of a finished study recorded, by network.

    Args:
        workdir: Of the study.
        members: Its runs.
        factors: Where they looked, in units of the step.
    """
    curves = {}
    for network in NETWORKS:
        own = [member for member in members if member.network == network]
        read = [_read(workdir / member.name, member.name, factors) for member in own]
        stacked = {
            key: np.stack([values[key] for values in read])
            for key in read[0]
            if key != "look_steps"
        }
        curves[network] = Curves(
            model=own[0].model,
            rates=np.array([member.rate for member in own]),
            look_steps=read[0]["look_steps"],
            **stacked,
        )
    return curves


def _read(
    folder: pathlib.Path, name: str, factors: Sequence[float]
) -> dict[str, np.ndarray]:
    rows = read_metrics(folder)
    looks = [row for row in rows if tag("step_length", name) in row]
    speeds = _column(rows, tag("images_per_s", name))

    def along(key: str) -> np.ndarray:
        tags = [tag(f"{key}_at_{factor:g}", name) for factor in factors]
        values = [[row[t] for t in tags] for row in looks]
        return np.array(values, float).reshape(len(looks), len(factors))

    of_steps = ("loss", "gradient_max", "gradient_min")
    of_epochs = ("train_loss", "train_accuracy", "test_accuracy")
    return {
        **{key: _column(rows, tag(key, name)) for key in of_steps + of_epochs},
        "images_per_s": np.median(speeds) if len(speeds) else np.array(np.nan),
        "look_steps": np.array([row["step"] for row in looks], int),
        "step_length": _column(looks, tag("step_length", name)),
        "look_loss": along("loss"),
        "gradient_change": along("gradient_change"),
    }


def _column(rows: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    return np.array([row[key] for row in rows if key in row], float)


def by_epoch(values: np.ndarray, num_epochs: int) -> np.ndarray:
    """Returns the means over the steps of each epoch `[..., E]`.

    Args:
        values: float `[..., T]`, T a multiple of E.
        num_epochs: E.
    """
    return values.reshape(*values.shape[:-1], num_epochs, -1).mean(-1)


def compare_widths(plain: np.ndarray, bn: np.ndarray) -> dict[str, Any]:
    """Compares the widths of two bands.

    Args:
        plain: Mean width of every epoch `[E]`, of the plain network.
        bn: The same with batch normalisation.

    Returns:
        Means over all epochs, the widths themselves, in how many epochs batch
        normalisation's band is the narrower one, and since which (from 1) it stays so;
        None if it is not at the end.
    """
    is_narrower = bn < plain
    others = np.flatnonzero(~is_narrower)
    since = int(others[-1]) + 2 if len(others) else 1
    return {
        "plain_mean": float(plain.mean()),
        "bn_mean": float(bn.mean()),
        "bn_narrower_epochs": int(is_narrower.sum()),
        "bn_narrower_since_epoch": since if since <= len(bn) else None,
        "plain_by_epoch": plain.tolist(),
        "bn_by_epoch": bn.tolist(),
    }
