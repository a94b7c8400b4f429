"""Optimizers and learning-rate schedules, as PyTorch steps them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxattn.config.bind import bind
from jaxattn.errors import choose, require

Schedule = Callable[[Any], Any]
Mask = Callable[[Any], Any]  # from parameters to a tree of booleans


class RunLength(NamedTuple):
    """Length of a run, and where in it an optimizer begins to count steps.

    Attributes:
        num_epochs: Epochs of the run.
        steps_per_epoch: Steps of each.
        first_epoch: In which the optimizer begins, counted from 0.
    """

    num_epochs: int
    steps_per_epoch: int
    first_epoch: int = 0


# Ranges by the last part of a key: everything else is at least 0.
_ABOVE_0 = ("decay_rate", "epochs_per_step", "eps")
_BELOW_1 = ("momentum", "b1", "b2")
_AT_MOST_1 = ("switch_fraction", "final_factor")


def require_in_range(key: str, value: Any) -> None:
    """Checks an argument of a schedule or an optimizer that is a number.

    Raises:
        UserError: If it is out of the range of its name.
    """
    name = key.rsplit(".", 1)[-1]
    if name == "milestones":
        require(key, tuple(value), min(value, default=0) >= 0, "at least 0")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if name in _ABOVE_0:
        require(key, value, value > 0, "above 0")
    elif name in _BELOW_1:
        require(key, value, 0 <= value < 1, "in [0, 1)")
    elif name in _AT_MOST_1:
        require(key, value, 0 <= value <= 1, "in [0, 1]")
    else:
        require(key, value, value >= 0, "at least 0")


# Schedules ------------------------------------------------------------------------
# Each returns the learning rate's factor at `t` of `T` epochs.


def constant(t: jax.Array, T: float, /) -> jax.Array:
    """1 throughout."""
    del T
    return jnp.ones_like(t)


def cosine(t: jax.Array, T: float, /, *, final_factor: float = 0.0) -> jax.Array:
    """Half a cosine from 1 to `final_factor`, where it stays after `T` epochs.

    Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts",
    ICLR 2017. PyTorch's `CosineAnnealingLR` rises again after its end.
    """
    t = jnp.minimum(t, T)
    # (1 + cos(pi t / T)) / 2, in a form that float32 keeps accurate near its end.
    half = jnp.square(jnp.sin(0.5 * jnp.pi * (T - t) / T))
    return final_factor + (1 - final_factor) * half


def poly(
    t: jax.Array, T: float, /, *, power: float = 0.9, final_factor: float = 0.0
) -> jax.Array:
    """A power of the share of the run that is left, from 1 to `final_factor`.

    Chen et al., "DeepLab", 2017; with a floor as in mmsegmentation, whose `min_lr` is
    `final_factor` times the learning rate.
    """
    left = jnp.maximum(1 - t / T, 0)
    return final_factor + (1 - final_factor) * left**power


def exponential(t: jax.Array, T: float, /, *, decay_rate: float) -> jax.Array:
    """Times `decay_rate` every epoch."""
    del T
    return decay_rate**t


def step(
    t: jax.Array, T: float, /, *, epochs_per_step: float, decay_rate: float
) -> jax.Array:
    """Times `decay_rate` every `epochs_per_step` epochs."""
    del T
    return decay_rate ** jnp.floor(t / epochs_per_step)


def multi_step(
    t: jax.Array, T: float, /, *, milestones: Sequence[float], decay_rate: float
) -> jax.Array:
    """Times `decay_rate` at every milestone, in epochs after the warm-up."""
    del T
    passed = jnp.sum(jnp.asarray(milestones, jnp.float32) <= jnp.reshape(t, (1,)))
    return decay_rate ** passed.astype(jnp.float32)


SCHEDULES: dict[str, Callable[..., jax.Array]] = {
    f.__name__: f for f in (constant, cosine, poly, exponential, step, multi_step)
}


def make_schedule(
    *,
    name: str,
    learning_rate: float,
    length: RunLength,
    warmup_epochs: float = 0.0,
    update_per: str = "epoch",
    **kwargs: Any,
) -> Schedule:
    """Returns the learning rate as a function of the step.

    Args:
        name: One of `SCHEDULES`.
        learning_rate: The rate at factor 1, above 0.
        length: Of the run.
        warmup_epochs: Epochs of a linear rise, step by step, before the schedule,
            which then has the remaining epochs to itself.
        update_per: "epoch" holds the rate for an epoch, as PyTorch's schedulers are
            used by the sources; "step" changes it at every step.
        **kwargs: Further arguments of the schedule.

    Raises:
        UserError: If a value is out of its range.
    """
    num_epochs, steps_per_epoch, _ = length
    choose("schedule.name", name, SCHEDULES)
    choose("schedule.update_per", update_per, ("epoch", "step"))
    require("schedule.learning_rate", learning_rate, learning_rate > 0, "above 0")
    valid = 0 <= warmup_epochs < num_epochs
    wanted = f"at least 0 and below num_epochs={num_epochs}; 0 is no warm-up"
    require("schedule.warmup_epochs", warmup_epochs, valid, wanted)
    factor = bind(SCHEDULES[name], kwargs, "schedule")
    for key, value in kwargs.items():
        require_in_range(f"schedule.{key}", value)
    remaining = num_epochs - warmup_epochs
    warmup_steps = warmup_epochs * steps_per_epoch

    def schedule(count: Any) -> jax.Array:
        count = jnp.asarray(count)
        t = (
            count // steps_per_epoch
            if update_per == "epoch"
            else count / steps_per_epoch
        )
        main = factor(jnp.maximum(t - warmup_epochs, 0.0), remaining)
        if not warmup_steps:
            return learning_rate * main
        rise = (count + 1) / warmup_steps
        return learning_rate * jnp.where(rise < 1, rise, main)

    return schedule


# Optimizers -----------------------------------------------------------------------


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Scales gradients by `min(1, max_norm / (norm + 1e-6))`, as PyTorch does.

    `optax.clip_by_global_norm` leaves out the 1e-6 and divides before it multiplies.
    """

    def clip(updates: optax.Updates, params: Any) -> optax.Updates:
        del params
        scale = jnp.minimum(1.0, max_norm / (optax.tree.norm(updates) + 1e-6))
        return jax.tree.map(lambda g: g * scale.astype(g.dtype), updates)

    return optax.stateless(clip)


