"""Which parameters of a network learn, from which epoch on, and how fast.

Layers and stages are those that `jaxattn.models.layers` finds, for every network. With
all keys left out everything learns alike, by one optimizer.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from jaxattn.config.bind import bind
from jaxattn.errors import UserError, require, suggest
from jaxattn.models.classes import TreePath, flat, head_paths
from jaxattn.models.layers import Layer, Layers, find_layers
from jaxattn.training import optim
from jaxattn.training.freezing import Frozen
from jaxattn.training.options import Options

T = TypeVar("T")
Starts = Mapping[TreePath, int | None]
"""Epochs before a parameter learns, by path; None: it never does."""


@dataclasses.dataclass(frozen=True)
class LayeredNetwork:
    """The network of a run, whose layers are found when they are asked for.

    Attributes:
        model: The network.
        image_shape: `(H, W, C)` of its images.
    """

    model: nn.Module
    image_shape: tuple[int, int, int]

    @functools.cached_property
    def head(self) -> frozenset[TreePath]:
        """Paths of the parameters of the head."""
        return self._find(head_paths)

    @functools.cached_property
    def found(self) -> Layers:
        """Its layers, the head apart if the network says its number of classes."""
        head = self.head if hasattr(self.model, "num_classes") else frozenset()
        return self._find(find_layers, head)

    def _find(self, find: Callable[..., T], *args: Any) -> T:
        try:
            return find(self.model, self.image_shape, *args)
        except UserError:
            raise
        except (ValueError, TypeError) as error:  # as networks raise it
            shape = " x ".join(map(str, self.image_shape))
            raise UserError(
                f"images of {shape} do not fit the model: {error}"
            ) from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizers:
    """The optimizer of a run, and the rates of its layers.

    Attributes:
        make: Makes it of the epoch that it begins in and of the norm that it clips at.
        clip_norm: Largest global norm of the gradients; None does not clip.
        learning_rate: Of the schedule at factor 1.
        layer_decay: Rate of a layer, in units of that of the next.
        head_rate: Of the head, in place of `learning_rate`; None has none of its own.
    """

    make: Callable[[int, float | None], optax.GradientTransformation]
    clip_norm: float | None
    learning_rate: float
    layer_decay: float
    head_rate: float | None


def make_optimizers(
    *,
    schedule: optim.Schedule,
    length: optim.RunLength,
    learning_rate: float,
    clip_norm: float | None = None,
    layer_decay: float = 1.0,
    head_rate: float | None = None,
    **kwargs: Any,
) -> Optimizers:
    """Returns the optimizer of a recipe, with the rates of a network's layers.

    Args:
        schedule: Learning rate by step.
        length: Of the run.
        learning_rate: Of the schedule at factor 1.
        clip_norm: As `jaxattn.training.optim.make_optimizer` has it.
        layer_decay: Factor of the learning rate from a layer to the one before it, in
            (0, 1]: the last layer has the schedule's rate, that before `layer_decay` of
            it, and so on to the first. Layers are as in `jaxattn.models.layers`.
        head_rate: Learning rate of the head, which is made for the number of classes,
            in place of `schedule.learning_rate`: the schedule is of both.
        **kwargs: Further arguments of `jaxattn.training.optim.make_optimizer`.

    Raises:
        UserError: If a name or key is unknown, or a value out of its range.
    """
    holds = 0 < layer_decay <= 1
    require("optimizer.layer_decay", layer_decay, holds, "in (0, 1]; 1 is one rate")
    if head_rate is not None:
        require("optimizer.head_rate", head_rate, head_rate > 0, "above 0")

    def make(epoch: int, clip_norm: float | None) -> optax.GradientTransformation:
        done = epoch * length.steps_per_epoch
        later = (lambda count: schedule(count + done)) if done else schedule
        of = {"schedule": later, "length": length._replace(first_epoch=epoch)}
        section = {**kwargs, "clip_norm": clip_norm}
        return bind(optim.make_optimizer, section, "optimizer", **of)()

    make(0, clip_norm)  # which refuses what is wrong
    return Optimizers(
        make=make,
        clip_norm=clip_norm,
        learning_rate=learning_rate,
        layer_decay=layer_decay,
        head_rate=head_rate,
    )


# What a run does -------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Finetuning:
    """What of a network learns when, and how fast.

    A phase is the epochs in which the same parameters learn; it is known by the first
    of them, counted from 0. What a train step computes depends on its phase alone.

    Attributes:
        network: Of the run.
        optimizers: Of the run.
        starts: Of every parameter; empty if all learn from the start.
        in_groups: Whether parameters with one start have an optimizer of their own,
            which is new when they begin to learn, as PyTorch's is for parameters that
            it had no gradients of. Else there is one for all.
        freeze_batch_norm: As in `Options`.
        factors: Of the learning rate, by parameter; empty if all are 1.
    """

    network: LayeredNetwork
    optimizers: Optimizers
    starts: Starts
    in_groups: bool
    freeze_batch_norm: str | None
    factors: Mapping[TreePath, float]

    @functools.cached_property
    def phases(self) -> tuple[int, ...]:
        """Returns all phases, in order."""
        return tuple(sorted({0, *_group(self.starts)}))

    def phase(self, epoch: int) -> int:
        """Returns the phase of an epoch, counted from 0."""
        return max(first for first in self.phases if first <= epoch)

    def frozen(self, phase: int) -> Frozen:
        """Returns what stays as it is in a phase."""
        starts = self.starts.items()
        paths = frozenset(p for p, first in starts if first is None or first > phase)
        if self.freeze_batch_norm is None:
            return Frozen(paths)
        norms = self.network.found.batch_norms
        if self.freeze_batch_norm == "frozen":
            norms = frozenset(n for n in norms if ("params", *n, "scale") in paths)
        names = ("mean", "var")
        statistics = {("batch_stats", *norm, name) for norm in norms for name in names}
        return Frozen(paths | statistics, norms)

    def optimizer(self, phase: int = 0) -> optax.GradientTransformation:
        """Returns the optimizer of a phase; its state has the same shape in all."""
        make, clip_norm = self.optimizers.make, self.optimizers.clip_norm
        if not self.in_groups:
            optimizer = make(0, clip_norm)
        else:
            optimizer = _by_start(lambda first: make(first, None), self.starts, phase)
            if clip_norm is not None:
                optimizer = optax.chain(optim.clip_by_global_norm(clip_norm), optimizer)
        return _scaled(optimizer, self.factors) if self.factors else optimizer

    def notes(self) -> Iterator[str]:
        """Yields lines for a person about what is frozen, and at which rates."""
        if self.starts:
            yield from map(self._tell_frozen, self.phases)
        if self.starts or self.freeze_batch_norm is not None:
            yield self._tell_norms()
        if self.factors:
            yield self._tell_rates()

    def _tell_frozen(self, phase: int) -> str:
        paths, (layers, _, sizes) = self.frozen(phase).paths, self.network.found
        count = sum(size for path, size in sizes.items() if path in paths)
        whole = [str(layer) for layer in layers if layer.params <= paths]
        parts = [
            f"parts of {layer}"
            for layer in layers
            if not layer.params <= paths and not layer.params.isdisjoint(paths)
        ]
        when = f"from epoch {phase + 1} on " if phase else ""
        which = f": {_listed([*whole, *parts])}" if count else ""
        return f"{when}frozen: {count:,} of {sum(sizes.values()):,} parameters{which}"

    def _tell_norms(self) -> str:
        total = len(self.network.found.batch_norms)
        counts = [len(self.frozen(phase).norms) for phase in self.phases]
        if not any(counts):
            return f"BatchNorm: the statistics of all {total} follow the batches"
        from_to = " to ".join(str(n) for n in dict.fromkeys((counts[0], counts[-1])))
        return f"BatchNorm: {from_to} of {total} by their running statistics"

    def _tell_rates(self) -> str:
        layers, rate = self.network.found.layers, self.optimizers.learning_rate
        never = {path for path, first in self.starts.items() if first is None}
        shown = [
            f"{rate * self.factors[min(layer.params)]:.3g} ({layer})"
            for layer in layers
            if not layer.params <= never
        ]
        return f"learning rates: {', '.join(dict.fromkeys([*shown[:1], *shown[-2:]]))}"


def make_finetuning(
    options: Options, network: LayeredNetwork, optimizers: Optimizers
) -> Finetuning:
    """Returns what of a network learns when, and how fast.

    Args:
        options: Of the run.
        network: The network.
        optimizers: Of the run.

    Raises:
        UserError: If something is named that the network has not, or nothing learns.
    """
    body = getattr(network.model, "backbone", network.model)
    stages = getattr(body, "frozen_stages", 0)
    # Without a gradient they would still decay.
    require("model.frozen_stages", stages, stages == 0, "left out: use freeze_stages")
    if options.freeze_batch_norm is not None:
        has_norm = bool(network.found.batch_norms)
        wanted = "left out: the network has no jaxattn.ops.BatchNorm"
        require("freeze_batch_norm", options.freeze_batch_norm, has_norm, wanted)
    starts = _find_starts(options, network)
    if starts and all(first != 0 for first in starts.values()):
        keys = ("freeze", "freeze_stages", "freeze_batch_norm")
        given = {key: getattr(options, key) for key in keys}
        shown = ", ".join(f"{k}={v!r}" for k, v in given.items() if v is not None)
        last = network.found.layers[-1]
        raise UserError(
            f"{shown}: nothing is left to learn; leave some, such as {last}"
        )
    return Finetuning(
        network=network,
        optimizers=optimizers,
        starts=starts,
        # With `trainable="head"` there is one, as there always was.
        in_groups=bool(starts) and options.trainable == "all",
        freeze_batch_norm=options.freeze_batch_norm,
        factors=_find_factors(network, optimizers),
    )


# When ------------------------------------------------------------------------------


def _find_starts(options: Options, network: LayeredNetwork) -> Starts:
    if options.trainable == "head":
        paths = network.found.sizes
        return {path: 0 if path in network.head else None for path in paths}
    never = {*_matched(options.freeze, network.found)} if options.freeze else set()
    if options.freeze_stages is not None:
        never |= _of_stages(options.freeze_stages, network.found)
    if options.freeze_batch_norm == "all":
        norms = network.found.batch_norms
        never |= {("params", *n, name) for n in norms for name in ("scale", "bias")}
    if not never and not options.unfreeze_epochs:
        return {}
    starts: dict[TreePath, int | None] = dict.fromkeys(network.found.sizes, 0)
    if options.unfreeze_epochs:
        starts |= _thawing(options.unfreeze_epochs, network, never)
    return starts | dict.fromkeys(never & starts.keys())


def _matched(pattern: str, found: Layers) -> set[TreePath]:
    """Returns the parameters whose names, from their start, match a pattern."""
    names = {path: ".".join(path[1:]) for path in found.sizes}
    paths = {path for path, name in names.items() if re.match(pattern, name)}
    if not paths:
        modules = [".".join(path) for layer in found.layers for path in layer.modules]
        raise UserError(
            f"freeze={pattern!r}: matches the start of no parameter's name, such as"
            f" {next(iter(names.values()))}; {suggest(pattern, modules)}"
        )
    return paths


def _of_stages(last: int, found: Layers) -> set[TreePath]:
    """Returns the parameters of the stages up to one, and that one's."""
    *body, _ = stages = found.stages()
    choices = "; ".join(f"{n} ({_listed(map(str, stages[n]))})" for n in body)
    wanted = f"a stage before the last: {choices}"
    require("freeze_stages", last, last in body, wanted)
    return {p for layer in found.layers if layer.stage <= last for p in layer.params}


