import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxattn import UserError, create_model
from jaxattn.training.state import Ema, create_state

MODEL = create_model("efficient_resnet", num_classes=3, base_width=2)


def state_at_0(**ema):
    return create_state(MODEL, optax.sgd(0.1), Ema(**ema), 7, (8, 8, 3))


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
    c = create_state(MODEL, optax.sgd(0.1), Ema(), 8, (8, 8, 3))
    assert not np.array_equal(a.params["fc"]["kernel"], c.params["fc"]["kernel"])


def test_average_starts_as_a_copy_that_can_be_donated_apart():
    state = state_at_0(decay=0.9)
    chex.assert_trees_all_equal(state.ema_params, state.params)
    ours, theirs = jax.tree.leaves(state.ema_params), jax.tree.leaves(state.params)
    assert all(a is not b for a, b in zip(ours, theirs, strict=True))


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