def sgd(
    schedule: Schedule,
    length: RunLength,
    mask: Mask,
    /,
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """SGD with L2 regularisation added to the gradient; no dampening."""
    del length
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask),
        optax.sgd(schedule, momentum, nesterov),
    )


def adam(
    schedule: Schedule,
    length: RunLength,
    mask: Mask,
    /,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """Adam with L2 regularisation added to the gradient."""
    del length
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask),
        optax.adam(schedule, b1, b2, eps),
    )


def adamw(
    schedule: Schedule,
    length: RunLength,
    mask: Mask,
    /,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay, scaled by the learning rate as in PyTorch."""
    del length
    return optax.adamw(schedule, b1, b2, eps, weight_decay=weight_decay, mask=mask)


class AdamwThenSgdState(NamedTuple):
    """State of `adamw_then_sgd`.

    Attributes:
        count: Steps done, int32.
        mu: First moment; after the switch the momentum, which starts afresh.
        nu: Second moment; idle after the switch.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    mu: Any
    nu: Any


_SWITCH_FRACTION = 0.8


def _switch_step(length: RunLength, switch_fraction: float) -> int:
    if switch_fraction == 1:
        return int(jnp.iinfo(jnp.int32).max)  # of `count`: never
    epochs = int(switch_fraction * length.num_epochs) - length.first_epoch
    return epochs * length.steps_per_epoch


def adamw_then_sgd(
    schedule: Schedule,
    length: RunLength,
    mask: Mask,
    /,
    *,
    switch_fraction: float = _SWITCH_FRACTION,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """AdamW, then SGD with momentum from `switch_fraction` of the epochs on (CANet).

    With a fraction of 1 there is no switch, nor after the last epoch.

    One transformation whose state never changes shape, so that a checkpoint of either
    phase restores in both. The learning rate is the schedule's throughout; weight decay
    is decoupled before the switch and L2 after it.
    """
    switch_step = _switch_step(length, switch_fraction)

    def init(params: optax.Params) -> AdamwThenSgdState:
        # Apart: a donated state can hold no buffer twice.
        mu, nu = optax.tree.zeros_like(params), optax.tree.zeros_like(params)
        return AdamwThenSgdState(jnp.zeros((), jnp.int32), mu, nu)

    def update(
        updates: optax.Updates, state: Any, params: Any = None
    ) -> tuple[optax.Updates, optax.OptState]:
        rate, is_adam = schedule(state.count), state.count < switch_step
        count = state.count + 1
        bias1, bias2 = 1 - b1**count, 1 - b2**count
        decay = jax.tree.map(lambda p, m: weight_decay * m * p, params, mask(params))

        def next_mu(g: jax.Array, d: jax.Array, mu: jax.Array) -> jax.Array:
            mu = jnp.where(state.count == switch_step, 0.0, mu)
            return jnp.where(is_adam, b1 * mu + (1 - b1) * g, momentum * mu + g + d)

        def next_nu(g: jax.Array, nu: jax.Array) -> jax.Array:
            return jnp.where(is_adam, b2 * nu + (1 - b2) * jnp.square(g), nu)

        def next_update(mu: jax.Array, nu: jax.Array, d: jax.Array) -> jax.Array:
            adam = mu / bias1 / (jnp.sqrt(nu / bias2) + eps) + d
            return -rate * jnp.where(is_adam, adam, mu)

        mu = jax.tree.map(next_mu, updates, decay, state.mu)
        nu = jax.tree.map(next_nu, updates, state.nu)
        new_updates = jax.tree.map(next_update, mu, nu, decay)
        return new_updates, AdamwThenSgdState(count, mu, nu)

    return optax.GradientTransformation(init, update)


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    f.__name__: f for f in (sgd, adam, adamw, adamw_then_sgd)
}

_DECAY_MASKS: dict[str, Mask] = {
    "all": lambda params: jax.tree.map(lambda _: True, params),
    # Not biases, normalisation or other vectors.
    "kernels": lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
}


def make_optimizer(
    *,
    name: str,
    schedule: Schedule,
    length: RunLength,
    clip_norm: float | None = None,
    decay_mask: str = "all",
    **kwargs: Any,
) -> optax.GradientTransformation:
    """Returns the optimizer of a recipe.

    Args:
        name: One of `OPTIMIZERS`.
        schedule: Learning rate by step.
        length: Of the run.
        clip_norm: Largest global norm of the gradients, before weight decay is added;
            None does not clip.
        decay_mask: Which parameters decay: "all", or "kernels" (rank 2 and more).
        **kwargs: Further arguments of the optimizer.

    Raises:
        UserError: If a name or key is unknown, or a value out of its range.
    """
    choose("optimizer.name", name, OPTIMIZERS)
    choose("optimizer.decay_mask", decay_mask, _DECAY_MASKS)
    for key, value in kwargs.items():
        require_in_range(f"optimizer.{key}", value)
    if clip_norm is not None:
        require("optimizer.clip_norm", clip_norm, clip_norm > 0, "above 0")
    optimizer = bind(OPTIMIZERS[name], kwargs, "optimizer")(
        schedule, length, _DECAY_MASKS[decay_mask]
    )
    clip = optax.identity() if clip_norm is None else clip_by_global_norm(clip_norm)
    return optax.chain(clip, optimizer)


# Another length --------------------------------------------------------------------


def find_length_clash(
    schedule: Mapping[str, Any],
    optimizer: Mapping[str, Any],
    step: int,
    *,
    before: RunLength,
    now: RunLength,
) -> str | None:
    """Returns what another length would have made otherwise of the steps done.

    Args:
        schedule: The section of a config.
        optimizer: The section.
        step: Steps done.
        before: Length that the run had until then.
        now: Length that it is to have.

    Returns:
        The key and its value; None if a run that goes on with the new length is the one
        that had it from the start.
    """
    lengths = (before, now)
    makers = [bind(make_schedule, schedule, "schedule", length=n) for n in lengths]
    rates = [jax.jit(jax.vmap(make()))(jnp.arange(step)) for make in makers]
    if not np.array_equal(*rates):
        return f"schedule.name={schedule['name']!r}"
    if optimizer["name"] == adamw_then_sgd.__name__:
        fraction = optimizer.get("switch_fraction")
        fraction = _SWITCH_FRACTION if fraction is None else fraction
        first, second = (min(step, _switch_step(n, fraction)) for n in lengths)
        if first != second:
            return f"optimizer.switch_fraction={fraction}"
    return None
