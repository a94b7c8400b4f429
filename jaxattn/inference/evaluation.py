"""Figures of a trained network on a split of its data, or of others."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jaxattn.viz.figure  # noqa: F401 - what it needs is missed before the work
from jaxattn.config.bind import bind
from jaxattn.config.changes import changed_data, listed
from jaxattn.data.datasets.registry import load_data
from jaxattn.data.source import Data
from jaxattn.errors import UserError, choose
from jaxattn.inference.predict import Predictor
from jaxattn.paths import local_path
from jaxattn.tasks.task import Method
from jaxattn.training.checkpoints.trained import SPLITS, Trained


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
            "data.name: imported weights, and those of your own arrays, come without"
            " data; name a data set"
        )
    data = bind(load_data, section, "data")()
    for key, found, wanted in (
        ("classes", len(data.class_names), len(trained.class_names)),
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
    return data if given.keys() & {"name", "path"} else _with_changes(data, trained)


def _with_changes(data: Data, trained: Trained) -> Data:
    """Notes if a run's data are not those that it was trained on."""
    saved = {"dataset": trained.config.get("dataset", {})}
    changed = changed_data(saved, {"dataset": {"files": data.files}})
    if not changed:
        return data
    note = (
        f"the data are not those of the training ({listed(changed)}): images of other"
        " splits than test may be others, which were trained on"
    )
    return dataclasses.replace(data, notes=(*data.notes, note))


def evaluate(
    predictor: Predictor,
    data: Data,
    method: Method,
    *,
    split: str = "test",
    seed: int = 0,
) -> Any:
    """Evaluates a network on one split; every example counts once.

    Args:
        predictor: The network.
        data: The data set.
        method: How to predict.
        split: "test", "val" or "train".
        seed: Of random views.

    Returns:
        What the network's task makes of it: of a classifier an `Assessment`.

    Raises:
        UserError: If the data set has no such split.
    """
    choose("split", split, SPLITS)
    if getattr(data, split) is None:
        raise UserError(
            f"split={split!r}: {data.name} was split without one (val_fraction 0)"
        )
    return predictor.trained.task.assess(
        lambda source: predictor.predict(source, method, seed=seed), data, split
    )


def write_evaluation(
    folder: str | os.PathLike[str], evaluation: Any, trained: Trained, **about: Any
) -> str:
    """Writes report, figures and `results.json` of an evaluation into a folder.

    Args:
        folder: Made if it is missing.
        evaluation: From `evaluate`.
        trained: The network.
        **about: Further entries of `results.json`: what was evaluated.

    Returns:
        The text of the report.
    """
    folder = local_path(folder, "out")
    folder.mkdir(parents=True, exist_ok=True)
    write = trained.task.write_assessment
    return write(folder, evaluation, trained.class_names, about)
