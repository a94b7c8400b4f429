"""What blocks and networks make of inputs that are not float `[N, H, W, C]`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiers import full_but, slow_from

import jaxattn.attention
from jaxattn import UserError, create_model, list_models
from jaxattn.ops import BatchNorm, Conv, GroupNorm, Linear

KEYWORDS = {
    "AttResBlock": {"features": 8},
    "AttentionResidualBlock": {"features": 8},
    "BAM": {"reduction": 4},
    "CBAM": {"reduction": 4},
    "CPCA": {"reduction": 4},
    "ChannelAttentionBlock": {"features": 8},
    "ELA": {"norm_groups": 4},
    "EfficientMultiscaleAttention": {"groups": 4},
    "FrequencyChannelAttention": {"reduction": 4, "freq_sel_method": "top8"},
    "GlobalContext": {"reduction": 4, "fusion_types": ("channel_add", "channel_mul")},
    "SCC": {"features": 8},
    "SCSA": {"window_size": 1},
    "SE": {"reduction": 4},
    "ShuffleAttention": {"groups": 2},
    "SpatialGroupEnhance": {"groups": 4},
}
BLOCKS = jaxattn.attention.__all__
# One of a family; the others are as deep or deeper.
FAMILIES = (
    "canet_tiny",
    "efficient_resnet",
    "mobilenet_v2",
    "resnet10",
    "sccnet18",
    "shufflenet_v2_x0_5",
    "vgg11",
    "vgg_a",
    "vgg_a_dropout",
    "vgg_a_light",
)
KEPT = ("CBAM", "SCC", "SCSA", "SelectiveKernel", *FAMILIES[:4])
DEEPER = [name for name in list_models() if name not in FAMILIES]
EVERYTHING = [
    *full_but([*BLOCKS, *FAMILIES], *KEPT),
    *slow_from(0, DEEPER),
]
RNGS = {"params": jax.random.key(0), "dropout": jax.random.key(1)}


def make(name):
    """The block or network, and the shape of an input that it takes."""
    if name in BLOCKS:
        block = getattr(jaxattn.attention, name)
        return block(**KEYWORDS.get(name, {})), (2, 4, 4, 8)
    size = 224 if name == "resnet101_scsa" or name.endswith("_scsa") else 32
    return create_model(name), (2, size, size, 3)


def abstract(module, shape):
    return jax.eval_shape(lambda: module.init(RNGS, jnp.zeros(shape)))


@pytest.mark.parametrize("name", [*BLOCKS, *list_models()])
@pytest.mark.parametrize("shape", [(), (8,), (32, 32, 3), (1, 2, 32, 32, 3)])
def test_other_ranks_are_refused_in_one_line(name, shape):
    module, _ = make(name)
    with pytest.raises(UserError, match=r"must be \[N, H, W, C\]") as caught:
        jax.eval_shape(lambda: module.init(RNGS, jnp.zeros(shape)))
    message = str(caught.value)
    assert message.startswith(f"{type(module).__name__}: x of shape {shape}")
    assert ("x[None]" in message) == (len(shape) == 3)
    assert "\n" not in message


@pytest.mark.parametrize("shape", [(2, 0, 4, 8), (2, 4, 0, 8), (2, 4, 4, 0)])
def test_maps_without_values_are_refused(shape):
    with pytest.raises(UserError, match=r"CBAM: x of shape .* must be \[N, H, W, C\]"):
        jax.eval_shape(lambda: make("CBAM")[0].init(RNGS, jnp.zeros(shape)))


def operations(module, variables, shape, dtype):
    """Every operation with the dtype and shape of its results."""
    x = jax.ShapeDtypeStruct(shape, dtype)
    jaxpr = jax.make_jaxpr(module.apply)(variables, x)
    return [
        (eqn.primitive.name, *(str(v.aval) for v in eqn.outvars)) for eqn in jaxpr.eqns
    ]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("CBAM", "uint8"),
        ("CBAM", "bool"),
        *full_but(
            [(name, "int32") for name in [*BLOCKS, *FAMILIES]],
            *((name, "int32") for name in KEPT),
        ),
        *slow_from(0, [(name, "int32") for name in DEEPER]),
    ],
)
def test_integers_are_taken_as_float32(name, dtype):
    module, shape = make(name)
    variables = abstract(module, shape)
    conversion, *rest = operations(module, variables, shape, dtype)
    assert conversion == (
        "convert_element_type",
        f"float32[{str(shape)[1:-1]}]".replace(" ", ""),
    )
    assert rest == operations(module, variables, shape, "float32")


@pytest.mark.parametrize("layer", [Conv(3, 1), BatchNorm(), GroupNorm(1), Linear(3)])
def test_layers_make_floats_of_integers(layer):
    x = jnp.arange(32).reshape((2, 16) if isinstance(layer, Linear) else (2, 2, 2, 4))
    kwargs = {"train": False} if isinstance(layer, BatchNorm) else {}
    variables = layer.init(RNGS, x, **kwargs)
    expected = layer.apply(variables, x.astype(jnp.float32), **kwargs)
    actual = layer.apply(variables, x, **kwargs)
    assert actual.dtype == jnp.float32
    np.testing.assert_array_equal(actual, expected)


def test_arrays_of_numpy_are_taken_as_they_are():
    module, shape = make("CBAM")
    x = np.random.default_rng(0).normal(size=shape)  # float64
    variables = module.init(RNGS, x)
    assert module.apply(variables, x).dtype == jnp.float32


@pytest.mark.parametrize("name", EVERYTHING)
def test_a_batch_of_none_has_results_of_none(name):
    module, (_, *shape) = make(name)
    variables = abstract(module, (1, *shape))
    x = jax.ShapeDtypeStruct((0, *shape), jnp.float32)
    y = jax.eval_shape(module.apply, variables, x)
    assert y.shape == (
        0,
        *jax.eval_shape(module.apply, variables, jnp.zeros((1, *shape))).shape[1:],
    )


@pytest.mark.parametrize("name", ["SCC", "SCSA"])
def test_a_batch_of_none_is_computed(name):
    module, (_, *shape) = make(name)

    @jax.jit
    def gradient(x):
        variables = module.init(RNGS, x)
        return jax.grad(lambda x: jnp.sum(module.apply(variables, x)))(x)

    assert gradient(jnp.zeros((0, *shape))).shape == (0, *shape)


# Of whose deviations a single position has none.
@pytest.mark.parametrize(
    "name", full_but(BLOCKS, "CompetitiveAttention", "MCA", "SCSA", "SimAM")
)
def test_a_single_position_has_finite_results(name):
    module, _ = make(name)
    x = jax.random.normal(jax.random.key(2), (2, 1, 1, 8))
    variables = jax.jit(module.init)(RNGS, x)
    assert np.isfinite(jax.jit(module.apply)(variables, x)).all()


@pytest.mark.parametrize(
    ("name", "keywords", "channels", "message"),
    [
        (
            "CompetitiveAttention",
            {},
            1,
            "hidden=0: must be at least 1; half of the 1 ch",
        ),
        ("AttResBlock", {"features": 1}, 1, "hidden=0: must be at least 1"),
        ("AttResBlock", {"stride": 0}, 8, "stride=0: must be at least 1"),
        ("AttentionResidualBlock", {"stride": 0}, 8, "stride=0: must be at least 1"),
        ("CBAM", {"reduction": 0}, 8, "reduction=0: must be at least 1"),
        ("ChannelAttention", {"reduction": 0}, 8, "reduction=0: must be at least 1"),
        ("MultiKernelECA", {"kernel_sizes": ()}, 8, r"kernel_sizes=\(\): must be odd"),
        ("SpatialAttention", {"kernel_size": -1}, 8, "kernel_size=-1: must be odd and"),
        ("CondConv", {"groups": 3}, 8, "groups=3: must be a divisor of 8 input ch"),
        ("CondConv", {"num_experts": 0}, 8, "num_experts=0: must be at least 1"),
        ("LargeSelectiveKernel", {}, 1, "channels of x=1: must be at least 2"),
        ("MixedPooling", {"pool_sizes": (3,)}, 8, r"pool_sizes=\(3,\): must be two"),
        ("NonLocal", {"hidden": 0}, 8, "hidden=0: must be at least 1"),
        ("PositionAttention", {}, 4, r"reduction=8: must be in \[1, 4\], the channels"),
        ("ReconstructionConv", {}, 12, "groups=2: must be a divisor of 3 squeezed ch"),
        (
            "ReconstructionConv",
            {"alpha": 1.0},
            8,
            r"alpha=1.0: must be in \(0, 1\) and",
        ),
        ("ReconstructionConv", {"num_groups": 3}, 8, "num_groups=3: must be a divisor"),
        ("SCC", {"stride": 0}, 8, "stride=0: must be at least 1"),
        ("SCC", {"groups": 0}, 8, "groups=0: must be at least 1"),
        (
            "SelectiveKernel",
            {"groups": (1, 3)},
            8,
            r"groups=\(1, 3\): must be divisors",
        ),
        ("SelectiveKernel", {"dilation": (1,)}, 8, r"dilation=\(1,\): must be one for"),
        ("SelfCalibratedConv", {"pool_size": 0}, 8, "pool_size=0: must be at least 1"),
        (
            "SplitAttention",
            {"radix": 3},
            8,
            "radix=3: must be a divisor of the 8 input",
        ),
        ("SCSA", {"head_num": 0}, 8, "head_num=0: must be a divisor of the 8 channels"),
    ],
)
def test_what_would_divide_by_0_is_named(name, keywords, channels, message):
    keywords = KEYWORDS.get(name, {}) | keywords
    block = getattr(jaxattn.attention, name)(**keywords)
    with pytest.raises(UserError, match=message):
        abstract(block, (2, 4, 4, channels))
