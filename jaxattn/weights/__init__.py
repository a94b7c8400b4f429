"""Weights that come with the package: small networks, trained by its own recipes.

Each is `NAME.npz` with the arrays, `NAME.json` with the config of its run, and the
model card `NAME.md`: data, recipe, accuracy, limits.
"""

import importlib.resources
import io
import json
import pathlib
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from jaxattn.atomic import write_atomically, write_json


def list_weights() -> tuple[str, ...]:
    """Returns the names of all weights, sorted."""
    files = importlib.resources.files(__name__).iterdir()
    return tuple(sorted(f.name[:-4] for f in files if f.name.endswith(".npz")))


def read_weights(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the config of a run, with its `step`, and the network's variables.

    Args:
        name: One of `list_weights()`.
    """
    folder = importlib.resources.files(__name__)
    config = json.loads((folder / f"{name}.json").read_text())
    content = io.BytesIO((folder / f"{name}.npz").read_bytes())
    with np.load(content, allow_pickle=False) as arrays:
        flat = {tuple(path.split("/")): arrays[path] for path in arrays.files}
    return config, traverse_util.unflatten_dict(flat)


def write_weights(
    folder: pathlib.Path, name: str, config: dict[str, Any], variables: Any, step: int
) -> None:
    """Writes what `read_weights` reads, without the place of the data.

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
    data = {**config.get("data", {}), "path": None}
    write_json(folder / f"{name}.json", {**config, "data": data, "step": step})
