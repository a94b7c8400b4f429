"""Weights that come with the package: small networks, trained by its own recipes.

Each is `NAME.npz` with the arrays, `NAME.json` with the config of its run, and the
model card `NAME.md`: data, recipe, accuracy, limits. The first two are made of a
workdir by

    trained = load_trained(workdir)
    write_weights(folder, name, trained.config, trained.variables, trained.step)

Beside them, `imagenet_classes.txt`: what networks trained on ImageNet tell apart, in
the words of torchvision's list.
"""

import importlib.resources
import io
import json
import pathlib
from importlib.resources.abc import Traversable
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from jaxattn.atomic import write_atomically, write_json
from jaxattn.errors import choose

# Of a config: where something was on the machine of the run.
_PLACES = ("init_from", "imported_from", "averaged_from")


def list_weights() -> tuple[str, ...]:
    """Returns the names of all weights, sorted."""
    names = (file.name for file in _folder().iterdir())
    return tuple(sorted(n.removesuffix(".npz") for n in names if n.endswith(".npz")))


def read_weights(name: str) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Returns config, variables and training steps of a network.

    Args:
        name: One of `list_weights()`.

    Raises:
        UserError: If it is none.
    """
    choose("weights", name, list_weights())
    described = json.loads((_folder() / f"{name}.json").read_text())
    content = io.BytesIO((_folder() / f"{name}.npz").read_bytes())
    with np.load(content, allow_pickle=False) as arrays:
        flat = {tuple(path.split("/")): arrays[path] for path in arrays.files}
    variables = {"batch_stats": {}, **traverse_util.unflatten_dict(flat)}
    return described["config"], variables, described["step"]


def write_weights(
    folder: pathlib.Path, name: str, config: dict[str, Any], variables: Any, step: int
) -> None:
    """Writes what `read_weights` reads, without places on this machine.

    Args:
        folder: Of the files; this package's, for weights that are to come with it.
        name: Of the weights, such as `canet_tiny-cifar10`.
        config: Of the run, by section.
        variables: `params` and `batch_stats`.
        step: Training steps done.
    """
    flat: Any = traverse_util.flatten_dict(jax.device_get(variables), sep="/")
    content = io.BytesIO()
    np.savez_compressed(content, **flat)
    write_atomically(folder / f"{name}.npz", content.getvalue())
    described = {"config": without_places(config), "step": step}
    write_json(folder / f"{name}.json", described)


def without_places(config: dict[str, Any]) -> dict[str, Any]:
    """Returns a run's config without paths of the machine that the run was on.

    Args:
        config: By section.
    """
    kept = {key: value for key, value in config.items() if key not in _PLACES}
    return kept | {"data": {**config.get("data", {}), "path": None}}


def imagenet_classes() -> tuple[str, ...]:
    """Returns the names of ImageNet's 1,000 classes, in the order of logits."""
    return tuple((_folder() / "imagenet_classes.txt").read_text().splitlines())


def _folder() -> Traversable:
    return importlib.resources.files(__name__)
