import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxattn import UserError
from jaxattn.ops import BatchNorm
from jaxattn.training.optim import OPTIMIZERS, RunLength, make_optimizer
from jaxattn.training.state import Ema, create_state


class Plain(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(2, name="fc")(BatchNorm(name="bn")(x, train=train))


def state_at_0(**ema):
    return create_state(Plain(), optax.sgd(0.1), Ema(**ema), 7, (8, 8, 3))


def test_streams_differ_by_step_and_name_and_follow_from_the_seed():
    state = jax.eval_shape(state_at_0)  # no draw depends on the weights
    key = jax.random.key_data(jax.random.key(7))

    def draw(step, name, key=key):
        at = state.replace(step=jnp.asarray(step), key=key)
        return int(jax.random.bits(at.stream(name)))

    other = jax.random.key_data(jax.random.key(8))
    draws = {
        draw(step, name, k)
        for step in (0, 1, 2)
        for name in ("augment", "dropout", "forcing")
        for k in (key, other)
    }
    assert len(draws) == 18
    assert draw(2, "augment") == draw(2, "augment")


def test_weights_follow_from_the_seed():
    a, b = state_at_0(), state_at_0()
    chex.assert_trees_all_equal(a, b)
    c = create_state(Plain(), optax.sgd(0.1), Ema(), 8, (8, 8, 3))
    assert not np.array_equal(a.params["fc"]["kernel"], c.params["fc"]["kernel"])


def test_average_starts_as_the_weights():
    state = state_at_0(decay=0.9)
    chex.assert_trees_all_equal(state.ema_params, state.params)


LENGTH = RunLength(4, 2)
OWN_OPTIMIZERS = {
    name: make_optimizer(name=name, schedule=lambda _: 0.1, length=LENGTH)
    for name in OPTIMIZERS
} | {
    # Which start with the parameters themselves.
    "the weights": optax.GradientTransformation(
        lambda params: (params, params), lambda g, state, _: (g, state)
    ),
    "several steps": optax.MultiSteps(optax.adam(0.1), 2),
}


@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("name", OWN_OPTIMIZERS)
def test_a_state_can_be_donated(name, jitted):
    """No buffer is there twice, nor one of the weights that it starts from."""
    kernel = jnp.ones((3, 2))

    def create(kernel):
        ema = Ema(decay=0.9, batch_stats="average")
        weights = {("params", "fc", "kernel"): kernel}
        return create_state(Plain(), OWN_OPTIMIZERS[name], ema, 7, (2, 2, 3), weights)

    state = (jax.jit(create) if jitted else create)(kernel)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state):
        return jax.tree.map(lambda leaf: leaf + 1, state)

    new = step(state)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    chex.assert_trees_all_equal(new.params["fc"]["kernel"], 1 + kernel)
    chex.assert_trees_all_equal(new.ema_params, new.params)


@pytest.mark.parametrize(("choice", "averaged"), [("live", False), ("average", True)])
def test_average_is_evaluated_with_the_chosen_statistics(choice, averaged):
    state = state_at_0(decay=0.9, batch_stats=choice)
    live = jax.tree.map(lambda leaf: leaf + 1, state.batch_stats)
    state = state.replace(batch_stats=live)
    expected = state.ema_batch_stats if averaged else live
    chex.assert_trees_all_equal(state.ema_variables["batch_stats"], expected)
    assert (state.ema_batch_stats is not None) == averaged


def test_without_decay_there_is_no_average():
    state = jax.eval_shape(state_at_0)
    assert state.ema_params is None
    assert state.ema_variables is None


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"decay": 1.0}, r"ema.decay=1.0: must be in \[0, 1\)"),
        (
            {"batch_stats": "old"},
            r"ema.batch_stats='old': choices: live, average",
        ),
    ],
)
def test_mistakes_are_named(kwargs, message):
    with pytest.raises(UserError, match=message):
        Ema(**kwargs)
