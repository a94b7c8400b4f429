"""Weights that a run starts from: another run's, published ones, the package's."""

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxattn.data.preprocess import Preprocess
from jaxattn.data.source import Data
from jaxattn.errors import UserError, suggest
from jaxattn.models.classes import (
    TreePath,
    abstract_variables,
    flat,
    head_paths,
    with_classes_of,
    without_attention,
)
from jaxattn.models.detector_layouts import is_detector
from jaxattn.models.published import (
    WEIGHTS,
    Published,
    is_address,
    read_published,
)
from jaxattn.models.segmenter_layouts import is_segmenter
from jaxattn.models.torch_layouts import torchvision_names
from jaxattn.models.torch_weights import from_torch
from jaxattn.paths import local_path
from jaxattn.text import shortened
from jaxattn.training.checkpoints.trained import (
    Trained,
    Weights,
    load_trained,
    load_weights,
)
from jaxattn.weights import list_weights

_BACKBONE = "backbone"  # the attribute, and the name, of a network inside another one


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """Where a run's first weights are, and the network that they are for.

    Attributes:
        origin: The workdir of a run, whose best weights are taken, one of
            `jaxattn.weights.list_weights()`, or what `jaxattn.models.published` reads.
        model: The network.
        data: Of the run.
        preprocess: Of the run; None if nobody is to be told that it is another one
            than that of the weights.
    """

    origin: str
    model: nn.Module
    data: Data
    preprocess: Preprocess | None = None

    def read(self, say: Callable[[str], None]) -> dict[TreePath, np.ndarray]:
        """Returns values of the network's variables by path, without what is new in it.

        The head is new if it was for other classes, by number or by name, or is not
        there. PyTorch's files do not name their classes: there the number decides. An
        attention module is new if the weights have nothing of it. All else must fit.

        Args:
            say: Told what starts anew, and whether images look other here.

        Raises:
            UserError: If they cannot be read, or are another network's.
        """
        shape = self.data.image_shape
        has_head = hasattr(self.model, "num_classes")
        head = head_paths(self.model, shape) if has_head else frozenset()
        wanted = flat(abstract_variables(self.model, shape))
        added = wanted.keys() - self._plain_paths()
        source = self._load()
        if self._is_of_backbone(source):
            given = self._read_backbone(source)
            added |= {path for path in wanted if path[1] != _BACKBONE}
        else:
            given = self._read_leaves(source, self.model, head, may_lack=head | added)
        is_other = not self._has_classes_of(source)
        if is_other or any(_shape(given, p) != _shape(wanted, p) for p in head):
            given = {k: leaf for k, leaf in given.items() if k not in head}
            wanted = {k: leaf for k, leaf in wanted.items() if k not in head}
        new = _untouched_modules(added, wanted.keys() - added, given)
        missing = wanted.keys() - set().union(*new.values())
        paths = sorted(given.keys() | missing)
        if wrong := [p for p in paths if _shape(given, p) != _shape(wanted, p)]:
            path = wrong[0]
            raise UserError(
                f"init_from={self.origin}: weights of another network: {len(wrong)}"
                f" differ, such as {'/'.join(path)}, which is {_shape(given, path)}"
                f" there and {_shape(wanted, path)} here"
            )
        say(self._note(bool(head - given.keys()), source))
        if new:
            say(f"starting as initialised, for it is not there: {', '.join(new)}")
        for note in self._compare_images(source):
            say(note)
        return given

    def _plain_paths(self) -> Collection[TreePath]:
        """Paths of the same network without attention."""
        plain = without_attention(self.model)
        return flat(abstract_variables(plain, self.data.image_shape)).keys()

    def _load(self) -> Trained | Weights | Published:
        if self.origin in list_weights():
            return load_trained(weights=self.origin)
        if not is_address(self.origin):
            path = local_path(self.origin, "init_from")
            if not path.exists():
                raise UserError(
                    f"init_from={self.origin}: no such workdir or PyTorch file, nor"
                    f" weights of the package; {suggest(self.origin, list_weights())}"
                )
            if path.is_dir() and not (path / WEIGHTS).is_file():
                try:
                    return load_weights(path)
                except UserError as error:
                    raise UserError(f"init_from: {error}") from error
        try:
            return read_published(self.origin)
        except UserError as error:
            raise UserError(f"init_from={self.origin}: {error}") from error

    def _is_of_backbone(self, source: Trained | Weights | Published) -> bool:
        """Whether weights are a classifier's, for a network that has a backbone."""
        if not isinstance(getattr(self.model, _BACKBONE, None), nn.Module):
            return False
        if isinstance(source, Published):
            return not (is_segmenter(source.state) or is_detector(source.state))
        return all(path[1] != _BACKBONE for path in flat(source.variables))

    def _read_backbone(
        self, source: Trained | Weights | Published
    ) -> dict[TreePath, np.ndarray]:
        """Returns what the backbone has of a classifier's weights, by its own paths."""
        backbone: Any = getattr(self.model, _BACKBONE)
        classifier = backbone.clone(out_stages=None)
        shape = self.data.image_shape
        kept = flat(abstract_variables(backbone, shape)).keys()
        plain = flat(abstract_variables(without_attention(classifier), shape))
        whole = flat(abstract_variables(classifier, shape)).keys()
        head = head_paths(classifier, shape)
        # Of what is not kept nothing need be there, and of what attention adds.
        lacks = (whole - kept) | (whole - plain.keys()) | head
        given = self._read_leaves(source, classifier, head, may_lack=lacks)
        own = {path: leaf for path, leaf in given.items() if path not in whole - kept}
        return {(path[0], _BACKBONE, *path[1:]): leaf for path, leaf in own.items()}

    def _read_leaves(
        self,
        source: Trained | Weights | Published,
        model: nn.Module,
        head: Collection[TreePath],
        may_lack: Collection[TreePath],
    ) -> dict[TreePath, np.ndarray]:
        if not isinstance(source, Published):
            return flat(source.variables)
        names = torchvision_names(source.state)
        state = {names[name]: array for name, array in source.state.items()}
        example = jax.ShapeDtypeStruct((1, *self.data.image_shape), jnp.float32)
        try:
            model = with_classes_of(model, state, head)
            return flat(from_torch(model, state, example, may_lack=may_lack))
        except ValueError as error:
            raise UserError(
                f"init_from={self.origin}: {shortened(str(error))}"
            ) from error

    def _has_classes_of(self, source: Trained | Weights | Published) -> bool:
        names, own = _class_names(source), self.data.class_names
        if isinstance(source, Published) and not names:
            return True
        name = source.config.get("data", {}).get("name")
        numbers = tuple(map(str, range(len(names))))
        # Numbers stand for names that a file of the same data, or one of weights, does
        # not hold.
        is_nameless = numbers in (names, own) and name == self.data.name
        return names == own or is_nameless or (names == numbers and name is None)

    def _note(self, is_new: bool, source: Trained | Weights | Published) -> str:
        if not is_new:
            return f"starting from {self.origin}, its head too"
        names = _class_names(source)
        of = f"; it told apart {_some(names)}" if names else ""
        return (
            f"starting from {self.origin}; the head starts anew, for the classes here"
            f" are {_some(self.data.class_names)}{of}"
        )

    def _compare_images(self, source: Trained | Weights | Published) -> Iterator[str]:
        """Yields in what images were normalised otherwise than they are here."""
        if self.preprocess is None:
            return
        channels = self.data.image_shape[2]
        for key, value in source.config.get("normalize", {}).items():
            here, there = (
                tuple(v) * (channels if len(v) == 1 else 1)
                for v in (getattr(self.preprocess, key), value)
            )
            if here != there:
                yield (
                    f"normalize.{key} is {here}, and was {there} where the weights are"
                    f" from: --config.normalize.{key}='{there}' is as it was"
                )


def _untouched_modules(
    added: Collection[TreePath],
    body: Collection[TreePath],
    given: Collection[TreePath],
) -> dict[str, set[TreePath]]:
    """Returns the paths of each module that a network adds and nothing is given of.

    Args:
        added: What the network adds to its plain form.
        body: The other paths of the network, of whose modules those added are parts.
        given: Paths of the weights.
    """
    known = {path[1:i] for path in body for i in range(2, len(path) + 1)}
    modules: dict[str, set[TreePath]] = {}
    for path in sorted(added):
        parts = (path[1:i] for i in range(2, len(path) + 1))
        module = next(part for part in parts if part not in known)
        modules.setdefault(".".join(module), set()).add(path)
    return {name: paths for name, paths in modules.items() if not paths & set(given)}


def _class_names(source: Trained | Weights | Published) -> tuple[str, ...]:
    if isinstance(source, Published):
        return tuple(source.config.get("dataset", {}).get("class_names", ()))
    return source.class_names


def _shape(leaves: Mapping[TreePath, Any], path: TreePath) -> tuple[int, ...] | None:
    return leaves[path].shape if path in leaves else None


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
