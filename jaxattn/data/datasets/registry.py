"""Data sets by name. To add one, write its loader and add a line to `LOADERS`.

A loader takes the data set's name and, as keywords, what a config says of it: those
keywords are its keys of the section `data`.
"""

import inspect
from collections.abc import Callable
from typing import Any

from jaxattn.config.bind import bind
from jaxattn.data.boxes import require_boxes
from jaxattn.data.datasets.cifar import load_cifar
from jaxattn.data.datasets.detection import load_detection_folder
from jaxattn.data.datasets.folder import load_imagefolder
from jaxattn.data.datasets.segmentation import load_segmentation_folder
from jaxattn.data.datasets.tfds import load_tfds
from jaxattn.data.datasets.toy import load_digits, load_synthetic
from jaxattn.data.source import Data
from jaxattn.data.splits import hold_out, thin
from jaxattn.errors import UserError, require, require_seed, require_type, suggest

LOADERS: dict[str, Callable[..., Data]] = {
    "cifar10": load_cifar,
    "cifar100": load_cifar,
    "detection_folder": load_detection_folder,
    "digits": load_digits,
    "imagefolder": load_imagefolder,
    "imagenet2012": load_tfds,
    "segmentation_folder": load_segmentation_folder,
    "synthetic": load_synthetic,
}
"""From a name to what loads it; beside them `tfds:<name>` is any data set of TFDS."""


def load_data(
    name: str,
    *,
    val_fraction: float = 0.1,
    split_seed: int = 0,
    max_train_examples: int | None = None,
    max_eval_examples: int | None = None,
    **kwargs: Any,
) -> Data:
    """Loads a data set by name.

    Args:
        name: `digits` (bundled with scikit-learn), `cifar10`, `cifar100`,
            `detection_folder` (images with boxes, as COCO, Pascal VOC or YOLO lay them
            out), `imagefolder` (image files in `train/<class>/` and `val/<class>/`, the
            last being the test split), `segmentation_folder` (images and their label
            maps), `imagenet2012` (that of TFDS, tested on its validation split),
            `tfds:<name>` (an image classification data set of TFDS) or `synthetic`
            (random images that can be learned).
        val_fraction: The share of the training split, in [0, 1), that is held out for
            validation, by class. 0 holds out nothing, and so does a data set that has
            a validation split beside its test split. Else TFDS's records are read once
            for their labels: minutes for ImageNet.
        split_seed: The seed of that choice.
        max_train_examples: The most training examples that are kept, beside those held
            out; a larger split is thinned by class, for every seed to the same ones.
        max_eval_examples: The most validation examples, and the most test examples,
            that are kept; larger splits are thinned by class, always to the same ones.
            What is said of the run, its test accuracy too, is then of these.
        **kwargs: The keywords of the data set's own loader: `load_digits` and
            `load_synthetic` in `toy`, `load_cifar`, `load_detection_folder`,
            `load_imagefolder`, `load_segmentation_folder`, `load_tfds`. None is the
            default of each.

    Returns:
        The data set.

    Raises:
        UserError: An argument is not accepted, or the data cannot be had.
    """
    loader = _find_loader(name)
    holds = 0 <= val_fraction < 1
    require("data.val_fraction", val_fraction, holds, "in [0, 1)")
    require_seed("data.split_seed", split_seed)
    for key, most in (
        ("data.max_train_examples", max_train_examples),
        ("data.max_eval_examples", max_eval_examples),
    ):
        require(key, most, most is None or most >= 1, "at least 1")
    given = {key: value for key, value in kwargs.items() if value is not None}
    accepted = [key for key in inspect.signature(loader).parameters if key != "name"]
    for key, value in given.items():
        if key not in accepted:
            raise UserError(
                f"data.{key}={value!r}: not accepted with data.name={name}; leave it "
                f"out, or None ({suggest(key, accepted)})"
            )
    data = bind(loader, {"name": name, **given}, "data")()
    if data.val is None:
        data = hold_out(data, val_fraction, split_seed)
    data = thin(data, max_train_examples, max_eval_examples)
    require_boxes(data)
    return data


def _find_loader(name: str) -> Callable[..., Data]:
    require_type("data.name", name, str)
    if name.startswith("tfds:") and name != "tfds:":
        return load_tfds
    if name not in LOADERS:
        choices = suggest(name, [*LOADERS, "tfds:<name>"])
        raise UserError(f"data.name={name}: unknown data set; {choices}")
    return LOADERS[name]
