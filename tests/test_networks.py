"""What every network can do: maps, features, any channels, stochastic depth."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiers import full_but

from jaxattn import UserError, create_model, list_models
from jaxattn.models.cost import _equations, count_parameters
from jaxattn.models.registry import model_keywords
from jaxattn.models.resnet import BasicBlock, ResNet
from jaxattn.ops import BatchNorm, drop_path
from jaxattn.ops.stochastic_depth import depth_rates
from jaxattn.tasks.classification import Classification

# One of each file, fast to trace.
QUICK = ["canet_tiny", "efficient_resnet", "resnet10", "sccnet18", "vgg_a_bn"]
RESIDUAL = [
    name
    for name in list_models("classification")
    if "drop_path_rate" in model_keywords(name)
]


def make(name, **kwargs):
    stem = {"stem": "cifar"} if "stem" in model_keywords(name) else {}
    return create_model(name, **stem, **kwargs)


def shapes(module, channels=3, size=32, **how):
    """Shapes of the variables, and of what the network makes of two images."""
    x = jax.ShapeDtypeStruct((2, size, size, channels), jnp.float32)
    init = functools.partial(module.init_with_output, jax.random.key(0), **how)
    outputs, variables = jax.eval_shape(init, x)
    return variables, outputs


# Seed tables ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("downsample", "parameters"),
    full_but(
        [("conv1", 21_797_672), ("conv3", 23_173_928), ("conv5", 25_926_440)],
        ("conv5", 25_926_440),
    ),
)
def test_shortcuts_of_resnet34_have_the_published_parameters(downsample, parameters):
    module = create_model("resnet34", 1000, downsample=downsample, activation="mish")
    assert count_parameters(shapes(module)[0]["params"]) == parameters


def test_mish_is_the_activation_everywhere():
    module = ResNet((1, 1, 1, 1), widths=(4, 4, 4, 4), stem="cifar", activation="mish")
    traced = jax.make_jaxpr(module.init)(jax.random.key(0), jnp.ones((1, 8, 8, 3)))
    names = [eqn.primitive.name for eqn in _equations(traced.jaxpr)]
    # The one of the stem, and two a block.
    assert names.count("tanh") == 9
    norm = BatchNorm(epsilon=0.0)
    x = jnp.linspace(-40, 40, 9).reshape(9, 1)
    variables = norm.init(jax.random.key(0), x, train=False)
    got = norm.apply(variables, x, train=False, activation="mish")
    wide = np.asarray(x, np.float64)
    np.testing.assert_allclose(
        got, wide * np.tanh(np.logaddexp(wide, 0)), rtol=2e-6, atol=1e-7
    )


# Features ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", full_but(list_models("classification"), *QUICK))
def test_without_classes_a_network_returns_what_its_last_layer_is_given(name):
    with_logits, _ = shapes(make(name, num_classes=3))
    variables, features = shapes(make(name, num_classes=0, dtype=jnp.bfloat16))
    assert features.dtype == jnp.float32
    lacking = count_parameters(with_logits["params"]) - count_parameters(
        variables["params"]
    )
    assert (2, lacking) == (len(features), 3 * (features.shape[1] + 1))


@pytest.mark.parametrize("name", full_but(list_models("classification"), *QUICK))
def test_maps_are_halved_from_stage_to_stage_and_can_be_chosen(name):
    variables, maps = shapes(make(name), return_features=True)
    sides = [m.shape[1] for m in maps]
    ratios = {a // b for a, b in itertools.pairwise(sides)}
    assert ratios <= {1, 2}
    assert len(maps) > 1
    chosen, (last, first) = shapes(make(name, out_stages=(2, 1)))
    assert (first.shape, last.shape) == (maps[0].shape, maps[1].shape)
    flat = lambda tree: {*map(str, jax.tree_util.tree_leaves_with_path(tree))}  # noqa: E731
    assert flat(chosen) <= flat(variables)
    has_later = len(maps) > 2
    assert has_later == (flat(chosen) < flat(variables))


@pytest.mark.parametrize("stages", [(), (0, 1), (5,)])
def test_stages_that_are_not_there_are_refused(stages):
    module = ResNet((1, 1, 1, 1), stem="cifar", out_stages=stages)
    with pytest.raises(UserError, match=r"^out_stages=.*: must be some of 1 to 4"):
        shapes(module)


def test_a_classifier_of_a_config_returns_no_maps():
    section = {"name": "resnet10", "out_stages": (1, 2)}
    with pytest.raises(UserError, match=r"^model.out_stages=\(1, 2\): must be left"):
        Classification().make_model(section, ("a", "b"), dtype=None)


# Images -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", full_but(list_models("classification"), *QUICK))
def test_weights_are_made_for_the_channels_of_the_images(name):
    rgb, _ = shapes(make(name))
    variables, logits = shapes(make(name, in_channels=5), channels=5)
    assert logits.shape == (2, 10)
    differ = jax.tree.map(lambda a, b: a.shape != b.shape, rgb, variables)
    # The first convolutions: CANet's first block has three.
    assert 1 <= sum(jax.tree.leaves(differ)) <= 3
    with pytest.raises(UserError, match=r"^in_channels=4: must be 3, as of the images"):
        shapes(make(name, in_channels=4))


@pytest.mark.parametrize(
    "name", full_but(list_models("classification"), "resnet10", "vgg_a_bn")
)
@pytest.mark.parametrize("size", [(1, 1), (33, 70)])
def test_an_image_of_any_size_is_taken_or_refused_in_one_line(name, size):
    module = make(name)
    x = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    call = functools.partial(jax.eval_shape, module.init_with_output, jax.random.key(0))
    limited = ("vgg_a", "canet") if size == (33, 70) else ("vgg", "canet", "scsa")
    if any(part in name for part in limited):
        with pytest.raises(ValueError, match=rf"^[^\n]*\b{size[0]}\b"):
            call(x)
    else:
        assert call(x)[0].shape == (2, 10)


def test_a_batch_without_a_variance_is_one_line():
    module = make("shufflenet_v2_x0_5")
    x = jnp.zeros((1, 32, 32, 3))
    call = functools.partial(module.init_with_output, jax.random.key(0), train=True)
    with pytest.raises(UserError, match="fewer than two values per channel"):
        jax.eval_shape(call, x)


# Stochastic depth -------------------------------------------------------------------


def test_a_branch_is_left_out_or_scaled_image_by_image():
    class Branch(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return drop_path(x, 0.25, train=train)

    x = 1 + jax.random.uniform(jax.random.key(0), (400, 3, 2, 5))
    rngs = {"dropout": jax.random.key(1)}
    ratio = np.asarray(Branch().apply({}, x, True, rngs=rngs) / x).reshape(400, -1)
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1], ratio.shape))
    kept = ratio[:, 0] > 0
    np.testing.assert_allclose(ratio[kept], 4 / 3, rtol=1e-6)
    assert 0.65 < kept.mean() < 0.85  # four standard errors
    assert Branch().apply({}, x, False) is x


def test_rates_rise_evenly_from_the_first_block_to_the_last():
    assert depth_rates(0.3, 4) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert depth_rates(0.3, 1) == [0]


@pytest.mark.parametrize("name", full_but(RESIDUAL, "canet_tiny", "resnet10"))
def test_every_residual_network_draws_in_training_alone(name):
    dropout = {"dropout_rate": 0.0} if "dropout_rate" in model_keywords(name) else {}
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    module = make(name, drop_path_rate=0.5, **dropout)
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    train = functools.partial(
        module.apply,
        train=True,
        mutable=["batch_stats"],
        rngs={"forcing": jax.random.key(1)},
    )
    jax.eval_shape(module.apply, variables, x)
    with pytest.raises(Exception, match='needs PRNG for "dropout"'):
        jax.eval_shape(train, variables, x)


def test_a_block_whose_branch_is_left_out_is_its_shortcut():
    block = BasicBlock(8, drop_path_rate=0.5)
    x = jnp.abs(jax.random.normal(jax.random.key(0), (16, 4, 4, 8)))
    variables = block.init(jax.random.key(1), x)
    rngs = {"dropout": jax.random.key(2)}
    call = functools.partial(block.apply, train=True, mutable=["batch_stats"])
    y, _ = call(variables, x, rngs=rngs)
    plain, _ = functools.partial(
        block.clone(drop_path_rate=0.0).apply, train=True, mutable=["batch_stats"]
    )(variables, x)
    is_shortcut = np.array([np.array_equal(a, b) for a, b in zip(x, y, strict=True)])
    assert 0 < is_shortcut.sum() < 16
    assert not np.any(np.all(np.asarray(plain) == np.asarray(x), (1, 2, 3)))
