"""Runs the steps over all devices by `jax.jit` and a mesh.

State and resident images are on every device, batches are split along their first axis.
XLA inserts the communication, so that a run is that of one device with the whole batch.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from jaxattn.data.pipeline import Batch, Feed
from jaxattn.training.state import TrainState
from jaxattn.training.steps import EvalStep, TrainStep

# Of `jax.Device`, which type checkers take for a variable.
Devices = Sequence[Any]
Fetch = Callable[[Batch, Batch], Batch]
Metrics = dict[str, jax.Array]
Dispatch = Callable[[TrainState, Batch, Batch], tuple[TrainState, Metrics]]
Evaluate = EvalStep
_LEVEL = "xla_backend_optimization_level"


class Parallel(Protocol):
    """A way to run the steps over devices."""

    @property
    def axis_name(self) -> str | None:
        """Mapped axis that BatchNorm and the steps must know of."""
        ...

    @property
    def num_devices(self) -> int:
        """Devices that share a batch."""
        ...

    @property
    def state_sharding(self) -> Sharding:
        """Of the state in a checkpoint."""
        ...

    def replicate(self, tree: Any) -> Any:
        """Puts arrays, of the host or as `state_sharding` says, on all devices."""
        ...

    def collect(self, tree: Any) -> Any:
        """The reverse of `replicate`."""
        ...

    def place(self, feed: Feed) -> Batch:
        """Puts this process's part of an evaluation feed on the devices."""
        ...

    def place_stacked(self, feeds: Sequence[Feed]) -> Batch:
        """Puts the feeds of several train steps, stacked, on the devices."""
        ...

    def compile_train(self, step: TrainStep, fetch: Fetch) -> Dispatch:
        """`(state, store, feeds [K]) -> (state, metrics [K])`; donates the state."""
        ...

    def compile_fetch(self, fetch: Fetch) -> Fetch:
        """`(store, feed) -> batch`."""
        ...

    def compile_evaluate(self, step: EvalStep) -> Evaluate:
        """`(variables, batch) -> (sums, predictions)`, the same on every device."""
        ...


def several_steps(step: TrainStep, fetch: Fetch) -> Dispatch:
    """Returns K train steps as one function; K is the length of the stacked feeds."""

    def dispatch(
        state: TrainState, store: Batch, feeds: Batch
    ) -> tuple[TrainState, Metrics]:
        def one(state: TrainState, feed: Batch) -> tuple[TrainState, Metrics]:
            return step(state, fetch(store, feed))

        if len(jax.tree.leaves(feeds)[0]) > 1:
            return jax.lax.scan(one, state, feeds)
        # Not a scan of length 1: see `jaxattn.ops.conv.is_fast_in_loops`.
        state, metrics = one(state, jax.tree.map(lambda leaf: leaf[0], feeds))
        return state, jax.tree.map(lambda leaf: leaf[None], metrics)

    return dispatch


def compile_quickly(function: Callable[..., Any], sharding: Sharding) -> Any:
    """Returns a jitted function that is called once, such as one that draws weights.

    At level 1 of XLA's a CPU computes the same bits (at 0 others), and the program
    compiles in half the time: the draws of all parameters are as long as a train step.
    A level in XLA_FLAGS stays.

    Args:
        function: Of any arguments.
        sharding: Of its results.
    """
    is_chosen = _LEVEL in os.environ.get("XLA_FLAGS", "")
    is_own = jax.default_backend() == "cpu" and not is_chosen
    options = {_LEVEL: 1} if is_own else None
    return jax.jit(function, out_shardings=sharding, compiler_options=options)


def stack(feeds: Sequence[Feed]) -> Feed:
    """Stacks feeds along a new first axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *feeds)


class MeshParallel:
    """`jax.jit` over a mesh with one axis, in one process or several."""

    axis_name = None

    def __init__(self, devices: Devices) -> None:
        self.num_devices = len(devices)
        # Not `jax.make_mesh`, which may reorder the devices: a process feeds the part
        # of the batch that its place in this order says.
        mesh = Mesh(np.asarray(devices), ("data",), axis_types=(AxisType.Auto,))
        self.state_sharding = NamedSharding(mesh, PartitionSpec())
        self._batch = NamedSharding(mesh, PartitionSpec("data"))
        self._stacked = NamedSharding(mesh, PartitionSpec(None, "data"))

    def replicate(self, tree: Any) -> Any:
        """Puts arrays of the host on every device; leaves placed ones alone."""

        def put(leaf: Any) -> jax.Array:
            if isinstance(leaf, jax.Array):
                return leaf
            return jax.make_array_from_process_local_data(
                self.state_sharding, leaf, leaf.shape
            )

        return jax.tree.map(put, tree)

    def collect(self, tree: Any) -> Any:
        """Returns the tree itself."""
        return tree

    def place(self, feed: Feed) -> Batch:
        """Splits a feed over the devices."""
        return self._from_local(feed, self._batch)

    def place_stacked(self, feeds: Sequence[Feed]) -> Batch:
        """Splits stacked feeds over the devices along their second axis."""
        return self._from_local(stack(feeds), self._stacked)

    def compile_train(self, step: TrainStep, fetch: Fetch) -> Dispatch:
        """Returns the jitted dispatch."""
        dispatch = several_steps(step, self._sharded(fetch))
        return jax.jit(dispatch, donate_argnums=0, out_shardings=self.state_sharding)

    def compile_fetch(self, fetch: Fetch) -> Fetch:
        """Returns the jitted fetch."""
        return jax.jit(fetch, out_shardings=self._batch)

    def compile_evaluate(self, step: EvalStep) -> Evaluate:
        """Returns the jitted evaluation of one batch."""
        return jax.jit(step, out_shardings=self.state_sharding)

    def _sharded(self, fetch: Fetch) -> Fetch:
        """Keeps a batch split however it was fetched."""
        return lambda store, feed: jax.lax.with_sharding_constraint(
            fetch(store, feed), self._batch
        )

    @staticmethod
    def _from_local(feed: Feed, sharding: NamedSharding) -> Batch:
        return jax.tree.map(
            lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), feed
        )
