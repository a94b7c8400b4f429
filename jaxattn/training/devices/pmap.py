"""Runs the same steps by `jax.pmap`, the older way to use several devices.

One program per device on its shard of the batch, with explicit means across replicas.
`jax.pmap` is in maintenance and slower to dispatch than `jax.jit` over a mesh; it is
here for comparison and for code that builds on it. One process only.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from jaxattn.data.pipeline import Batch, Feed
from jaxattn.training.devices.mesh import (
    Devices,
    Dispatch,
    Evaluate,
    Fetch,
    several_steps,
    stack,
)
from jaxattn.training.steps import EvalStep, TrainStep


class PmapParallel:
    """`jax.pmap` over the devices of this process."""

    axis_name = "data"

    def __init__(self, devices: Devices) -> None:
        self.num_devices = len(devices)
        self.state_sharding = SingleDeviceSharding(devices[0])
        self._devices = list(devices)
        self._spread = jax.pmap(lambda leaf: leaf, devices=self._devices)

    def replicate(self, tree: Any) -> Any:
        """Copies arrays to every device, along a new first axis."""
        n = self.num_devices
        return jax.tree.map(
            lambda leaf: self._spread(np.broadcast_to(leaf, (n, *np.shape(leaf)))), tree
        )

    def collect(self, tree: Any) -> Any:
        """Returns the first replica."""
        return jax.tree.map(lambda leaf: leaf[0], tree)

    def place(self, feed: Feed) -> Batch:
        """Splits a feed into one shard per device."""
        n = self.num_devices
        return jax.tree.map(
            lambda leaf: self._spread(leaf.reshape(n, -1, *leaf.shape[1:])), feed
        )

    def place_stacked(self, feeds: Sequence[Feed]) -> Batch:
        """Splits stacked feeds `[K, N, ...]` into `[devices, K, N / devices, ...]`."""
        n = self.num_devices

        def put(leaf: np.ndarray) -> jax.Array:
            shards = leaf.reshape(leaf.shape[0], n, -1, *leaf.shape[2:])
            return self._spread(shards.swapaxes(0, 1))

        return jax.tree.map(put, stack(feeds))

    def compile_train(self, step: TrainStep, fetch: Fetch) -> Dispatch:
        """Returns the mapped dispatch; metrics are those of the first replica."""
        mapped = jax.pmap(
            several_steps(step, fetch),
            self.axis_name,
            devices=self._devices,
            donate_argnums=0,
        )

        def dispatch(state: Any, store: Batch, feeds: Batch) -> Any:
            state, metrics = mapped(state, store, feeds)
            return state, self.collect(metrics)

        return dispatch

    def compile_fetch(self, fetch: Fetch) -> Fetch:
        """Returns the mapped fetch."""
        return jax.pmap(fetch, devices=self._devices)

    def compile_evaluate(self, step: EvalStep) -> Evaluate:
        """Returns the mapped evaluation of one batch."""
        mapped = jax.pmap(step, self.axis_name, devices=self._devices)
        return lambda variables, batch: self.collect(mapped(variables, batch))
