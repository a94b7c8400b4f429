"""What of a network stays as it is while the rest learns, inside a train step."""

import contextlib
import dataclasses
from typing import Any

import flax.linen as nn
import jax
from flax import traverse_util

from jaxattn.models.classes import TreePath
from jaxattn.models.layers import ModulePath
from jaxattn.training.state import TrainState

# Fields of a state, with the collection that their paths begin with.
_COLLECTIONS = {
    "params": "params",
    "batch_stats": "batch_stats",
    "ema_params": "params",
    "ema_batch_stats": "batch_stats",
}


@dataclasses.dataclass(frozen=True)
class Frozen:
    """What of a network stays as it is.

    Attributes:
        paths: Of parameters and of running statistics. They keep their bits, and so do
            the averages of them.
        norms: Paths of the `BatchNorm` modules that normalise by their running
            statistics in training, too.
    """

    paths: frozenset[TreePath] = frozenset()
    norms: frozenset[ModulePath] = frozenset()

    def stop_gradients(self, params: Any) -> Any:
        """Returns parameters of which those that are frozen have no gradient.

        Nor has what lies between the image and the first of the others.
        """
        stopped = jax.lax.stop_gradient(params) if self.paths else params
        return self._merge(stopped, params, "params")

    def keep(self, old: TrainState, new: TrainState) -> TrainState:
        """Returns the state after a step, in which what is frozen is as before it."""
        kept = {
            field: self._merge(getattr(old, field), getattr(new, field), collection)
            for field, collection in _COLLECTIONS.items()
        }
        return dataclasses.replace(new, **kept)

    def running(self) -> contextlib.AbstractContextManager[Any]:
        """Returns the context in which frozen norms use their running statistics."""
        if not self.norms:
            return contextlib.nullcontext()

        def call(next_function: Any, args: Any, kwargs: Any, context: Any) -> Any:
            if context.method_name == "__call__" and context.module.path in self.norms:
                kwargs = {**kwargs, "train": False}
            return next_function(*args, **kwargs)

        return nn.intercept_methods(call)

    def _merge(self, old: Any, new: Any, collection: str) -> Any:
        """Returns the new tree, with the leaves of the old one that are frozen."""
        if new is None or not self.paths:
            return new
        before, after = (traverse_util.flatten_dict(tree, True) for tree in (old, new))
        kept = {k: v for k, v in before.items() if (collection, *k) in self.paths}
        return traverse_util.unflatten_dict({**after, **kept})
