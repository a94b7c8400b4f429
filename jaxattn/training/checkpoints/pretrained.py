"""Weights that a run starts from: another run's, a PyTorch file's, the package's."""

import dataclasses
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxattn.data.source import Data
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
from jaxattn.paths import local_path
from jaxattn.training.checkpoints.trained import (
    Trained,
    Weights,
    load_trained,
    load_weights,
)
from jaxattn.weights import list_weights


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """Where a run's first weights are, and the network that they are for.

    Attributes:
        origin: The workdir of a run, whose best weights are taken, a PyTorch file, or
            one of `jaxattn.weights.list_weights()`.
        model: The network.
        data: Of the run.
    """

    origin: str
    model: nn.Module
    data: Data

    def read(self, say: Callable[[str], None]) -> dict[TreePath, np.ndarray]:
        """Returns values of the network's variables by path, without a new head's.

        The head starts anew if it was for other classes, by number or by name. A
        PyTorch file does not name its classes: their number decides.

        Args:
            say: Told what becomes of the head.

        Raises:
            UserError: If they cannot be read, or are another network's.
        """
        has_head = hasattr(self.model, "num_classes")
        head = (
            head_paths(self.model, self.data.image_shape) if has_head else frozenset()
        )
        trained = self._load()
        given = self._read_torch(head) if trained is None else flat(trained.variables)
        wanted = flat(abstract_variables(self.model, self.data.image_shape))
        is_other = trained is not None and not self._has_classes_of(trained)
        if is_other or any(_shape(given, p) != wanted[p].shape for p in head):
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
        say(self._note(bool(head - given.keys()), trained))
        return given

    @property
    def _path(self) -> pathlib.Path:
        return local_path(self.origin, "init_from")

    def _load(self) -> Trained | Weights | None:
        """Loads the network of a run or of the package; None is a PyTorch file."""
        if self.origin in list_weights():
            return load_trained(weights=self.origin)
        if not self._path.exists():
            raise UserError(
                f"init_from={self.origin}: no such workdir or PyTorch file, nor weights"
                f" of the package; {suggest(self.origin, list_weights())}"
            )
        if not self._path.is_dir():
            return None
        try:
            return load_weights(self._path)
        except UserError as error:
            raise UserError(f"init_from: {error}") from error

    def _has_classes_of(self, trained: Trained | Weights) -> bool:
        names, own = trained.class_names, self.data.class_names
        name = trained.config.get("data", {}).get("name")
        numbers = tuple(map(str, range(len(names))))
        # Numbers stand for names that a file of the same data, or one of weights, does
        # not hold.
        is_nameless = numbers in (names, own) and name == self.data.name
        return names == own or is_nameless or (names == numbers and name is None)

    def _note(self, is_new: bool, trained: Trained | Weights | None) -> str:
        if not is_new:
            return f"starting from {self.origin}, its head too"
        names = () if trained is None else trained.class_names
        of = f"; it told apart {_some(names)}" if names else ""
        return (
            f"starting from {self.origin}; the head starts anew, for the classes here"
            f" are {_some(self.data.class_names)}{of}"
        )

    def _read_torch(self, head: Collection[TreePath]) -> dict[TreePath, np.ndarray]:
        try:
            state = read_state_dict(self._path)
            names = torchvision_names(state)
            state = {names[name]: array for name, array in state.items()}
            model = with_classes_of(self.model, state, head)
            example = jax.ShapeDtypeStruct((1, *self.data.image_shape), jnp.float32)
            return flat(from_torch(model, state, example))
        except ValueError as error:
            raise UserError(f"init_from={self.origin}: {error}") from error


def _shape(leaves: Mapping[TreePath, Any], path: TreePath) -> tuple[int, ...] | None:
    return leaves[path].shape if path in leaves else None


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