def _thawing(
    epochs: Sequence[int], network: LayeredNetwork, never: set[TreePath]
) -> dict[TreePath, int]:
    """Returns the starts of all but the head: the last stages learn first."""
    stages = [
        {p for layer in stage for p in layer.params} - network.head
        for stage in network.found.stages().values()
    ]
    stages = [paths for paths in stages if not paths <= never]
    wanted = f"at most {len(stages)} epochs, one for each stage before the head"
    require("unfreeze_epochs", tuple(epochs), len(epochs) <= len(stages), wanted)
    # The last epoch is of all stages that are left.
    firsts = [*epochs, *(epochs[-1] for _ in stages[len(epochs) :])]
    by_stage = zip(reversed(stages), firsts, strict=True)
    return {path: first for paths, first in by_stage for path in paths}


def _listed(names: Any) -> str:
    first, *others = names = list(names)
    return f"{first} ... {others[-1]}" if len(names) > 3 else ", ".join(names)


# How fast --------------------------------------------------------------------------


def _find_factors(
    network: LayeredNetwork, optimizers: Optimizers
) -> dict[TreePath, float]:
    decay, head_rate = optimizers.layer_decay, optimizers.head_rate
    if decay == 1 and head_rate is None:
        return {}
    layers: Sequence[Layer] = network.found.layers
    factors = {
        path: decay ** (len(layers) - 1 - i)
        for i, layer in enumerate(layers)
        for path in layer.params
    }
    if head_rate is None:
        return factors
    return factors | dict.fromkeys(network.head, head_rate / optimizers.learning_rate)


