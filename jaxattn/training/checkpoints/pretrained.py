"""Weights that a run starts from: another run's, a PyTorch file's, the package's."""

import dataclasses
import os
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxattn.errors import UserError, suggest
from jaxattn.models.classes import (
    TreePath,
    abstract_variables,
    flat,
    head_paths,
    with_classes_of,
)
from jaxattn.models.torch_layouts import torchvision_names
from jaxattn.models.torch_weights import from_torch, read_state_dict
from jaxattn.training.checkpoints.trained import load_trained
from jaxattn.weights import list_weights


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """Where a run's first weights are, and the network that they are for.

    Attributes:
        origin: The workdir of a run, whose best weights are taken, a PyTorch file, or
            one of `jaxattn.weights.list_weights()`.
        model: The network.
        image_shape: `(H, W, C)` of the run's images.
    """

    origin: str
    model: nn.Module
    image_shape: tuple[int, int, int]

    def read(self) -> dict[TreePath, np.ndarray]:
        """Returns values of the network's variables by path.

        The head's are missing if it was for another number of classes.

        Raises:
            UserError: If they cannot be read, or are another network's.
        """
        has_head = hasattr(self.model, "num_classes")
        head = head_paths(self.model, self.image_shape) if has_head else frozenset()
        if self.origin in list_weights():
            given = flat(load_trained(weights=self.origin).variables)
        elif self._path.is_dir():
            given = self._read_run()
        elif self._path.exists():
            given = self._read_torch(head)
        else:
            raise UserError(
                f"init_from={self.origin}: no such workdir or PyTorch file, nor weights"
                f" of the package; {suggest(self.origin, list_weights())}"
            )
        wanted = flat(abstract_variables(self.model, self.image_shape))
        if any(_shape(given, path) != wanted[path].shape for path in head):
            given = {k: leaf for k, leaf in given.items() if k not in head}
            wanted = {k: leaf for k, leaf in wanted.items() if k not in head}
        paths = sorted(given.keys() | wanted.keys())
        if wrong := [p for p in paths if _shape(given, p) != _shape(wanted, p)]:
            path = wrong[0]
            raise UserError(
                f"init_from={self.origin}: weights of another network: {len(wrong)}"
                f" differ, such as {'/'.join(path)}, which is {_shape(given, path)}"
                f" there and {_shape(wanted, path)} here"
            )
        return given

    @property
    def _path(self) -> pathlib.Path:
        return pathlib.Path(os.path.expanduser(self.origin))

    def _read_run(self) -> dict[TreePath, np.ndarray]:
        try:
            return flat(load_trained(self._path).variables)
        except UserError as error:
            raise UserError(f"init_from: {error}") from error

    def _read_torch(self, head: Collection[TreePath]) -> dict[TreePath, np.ndarray]:
        try:
            state = read_state_dict(self._path)
            names = torchvision_names(state)
            state = {names[name]: array for name, array in state.items()}
            model = with_classes_of(self.model, state, head)
            example = jax.ShapeDtypeStruct((1, *self.image_shape), jnp.float32)
            return flat(from_torch(model, state, example))
        except ValueError as error:
            raise UserError(f"init_from={self.origin}: {error}") from error


def _shape(leaves: Mapping[TreePath, Any], path: TreePath) -> tuple[int, ...] | None:
    return leaves[path].shape if path in leaves else None
