"""The train state: all that a run needs to continue exactly."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct, traverse_util
from jax.core import Tracer
from jax.typing import ArrayLike

from jaxattn.errors import choose, require
from jaxattn.models.classes import TreePath

_EMA_BATCH_STATS = ("live", "average")


@struct.dataclass
class TrainState:
    """What a checkpoint holds; its tree never changes shape during a run.

    Attributes:
        step: Training steps done, int32.
        params: Parameters, float32.
        batch_stats: Running statistics of BatchNorm; empty without BatchNorm.
        opt_state: State of the optimizer.
        ema_params: Moving average of `params`, or None.
        ema_batch_stats: Moving average of `batch_stats`, or None.
        key: Data of the run's root PRNG key, uint32; never changes.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    ema_params: Any
    ema_batch_stats: Any
    key: jax.Array

    @property
    def variables(self) -> dict[str, Any]:
        """Variables of the raw weights."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def ema_variables(self) -> dict[str, Any] | None:
        """Variables of the averaged weights; None if the run keeps no average."""
        if self.ema_params is None:
            return None
        averaged = self.ema_batch_stats is not None
        stats = self.ema_batch_stats if averaged else self.batch_stats
        return {"params": self.ema_params, "batch_stats": stats}

    def stream(self, name: str) -> jax.Array:
        """Returns the PRNG key of this step for one named use."""
        return stream(self.key, self.step, name)


# Never renumber: a resumed run must draw what it would have drawn.
_STREAMS = {"augment": 0, "dropout": 1, "forcing": 2, "validation": 3, "sampling": 4}


def stream(key: ArrayLike, step: ArrayLike, name: str) -> jax.Array:
    """Returns the PRNG key of a step for one named use.

    Args:
        key: Data of the run's root key, uint32.
        step: Training steps done.
        name: "augment", "dropout", "forcing", "validation" or "sampling".
    """
    root = jax.random.wrap_key_data(jnp.asarray(key))
    return jax.random.fold_in(jax.random.fold_in(root, step), _STREAMS[name])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ema:
    """Exponential moving average of the weights, evaluated beside the raw ones.

    Attributes:
        decay: Share of the average that a step keeps, in [0, 1); 0 keeps no average.
        batch_stats: "live" evaluates the averaged parameters with the running
            statistics of the raw network, as the reference does (poor until the average
            has caught up); "average" averages the statistics too.

    Raises:
        UserError: If a value is out of its range.
    """

    decay: float = 0.0
    batch_stats: str = "live"

    def __post_init__(self) -> None:
        require("ema.decay", self.decay, 0 <= self.decay < 1, "in [0, 1)")
        choose("ema.batch_stats", self.batch_stats, _EMA_BATCH_STATS)

    def start(self, tree: Any, kind: str) -> Any:
        """Returns the average at step 0 of "params" or "batch_stats", or None."""
        wanted = kind == "params" or self.batch_stats == "average"
        return tree if self.decay and wanted else None

    def update(self, average: Any, new: Any) -> Any:
        """Returns the average after one more step; None stays None."""
        return None if average is None else update_ema(average, new, decay=self.decay)


def update_ema(average: Any, new: Any, *, decay: float) -> Any:
    """Returns `decay * average + (1 - decay) * new`, leaf by leaf."""
    return jax.tree.map(lambda a, x: decay * a + (1 - decay) * x, average, new)


def create_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    ema: Ema,
    seed: int,
    image_shape: tuple[int, int, int],
    weights: Mapping[TreePath, jax.Array] | None = None,
) -> TrainState:
    """Returns the state at step 0.

    Args:
        model: The network.
        optimizer: Of the run.
        ema: Of the run.
        seed: Of the run; initial weights and every later draw follow from it.
        image_shape: `(H, W, C)` of the network's input.
        weights: Values of variables that start from them instead of drawn ones, by
            path.
    """
    init_key, root = jax.random.split(jax.random.key(seed))
    variables = model.init(init_key, jnp.zeros((1, *image_shape)), train=False)
    drawn = traverse_util.flatten_dict(variables)
    variables = traverse_util.unflatten_dict({**drawn, **(weights or {})})
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        ema_params=ema.start(params, "params"),
        ema_batch_stats=ema.start(batch_stats, "batch_stats"),
        key=jax.random.key_data(root),
    )
    return _with_own_buffers(state, taken=weights)


def _with_own_buffers(state: TrainState, taken: Any) -> TrainState:
    """Copies what shares its memory with another array of the state, or with `taken`.

    A state is donated, and a buffer can be donated once. An optimizer may begin with
    two moments in one buffer, or with the parameters themselves.
    """
    seen = {_buffer(leaf) for leaf in jax.tree.leaves(taken)}

    def own(leaf: jax.Array) -> jax.Array:
        leaf = jnp.copy(leaf) if _buffer(leaf) in seen else leaf
        seen.add(_buffer(leaf))
        return leaf

    return jax.tree.map(own, state)


def _buffer(leaf: jax.Array) -> int:
    """What tells an array's memory from that of others."""
    is_array = isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer)
    if is_array and len(leaf.devices()) == 1:
        return leaf.unsafe_buffer_pointer()
    return id(leaf)
