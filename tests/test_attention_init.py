"""Attention modules that start as the identity, in networks that learnt without."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn import UserError, create_model, to_torch
from jaxattn.attention import CBAM
from jaxattn.models.resnet import BasicBlock
from jaxattn.models.slots import ResidualScale, Slot

SMALL = {"widths": (16, 16, 16, 16), "stem": "cifar"}
IDENTITY = {"attention_init": "identity"}


def images():
    return np.random.default_rng(0).standard_normal((2, 32, 32, 3), np.float32)


def make(**kwargs):
    return create_model("resnet10", 3, **SMALL, **kwargs)


@pytest.mark.full
@pytest.mark.parametrize("attention", ["cbam", "scsa", "multi_kernel_eca"])
def test_network_starts_as_the_one_without_attention(attention):
    plain, model = make(), make(attention=attention, **IDENTITY)
    variables = jax.jit(model.init)(jax.random.key(0), images())
    own = {
        kind: {name: without_attention(leaves) for name, leaves in tree.items()}
        for kind, tree in variables.items()
    }
    logits = jax.jit(model.apply)(variables, images())
    # The same operations, fused otherwise.
    expected = jax.jit(plain.apply)(own, images())
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_block_starts_as_the_one_without_attention():
    block = BasicBlock(16, slot=Slot(CBAM, init="identity"))
    x = images()[:, :8, :8] @ np.ones((3, 16), np.float32)
    variables = jax.jit(block.init)(jax.random.key(0), x)

    def total(params):
        y = block.apply({**variables, "params": params}, x)
        return y.sum(), y

    gradient, y = jax.jit(jax.grad(total, has_aux=True))(variables["params"])
    expected = jax.jit(BasicBlock(16).apply)(
        {kind: without_attention(tree) for kind, tree in variables.items()}, x
    )
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    # The module learns from the second step on, for then its share is not 0.
    assert gradient["attn_scale"]["gamma"] != 0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient["attn"]))


def without_attention(tree):
    return {name: leaf for name, leaf in tree.items() if not name.startswith("attn")}


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
