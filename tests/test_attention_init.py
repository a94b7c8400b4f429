"""Attention modules that start as the identity, in networks that learnt without."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn import UserError, create_model, to_torch
from jaxattn.attention import CBAM
from jaxattn.models.slots import ResidualScale, Slot

SMALL = {"widths": (16, 16, 16, 16), "stem": "cifar"}
IDENTITY = {"attention_init": "identity"}


def images():
    return np.random.default_rng(0).standard_normal((2, 32, 32, 3), np.float32)


def make(**kwargs):
    return create_model("resnet10", 3, **SMALL, **kwargs)


@pytest.mark.parametrize("attention", ["cbam", "scsa", "multi_kernel_eca"])
def test_network_starts_as_the_one_without_attention(attention):
    plain, model = make(), make(attention=attention, **IDENTITY)
    x = images()
    variables = jax.jit(model.init)(jax.random.key(0), x)
    own = {
        kind: {
            name: {k: v for k, v in leaves.items() if not k.startswith("attn")}
            for name, leaves in tree.items()
        }
        for kind, tree in variables.items()
    }
    expected = jax.jit(plain.apply)(own, x)

    def total(params):
        logits = model.apply({**variables, "params": params}, x)
        return logits.sum(), logits

    gradient, logits = jax.jit(jax.grad(total, has_aux=True))(variables["params"])
    # The same operations, fused otherwise.
    chex.assert_trees_all_close(logits, expected, rtol=1e-5, atol=1e-5)
    # The module learns from the second step on, for then its share is not 0.
    block = gradient["layer1.0"]
    assert np.all(block["attn_scale"]["gamma"] != 0)
    chex.assert_trees_all_equal(
        block["attn"], jax.tree.map(np.zeros_like, block["attn"])
    )


def test_share_of_the_change_is_learnt():
    x, y = jnp.array([1.0, 2.0]), jnp.array([3.0, 6.0])
    blend = ResidualScale()
    for gamma, expected in ((0.0, [1, 2]), (0.5, [2, 4]), (1.0, [3, 6])):
        variables = {"params": {"gamma": jnp.full(1, gamma)}}
        np.testing.assert_array_equal(blend.apply(variables, x, y), expected)


def test_share_has_a_name_of_its_own_in_pytorch():
    model = make(attention="cbam", **IDENTITY)
    abstract = jax.eval_shape(model.init, jax.random.key(0), images())
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), abstract)
    assert to_torch(model, zeros)["layer4.0.attn_scale.gamma"].shape == (1,)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"attention_init": "identity"}, "attention_init='identity': needs attention"),
        ({"attention": "cbam", "attention_init": "zero"}, "choices: identity"),
    ],
)
def test_wrong_start_is_refused(kwargs, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(make(**kwargs).init, jax.random.key(0), images())


def test_module_in_place_of_a_convolution_is_none():
    with pytest.raises(UserError, match="must be None for a module that replaces"):
        Slot(CBAM, place="replace", init="identity")