def _scaled(
    optimizer: optax.GradientTransformation, factors: Mapping[TreePath, float]
) -> optax.GradientTransformation:
    """Multiplies what an optimizer adds to each parameter, decay included."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = optimizer.update(updates, state, params)
        leaves = flat({"params": updates}).items()
        scaled = {path[1:]: leaf * factors[path] for path, leaf in leaves}
        return traverse_util.unflatten_dict(scaled), state

    return optax.GradientTransformation(optimizer.init, update)


def _group(starts: Starts) -> dict[int, set[TreePath]]:
    """Returns the parameters that ever learn, by their start, in order."""
    firsts = sorted({first for first in starts.values() if first is not None})
    return {n: {path for path, first in starts.items() if first == n} for n in firsts}


def _by_start(
    make: Callable[[int], optax.GradientTransformation], starts: Starts, phase: int
) -> optax.GradientTransformation:
    """Joins optimizers of which each has the parameters with one start.

    Those that have not begun wait: their state stays as it is. What never learns has
    no state.
    """
    groups = _group(starts)
    optimizers = {str(first): make(first) for first in groups}

    def parts_of(tree: Any) -> dict[str, Any]:
        leaves = flat({"params": tree})
        return {
            str(first): traverse_util.unflatten_dict(
                {path[1:]: leaves[path] for path in sorted(paths)}
            )
            for first, paths in groups.items()
        }

    def init(params: Any) -> dict[str, Any]:
        parts = parts_of(params)
        return {key: optimizers[key].init(part) for key, part in parts.items()}

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        parts, params, state = parts_of(updates), parts_of(params), dict(state)
        new = flat(jax.tree.map(jnp.zeros_like, updates))
        for key in map(str, (first for first in groups if first <= phase)):
            given = parts[key], state[key], params[key]
            part, state[key] = optimizers[key].update(*given)
            new |= flat(part)
        return traverse_util.unflatten_dict(new), state

    return optax.GradientTransformation(init, update)
