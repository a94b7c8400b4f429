"""The layers of a network, in the order in which an image goes through them.

Nothing here knows a network by its name: modules are found by calling it on shapes. A
layer is a largest module that does not reduce the side of its map fourfold: a
convolution, a residual block, but not what holds several stages. What has vectors
alone, such as a normalisation, belongs to the layer before. So a residual network has
a stem, its blocks and a head, as timm counts them for rates by layer.
"""

import string
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from jaxattn.models.classes import TreePath, abstract_variables, flat
from jaxattn.ops.norm import BatchNorm

ModulePath = tuple[str, ...]
Groups = dict[ModulePath, frozenset[TreePath]]  # parameters by the module they are of

_SEVERAL = 4  # what reduces a side so often holds several layers


class Layer(NamedTuple):
    """What learns at one rate.

    Attributes:
        modules: Paths of its modules: `(("conv1",), ("bn1",))`.
        stage: Counted from 0. A stage begins where the map becomes smaller, where names
            begin otherwise (`layer1.1`, `layer2.0`; but not `res_0`, `res_1`), and with
            the head.
        params: Paths of its parameters.
    """

    modules: tuple[ModulePath, ...]
    stage: int
    params: frozenset[TreePath]

    def __str__(self) -> str:
        """Returns its modules as checkpoints name them: "conv1, bn1"."""
        return ", ".join(map(".".join, self.modules))


class Layers(NamedTuple):
    """What `find_layers` finds.

    Attributes:
        layers: From the image to the head.
        batch_norms: Paths of the modules that are `jaxattn.ops.BatchNorm`.
        sizes: Number of values of each parameter, by path.
    """

    layers: tuple[Layer, ...]
    batch_norms: frozenset[ModulePath]
    sizes: dict[TreePath, int]

    def stages(self) -> dict[int, list[Layer]]:
        """Returns the layers by stage, in order."""
        found: dict[int, list[Layer]] = {}
        for layer in self.layers:
            found.setdefault(layer.stage, []).append(layer)
        return found


class _Call(NamedTuple):
    """Calls of a module: sides of the smallest maps, 0 where there is none.

    Attributes:
        side: Of what the first call takes.
        side_after: Of what any of them returns.
        is_batch_norm: Whether it is `jaxattn.ops.BatchNorm`.
    """

    side: int
    side_after: int
    is_batch_norm: bool

    @property
    def is_of_several(self) -> bool:
        return self.side > 0 and self.side_after * _SEVERAL <= self.side


Calls = dict[ModulePath, _Call]  # in the order in which they begin


def find_layers(
    model: nn.Module,
    image_shape: tuple[int, int, int],
    head: Collection[TreePath] = frozenset(),
) -> Layers:
    """Returns the layers of a network; computes nothing.

    Args:
        model: The network.
        image_shape: `(H, W, C)` of its images.
        head: Paths of the parameters of its head, which is a stage of its own.
    """
    calls, params = _trace(model, image_shape)
    groups = dict(_group((), calls, params))
    # What is of no called module, as a network may have it itself, comes first.
    first = next(iter(groups))
    groups[first] |= frozenset(params).difference(*groups.values())
    return Layers(
        tuple(_join(groups, calls, params, head)),
        frozenset(path for path, call in calls.items() if call.is_batch_norm),
        {path: leaf.size for path, leaf in params.items()},
    )


def _trace(
    model: nn.Module, image_shape: tuple[int, int, int]
) -> tuple[Calls, dict[TreePath, Any]]:
    """Returns the calls of a network's modules, and its parameters by path."""
    calls: Calls = {}

    def record(next_function: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module, before = context.module, calls.get(context.module.path)
        if context.method_name == "setup":
            return next_function(*args, **kwargs)
        if before is None:
            is_norm = isinstance(module, BatchNorm)
            calls[module.path] = _Call(_side(args), 0, is_norm)
        outputs = next_function(*args, **kwargs)
        after = _side(outputs)
        after = after if before is None else min(after, before.side_after)
        calls[module.path] = calls[module.path]._replace(side_after=after)
        return outputs

    with nn.intercept_methods(record):
        variables = flat(abstract_variables(model, image_shape))
    return calls, {path: v for path, v in variables.items() if path[0] == "params"}


def _side(values: Any) -> int:
    maps = [v for v in jax.tree.leaves(values) if getattr(v, "ndim", 0) == 4]
    return min((max(v.shape[1:3]) for v in maps), default=0)


def _group(
    path: ModulePath, calls: Calls, params: Collection[TreePath]
) -> Iterator[tuple[ModulePath, frozenset[TreePath]]]:
    """Yields the layers in a module that holds several, with their parameters."""
    own = {
        child: frozenset(p for p in params if p[1 : 1 + len(child)] == child)
        for child in calls
        if child and child[:-1] == path
    }
    own = {child: found for child, found in own.items() if found}
    if not own:
        yield path, frozenset(p for p in params if p[1 : 1 + len(path)] == path)
    for child, found in own.items():
        if calls[child].is_of_several:
            yield from _group(child, calls, params)
        else:
            yield child, found


def _join(
    groups: Groups,
    calls: Calls,
    params: Mapping[TreePath, Any],
    head: Collection[TreePath],
) -> list[Layer]:
    """Numbers the stages, and joins vectors to the layer before them."""
    layers: list[Layer] = []
    before: Any = None  # how the names begin, and whether it is the head
    side = 0
    for path, own in groups.items():
        if layers and all(params[p].ndim < 2 for p in own):
            modules, stage, others = layers[-1]
            layers[-1] = Layer((*modules, path), stage, others | own)
            continue
        now = (path[:-1], _beginning(*path[-1:]), not own.isdisjoint(head))
        is_new = now != before or calls[path].side_after < side
        stage = layers[-1].stage + is_new if layers else 0
        layers.append(Layer((path,), stage, own))
        before, side = now, calls[path].side_after
    return layers


def _beginning(name: str = "") -> str:
    """Returns what names of one stage have in common: "layer1" of "layer1.0"."""
    first, dot, _ = name.partition(".")
    return first if dot else first.rstrip(string.digits)
