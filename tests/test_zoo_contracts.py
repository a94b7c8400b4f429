"""What every block keeps to, whatever it attends to."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from tiers import full_but
from zoo_cases import BLOCKS

from jaxattn import attention
from jaxattn.attention import SCC

# A softmax does not change by a bias.
IDLE = {"GlobalContext": {("conv_mask", "bias")}}
# Whose programs the default tier computes; of others it has a golden file.
KEPT = ("CBAM", "NonLocal", "SCC", "SCSA", "SE", "SelectiveKernel", "ShuffleAttention")
COMPUTED = full_but(BLOCKS, *KEPT)
# Values that bfloat16 has, so that a block in either sees the same.
X = np.random.default_rng(0).normal(size=(2, 5, 7, 32)).astype(jnp.bfloat16)
X = X.astype(np.float32)


def test_every_public_block_is_under_contract():
    assert sorted(BLOCKS) == sorted(attention.__all__)


@functools.cache
def variables_of(name):
    """Near those at the start, where a factor of 0 may hide what it multiplies."""
    variables = dict(jax.jit(BLOCKS[name].init)(jax.random.key(1), X))
    rng = np.random.default_rng(0)
    noise = lambda p: np.float32(p + rng.normal(0, 0.1, p.shape))  # noqa: E731
    variables["params"] = jax.tree.map(noise, variables.get("params", {}))
    return variables


@pytest.fixture(params=BLOCKS)
def block(request):
    """A block and the shapes of its variables."""
    module = BLOCKS[request.param]
    return module, jax.eval_shape(module.init, jax.random.key(1), X)


def arguments(module):
    """SCC draws nothing where its choices are given, of the first image here."""
    forced = jnp.zeros(X.shape, int).at[0].set(-1)
    return {"forced": forced} if isinstance(module, SCC) else {}


def gradients(module, variables, x, transform=lambda loss: loss):
    """Those of a loss in training, its statistics, and its output."""

    def loss(params, x):
        y, updated = module.apply(
            {**variables, "params": params},
            x,
            train=True,
            mutable=["batch_stats"],
            **arguments(module),
        )
        return jnp.sum(jnp.sin(y)), (y, updated)

    return jax.grad(transform(loss), (0, 1), has_aux=True)(variables["params"], x)


@functools.cache
def computed(name):
    """What the tests below compare, from one program."""
    module = BLOCKS[name]

    def loss(params, variables, x):
        y = module.apply({**variables, "params": params}, x)
        return jnp.sum(y * jnp.arange(y.size).reshape(y.shape)), y

    @jax.jit
    def program(variables, x):
        apply = functools.partial(module.apply, variables)
        gradients = jax.grad(loss, has_aux=True)
        sensitivity, y = gradients(variables["params"], variables, x)
        return {
            "all": y,
            "each": jax.vmap(apply)(x[:, None])[:, 0],
            "bfloat16": apply(x.astype(jnp.bfloat16)),
            "sensitivity": sensitivity,
        }

    return program(variables_of(name), X)


@pytest.mark.parametrize("name", COMPUTED)
def test_images_do_not_see_each_other(name):
    """Each by itself under `vmap` is what it is in the batch."""
    result = computed(name)
    assert_close(result["each"], result["all"], 1e-5)


@pytest.mark.parametrize("name", COMPUTED)
def test_bfloat16_is_close_to_float32(name):
    """SCC's winners may change, so in the mean."""
    half, single = (np.float32(computed(name)[key]) for key in ("bfloat16", "all"))
    assert 0 < np.linalg.norm(half - single) < 0.03 * np.linalg.norm(single)


@pytest.mark.parametrize("name", COMPUTED)
def test_every_parameter_matters(name):
    leaves = traverse_util.flatten_dict(computed(name)["sensitivity"])
    idle = {path for path, leaf in leaves.items() if not jnp.any(leaf != 0)}
    assert idle == IDLE.get(name, set())


def test_shape_and_dtype_are_those_of_the_input(block):
    module, variables = block
    for dtype in (jnp.float32, jnp.bfloat16):
        y = jax.eval_shape(module.apply, variables, X.astype(dtype))
        assert (y.shape, y.dtype) == (X.shape, dtype)
    leaves = jax.tree.leaves(variables)
    assert {leaf.dtype for leaf in leaves} <= {jnp.dtype(jnp.float32)}


def test_block_computes_in_its_dtype(block):
    module, variables = block
    module = module.clone(dtype=jnp.bfloat16)
    assert jax.eval_shape(module.apply, variables, X).dtype == jnp.bfloat16


def test_small_maps_keep_their_shape(block):
    module, variables = block
    for shape in ((1, 2, 2, 32), (2, 3, 1, 32), (0, 4, 4, 32)):
        x = jax.ShapeDtypeStruct(shape, jnp.float32)
        if isinstance(module, attention.SCSA) and min(shape[1:3]) < module.window_size:
            continue
        assert jax.eval_shape(module.apply, variables, x).shape == shape


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.full if name in KEPT else pytest.mark.slow)
        for name in BLOCKS
    ],
)
def test_compiled_and_computed_again_it_is_the_block(name):
    """The one place where it runs operation by operation: all other tests compile."""
    module, variables = BLOCKS[name], variables_of(name)
    plain = gradients(module, variables, X)
    again = functools.partial(gradients, module, transform=jax.checkpoint)
    # Of the largest, for some gradients are 0 but for rounding.
    atol = 1e-5 * max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(plain))
    chex.assert_trees_all_close(
        jax.jit(again)(variables, X), plain, rtol=1e-4, atol=atol
    )


def assert_close(actual, expected, relative):
    """Within `relative` of the largest absolute value."""
    atol = relative * np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)
