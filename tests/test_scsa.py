"""SCSA and the networks that can carry it, against the authors' numbers."""

import functools
import json
import pathlib
import re

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from tiers import full_but, slow_from

from jaxattn import UserError, from_torch, to_torch
from jaxattn.attention import SpatialAttention
from jaxattn.attention.scsa import SCSA
from jaxattn.models.cost import count_parameters
from jaxattn.models.mobilenet_v2 import InvertedResidual, MobileNetV2, round_width
from jaxattn.models.resnet import BasicBlock, Bottleneck, ResNet
from jaxattn.models.slots import Slot

GOLDEN = pathlib.Path(__file__).parent / "golden"
BLOCKS = {
    "basic_block_scsa": BasicBlock,
    "bottleneck_scsa": Bottleneck,
    "inverted_residual_scsa": InvertedResidual,
}
NAMES = [
    "scsa_14_w7",
    "scsa_17x20_w7",
    "scsa_7_w7",
    "scsa_global",
    "scsa_heads4",
    "scsa_maxpool",
    "scsa_qkv_bias",
    "scsa_recombination_w2",
    "scsa_softmax",
    "scsa_w4",
    "basic_block_scsa",
    "bottleneck_scsa",
    "bottleneck_scsa_down",
    "bottleneck_scsa_train",
    "inverted_residual_scsa",
    "inverted_residual_scsa_e1",
    "inverted_residual_scsa_s2",
]
# A block of each kind, and the attention's own ways to pool and to normalise.
SMALL = [
    "scsa_17x20_w7", "scsa_maxpool", "scsa_recombination_w2", "scsa_softmax",
    "basic_block_scsa", "bottleneck_scsa_train", "inverted_residual_scsa_e1",
]  # fmt: skip
TRAINING = [name for name in NAMES if name.endswith("_train")]
# A softmax does not see a constant: this gradient is 0, and the authors' is rounding.
ZERO_GRADIENTS = [("scsa_softmax", "norm_h.bias"), ("scsa_softmax", "norm_w.bias")]


def nhwc(x):
    return x.transpose(0, 2, 3, 1)


def section(arrays, prefix):
    n = len(prefix)
    return {our_name(k[n:]): v for k, v in arrays.items() if k.startswith(prefix)}


def our_name(name):
    """torchvision's name of an entry of mmpretrain's inverted residual."""
    if not (match := re.fullmatch(r"conv\.(\d)\.(.+)", name)):
        return name
    i, rest = int(match[1]), match[2]
    kind, _, leaf = rest.partition(".")
    if kind not in ("conv", "bn"):
        return f"attn.{rest}"
    if i >= 2:  # the projection, whose two are entries of the sequence themselves
        return f"conv.{i - 1 if kind == 'conv' else i}.{leaf}"
    return f"conv.{i}.{'0' if kind == 'conv' else '1'}.{leaf}"


def build(config):
    """Returns the module of a golden file's build arguments."""
    kwargs = dict(config["build"])
    op = kwargs.pop("op")
    if op == "scsa":
        kwargs.pop("dim")
        return SCSA(**kwargs)
    kwargs.pop("in_channels")
    features, scsa = kwargs.pop("out_channels"), kwargs.pop("scsa")
    slot = Slot(functools.partial(SCSA, **scsa), "inside")
    return BLOCKS[op](features, slot=slot, **kwargs)


@functools.cache
def computed(name):
    """Everything that a golden file has an expectation of, and its arrays."""
    with np.load(GOLDEN / f"{name}.npz") as archive:
        arrays = dict(archive)
    config = json.loads(str(arrays["config"]))
    train = config["mode"] == "train"
    module, x = build(config), nhwc(arrays["input"])
    variables = from_torch(module, section(arrays, "state/"), x)

    def loss(params, x):
        y, updated = module.apply(
            {**variables, "params": params}, x, train=train, mutable=["batch_stats"]
        )
        return jnp.sum(y * nhwc(arrays["cotangent"])), (y, updated)

    gradients = jax.jit(jax.grad(loss, (0, 1), has_aux=True))
    (params_gradient, x_gradient), (y, updated) = gradients(variables["params"], x)
    result = {"output": y, "grad_input": x_gradient}
    result["grad"] = to_torch(module, {"params": params_gradient})
    result["state"] = to_torch(module, variables)
    result["state_after"] = to_torch(module, {**variables, **updated})
    return result, arrays


def relative_l2(actual, expected):
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("name", full_but(NAMES, *SMALL))
def test_output_is_the_authors(name):
    result, arrays = computed(name)
    expected = nhwc(arrays["output"])
    # float32 rounding: the authors' own is up to 2e-6 of the largest value.
    atol = 2e-5 * np.abs(expected).max()
    np.testing.assert_allclose(result["output"], expected, rtol=0, atol=atol)


@pytest.mark.parametrize("name", full_but(NAMES, *SMALL))
def test_gradients_are_the_authors(name):
    result, arrays = computed(name)
    # float32 rounding, which reductions over positions and softmax amplify.
    assert relative_l2(result["grad_input"], nhwc(arrays["grad_input"])) < 1e-4
    expected = section(arrays, "grad/")
    assert expected.keys() == result["grad"].keys()
    for parameter, gradient in result["grad"].items():
        if (name, parameter) in ZERO_GRADIENTS:
            scale = expected[parameter.replace("bias", "weight")]
            assert np.linalg.norm(gradient) < 1e-6 * np.linalg.norm(scale)
        else:
            error = relative_l2(gradient, expected[parameter])
            assert error < 1e-4, parameter


@pytest.mark.parametrize("name", TRAINING)
def test_batch_statistics_are_the_authors(name):
    result, arrays = computed(name)
    expected = section(arrays, "state_after/")
    statistics = [k for k in expected if not k.endswith("num_batches_tracked")]
    assert len(statistics) == 8
    for statistic in statistics:
        actual = result["state_after"][statistic]
        np.testing.assert_allclose(actual, expected[statistic], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", full_but(NAMES, *SMALL))
def test_state_dict_survives_the_round_trip(name):
    result, arrays = computed(name)
    expected = section(arrays, "state/")
    counters = [k for k in expected if k.endswith("num_batches_tracked")]
    # Steps are not counted.
    expected.update({counter: np.zeros((), np.int64) for counter in counters})
    chex.assert_trees_all_equal(result["state"], expected)


# The block by itself


def init(module, shape, seed=0):
    x = jax.random.normal(jax.random.key(seed), shape)
    return jax.jit(module.init)(jax.random.key(seed + 1), x), x


@pytest.mark.parametrize(("bias", "per_channel"), [(False, 16), (True, 19)])
def test_parameters_of_the_block_are_the_published(bias, per_channel):
    variables, _ = init(SCSA(qkv_bias=bias), (1, 7, 7, 32))
    assert count_parameters(variables) == per_channel * 32


def test_torchs_initialisation():
    params = init(SCSA(window_size=2, qkv_bias=True), (1, 4, 4, 1024))[0]["params"]
    taps = params["global_dwc_l"]
    for leaf, bound in [
        (taps["kernel"], 1 / 3),
        (taps["bias"], 1 / 3),
        (params["q"]["kernel"], 1),
        (params["q"]["bias"], 1),
    ]:
        # The largest of 256 or more uniform values.
        assert 0.97 * bound < np.abs(leaf).max() <= bound


def test_bfloat16_stays_near_float32():
    variables, x = init(SCSA(window_size=4), (2, 8, 8, 32))
    y = jax.jit(SCSA(window_size=4).apply)(variables, x)
    low = jax.jit(SCSA(window_size=4, dtype=jnp.bfloat16).apply)(variables, x)
    assert low.dtype == jnp.bfloat16
    # Four roundings to 8 bits; the strips and the attention are float32.
    assert relative_l2(low.astype(jnp.float32), y) < 5e-3


def test_one_pixel_is_gated():
    """A group of one value is its bias, where torch refuses the whole map."""
    variables, x = init(SCSA(window_size=-1), (1, 1, 1, 4))
    apply = jax.jit(SCSA(window_size=-1).apply)
    assert jnp.all(jnp.isfinite(apply(variables, x)))


def with_dropout():
    module = SCSA(window_size=2, attn_drop_ratio=0.5)
    variables, x = init(module, (1, 4, 4, 8))
    apply = functools.partial(module.apply, variables, x, train=True)
    return module, variables, x, jax.jit(lambda key: apply(rngs={"dropout": key}))


def test_dropout_acts_in_training_alone():
    module, variables, x, train = with_dropout()
    y = module.apply(variables, x)
    first, second = train(jax.random.key(0)), train(jax.random.key(1))
    assert jnp.any(first != y)
    assert jnp.any(first != second)
    chex.assert_trees_all_close(first, train(jax.random.key(0)))
    plain = module.clone(attn_drop_ratio=0.0)
    chex.assert_trees_all_close(plain.apply(variables, x, train=True), y)


@pytest.mark.full
def test_dropout_keeps_the_mean():
    module, variables, x, _ = with_dropout()
    params = variables["params"]

    def scaled(factor):  # small values see a sigmoid that is a straight line
        v = jax.tree.map(lambda leaf: factor * leaf, params["v"])
        return {"params": {**params, "v": v}}

    def train(key):
        return module.apply(scaled(0.1), x, train=True, rngs={"dropout": key})

    mean = jax.vmap(train)(jax.random.split(jax.random.key(2), 4096)).mean(0)
    without = module.apply(scaled(0.0), x)
    part = module.apply(scaled(0.1), x) - without
    # Measured against the attention's part; the noise of the mean is about 2 % of it.
    assert relative_l2(mean - without, part) < 0.1


@pytest.mark.full
def test_training_keeps_no_scores_for_the_gradient():
    module, variables, x, train = with_dropout()
    key = jax.random.key(0)

    def forward(params):
        apply = functools.partial(module.apply, {"params": params}, x, train=True)
        return apply(rngs={"dropout": key})

    y, backward = jax.vjp(forward, variables["params"])
    chex.assert_trees_all_close(y, train(key))
    kept = [leaf.shape for leaf in jax.tree.leaves(backward)]
    assert kept
    assert (1, 1, 8, 8) not in kept


@pytest.mark.full
def test_gradient_repeats_the_dropout(monkeypatch):
    module, variables, x, _ = with_dropout()

    def gradient(params):
        apply = functools.partial(module.apply, rngs={"dropout": jax.random.key(0)})
        loss = lambda p: jnp.sum(apply({"params": p}, x, train=True) ** 2)  # noqa: E731
        return jax.grad(loss)(params)

    again = gradient(variables["params"])
    monkeypatch.setattr(jax, "checkpoint", lambda f: f)
    chex.assert_trees_all_close(again, gradient(variables["params"]), rtol=1e-5)


@pytest.mark.parametrize(
    ("kwargs", "shape", "message"),
    [
        ({}, (8, 8, 6), "6 channels must be a multiple of 4"),
        ({"head_num": 3}, (8, 8, 8), "head_num=3: must be a divisor of the 8 channels"),
        ({"head_num": 0}, (8, 8, 8), "head_num=0: must be a divisor of the 8 channels"),
        (
            {"group_kernel_sizes": (3, 4, 7, 9)},
            (8, 8, 8),
            r"group_kernel_sizes=\(3, 4, 7, 9\): must be four odd numbers",
        ),
        ({"group_kernel_sizes": (3, 5)}, (8, 8, 8), "must be four odd numbers"),
        (
            {"down_sample_mode": "avg"},
            (8, 8, 8),
            "down_sample_mode='avg': .*choices: avg_pool, max_pool, recombination",
        ),
        ({"gate_layer": "relu"}, (8, 8, 8), "gate_layer='relu': .*sigmoid, softmax"),
        ({"attn_drop_ratio": 1.0}, (8, 8, 8), "attn_drop_ratio=1.0: must be at least"),
        ({}, (8, 6, 8), "window_size=7: must be -1, or 1 to 6 for a map of 8x6"),
        ({"window_size": 0}, (8, 8, 8), "window_size=0: must be -1, or 1 to 8"),
        (
            {"window_size": 4, "down_sample_mode": "recombination"},
            (8, 6, 8),
            "window_size=4: must be a divisor of height 8 and width 6",
        ),
    ],
)
def test_block_refuses(kwargs, shape, message):
    with pytest.raises(ValueError, match=message):
        SCSA(**kwargs).init(jax.random.key(0), jnp.zeros((1, *shape)))


# Networks

BASIC, DEEP = (2, 2, 2, 2), (3, 4, 6, 3)
NETWORKS = {
    "resnet18": functools.partial(ResNet, stage_sizes=BASIC),
    "resnet34": functools.partial(ResNet, stage_sizes=DEEP),
    "resnet50": functools.partial(ResNet, stage_sizes=DEEP, bottleneck=True),
    "resnet101": functools.partial(ResNet, stage_sizes=(3, 4, 23, 3), bottleneck=True),
    "mobilenet_v2": MobileNetV2,
}
CIFAR_PARAMETERS = {
    "resnet18": 11_173_962,
    "resnet34": 21_282_122,
    "resnet50": 23_520_842,
    "mobilenet_v2": 2_236_682,
}


def abstract_variables(module, size):
    x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(module.init, jax.random.key(0), x)


@pytest.mark.full
@pytest.mark.parametrize("name", CIFAR_PARAMETERS)
def test_parameters_with_the_cifar_stem_are_the_published(name):
    variables = abstract_variables(NETWORKS[name](stem="cifar"), 32)
    assert count_parameters(variables["params"]) == CIFAR_PARAMETERS[name]


ATTENTION = ["cbam", "scsa", "eca", "multi_kernel_eca", SpatialAttention]


@pytest.mark.parametrize("attention", full_but(ATTENTION, "scsa"))
@pytest.mark.parametrize(("name", "blocks"), [("resnet50", 16), ("mobilenet_v2", 17)])
def test_attention_is_in_every_block(name, blocks, attention):
    plain = abstract_variables(NETWORKS[name](stem="cifar"), 32)["params"]
    module = NETWORKS[name](stem="cifar", attention=attention)
    paths = traverse_util.flatten_dict(abstract_variables(module, 32)["params"])
    assert len({path[0] for path in paths if path[1] == "attn"}) == blocks
    rest = {path for path in paths if path[1] != "attn"}
    assert rest == traverse_util.flatten_dict(plain).keys()


@pytest.mark.parametrize("attention", slow_from(1, ATTENTION))
def test_attention_changes_the_logits(attention):
    module = ResNet((1, 1, 1, 1), stem="cifar", attention=attention)
    variables, x = init(module, (2, 32, 32, 3))
    # At first the blocks of the SCSA network are their shortcuts.
    variables = jax.tree_util.tree_map_with_path(
        lambda path, v: jnp.ones_like(v) if path[-1].key == "scale" else v, variables
    )
    with_attention = jax.jit(module.apply)(variables, x)
    plain = jax.jit(module.clone(attention=None).apply)(variables, x)
    assert relative_l2(with_attention, plain) > 1e-2


class Nothing(nn.Module):
    """Turns everything to zero."""

    @nn.compact
    def __call__(self, x, *, train=False):
        del train
        return x * self.param("zero", nn.initializers.zeros, (1, 1, 1, 1))


@pytest.mark.parametrize(
    "block", full_but([BasicBlock, Bottleneck, InvertedResidual], BasicBlock)
)
def test_attention_outside_has_the_last_word_before_the_sum(block):
    module = block(32, slot=Slot(Nothing))
    x = jnp.abs(jax.random.normal(jax.random.key(0), (2, 8, 8, 32)))
    variables = module.init(jax.random.key(1), x)
    bias = lambda path, v: v + 1.0 if path[-1].key == "bias" else v  # noqa: E731
    variables = jax.tree_util.tree_map_with_path(bias, variables)
    chex.assert_trees_all_close(module.apply(variables, x), x)
    inside = module.clone(slot=Slot(Nothing, "inside"))
    # What is left of the block is the last normalisation's bias.
    chex.assert_trees_all_close(inside.apply(variables, x), x + 1, rtol=1e-6)


class PerChannel(nn.Module):
    """Has a factor for each channel of its map."""

    @nn.compact
    def __call__(self, x, *, train=False):
        del train
        return x * self.param("factor", nn.initializers.ones, (1, 1, 1, x.shape[-1]))


@pytest.mark.parametrize(("place", "channels"), [("inside", 4), ("after", 16)])
def test_a_slot_of_ones_own_says_the_place(place, channels):
    slot = Slot(PerChannel, place)
    module = ResNet((1, 1, 1, 1), True, (4, 8, 16, 32), stem="cifar", attention=slot)
    block = abstract_variables(module, 32)["params"]["layer1.0"]
    assert block["attn"]["factor"].shape == (1, 1, 1, channels)


def test_a_slot_refuses_an_unknown_place():
    with pytest.raises(UserError, match=r"place='befor': .*choices: inside, after"):
        Slot(Nothing, "befor")


def test_attention_keywords_reach_module_and_factory():
    kwargs = {"attention_kwargs": {"kernel_size": 5}, "stem": "cifar"}
    for attention in ("cbam", SpatialAttention):
        module = ResNet((1, 1, 1, 1), attention=attention, **kwargs)
        attn = abstract_variables(module, 32)["params"]["layer1.0"]["attn"]
        kernel = attn.get("spatial_attention", attn)["conv"]["kernel"]
        assert kernel.shape == (5, 5, 2, 1)


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "stem", "size", "window"),
    [
        ("resnet18", "imagenet", 193, 7),
        ("resnet18", "cifar", 25, 4),
        ("mobilenet_v2", "imagenet", 193, 7),
        ("mobilenet_v2", "cifar", 17, 2),
    ],
)
def test_window_of_scsa_follows_the_stem(name, stem, size, window):
    module = NETWORKS[name](stem=stem, attention="scsa")
    abstract_variables(module, size)
    with pytest.raises(ValueError, match=f"window_size={window}: .* 1 to {window - 1}"):
        abstract_variables(module, size - 1)
    smaller = {"window_size": window - 1}
    abstract_variables(module.clone(attention_kwargs=smaller), size - 1)


@pytest.mark.parametrize("bottleneck", [False, True])
@pytest.mark.parametrize(("stem", "stride"), [("imagenet", 4), ("cifar", 1)])
def test_features_are_the_maps_of_the_stages(bottleneck, stem, stride):
    module = ResNet((1, 1, 1, 1), bottleneck, stem=stem, dtype=jnp.bfloat16)
    variables = abstract_variables(module, 64)
    apply = functools.partial(module.apply, return_features=True)
    maps = jax.eval_shape(apply, variables, jnp.zeros((2, 64, 64, 3)))
    sides, factor = [64 // stride // 2**i for i in range(4)], 4 if bottleneck else 1
    assert [m.shape for m in maps] == [
        (2, side, side, factor * 64 * 2**i) for i, side in enumerate(sides)
    ]
    assert {m.dtype for m in maps} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("name", full_but(["resnet18", "mobilenet_v2"], "resnet18"))
def test_logits_are_float32_at_bfloat16_compute(name):
    module = NETWORKS[name](stem="cifar", attention="scsa", dtype=jnp.bfloat16)
    variables = abstract_variables(module, 32)
    leaves = jax.tree.leaves(variables)
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.float32)}
    x = jnp.zeros((2, 32, 32, 3))
    logits = jax.eval_shape(module.apply, variables, x)
    assert (logits.shape, logits.dtype) == ((2, 10), jnp.float32)
    convolutions = [
        line
        for line in jax.jit(module.apply).lower(variables, x).as_text().splitlines()
        if "stablehlo.convolution" in line
    ]
    assert convolutions
    assert all("bf16" in line and "f32" not in line for line in convolutions)


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "entries", "some"),
    [
        (
            "resnet50",
            590,
            "conv1.weight bn1.running_var layer1.0.downsample.0.weight"
            " layer1.0.downsample.1.bias layer3.5.conv2.weight layer4.2.bn3.weight"
            " layer4.2.attn.global_dwc_s.bias layer4.2.attn.norm_h.weight fc.bias",
        ),
        (
            "mobilenet_v2",
            601,
            "features.0.0.weight features.0.1.running_mean features.1.conv.0.0.weight"
            " features.1.conv.1.weight features.1.conv.2.running_var"
            " features.17.conv.1.0.weight features.17.conv.2.weight"
            " features.17.conv.3.bias features.17.attn.q.weight features.18.1.weight"
            " classifier.1.weight",
        ),
    ],
)
def test_state_dict_has_torchvisions_names(name, entries, some):
    module = NETWORKS[name](num_classes=1000, attention="scsa")
    variables = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, np.float32), abstract_variables(module, 224)
    )
    state = to_torch(module, variables)
    # The published backbones' entries, and the head's two.
    assert len(state) == entries + 2
    assert set(some.split()) <= state.keys()


def initial(module, *paths):
    """The first values of some parameters of a network; XLA draws no others."""

    def select(key, x):
        params = traverse_util.flatten_dict(module.init(key, x)["params"], sep="/")
        return [params[path] for path in paths]

    return jax.jit(select)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


def assert_normal(leaf, deviation):
    # Of 1728 or more values: six standard errors.
    assert jnp.std(leaf) == pytest.approx(deviation, rel=0.1)
    assert jnp.abs(leaf).max() > 2.5 * deviation


def assert_uniform(leaf, bound):
    # The largest of 100 or more values.
    assert 0.9 * bound < jnp.abs(leaf).max() <= bound


@pytest.mark.full
@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
def test_plain_resnet_starts_as_torchvisions(stem):
    conv1, conv2, scale, kernel, bias = initial(
        ResNet((1, 1, 1, 1), stem=stem, num_classes=100),
        "conv1/kernel",
        "layer2.0/conv2/kernel",
        "layer2.0/bn2/scale",
        "fc/kernel",
        "fc/bias",
    )
    if stem == "imagenet":
        assert_normal(conv1, (2 / (64 * 49)) ** 0.5)
    else:  # as a layer that replaces torchvision's
        assert_uniform(conv1, 27**-0.5)
    assert_normal(conv2, (2 / (128 * 9)) ** 0.5)
    assert jnp.all(scale == 1)
    assert_uniform(kernel, 512**-0.5)
    assert_uniform(bias, 512**-0.5)


@pytest.mark.full
@pytest.mark.parametrize(
    ("bottleneck", "last"), [(False, "bn2"), (True, "bn3")], ids=["basic", "bottleneck"]
)
def test_scsa_resnet_starts_as_the_authors(bottleneck, last):
    module = ResNet(
        (1, 1, 1, 1),
        bottleneck,
        num_classes=100,
        stem="cifar",
        attention="scsa",
        attention_kwargs={"qkv_bias": True},
    )
    conv1, q, v_bias, taps, zero, one, also_one, kernel, bias = initial(
        module,
        "conv1/kernel",
        "layer4.0/attn/q/kernel",
        "layer4.0/attn/v/bias",
        "layer4.0/attn/local_dwc/kernel",
        f"layer4.0/{last}/scale",
        "layer4.0/bn1/scale",
        "layer4.0/downsample.1/scale",
        "fc/kernel",
        "fc/bias",
    )
    assert_normal(conv1, (2 / (64 * 9)) ** 0.5)
    assert jnp.std(q) == pytest.approx((2 / 512) ** 0.5, rel=0.2)  # of 512 values
    assert_uniform(taps, 3**-0.5)
    assert_normal(kernel, 0.01)
    assert not any(jnp.any(leaf) for leaf in (v_bias, zero, bias))
    assert jnp.all(one == 1)
    assert jnp.all(also_one == 1)


@pytest.mark.full
@pytest.mark.parametrize("attention", [None, "scsa"])
def test_mobilenet_starts_as_the_codes(attention):
    stem, depthwise, kernel = initial(
        MobileNetV2(100, stem="cifar", attention=attention),
        "features.0/0/kernel",
        "features.17/conv.1/0/kernel",
        "classifier.1/kernel",
    )
    assert_normal(depthwise, (2 / (9 * 960)) ** 0.5)
    if attention is None:  # as layers that replace torchvision's
        assert_uniform(stem, 27**-0.5)
        assert_uniform(kernel, 1280**-0.5)
    else:
        assert jnp.std(stem) == pytest.approx((2 / (9 * 32)) ** 0.5, rel=0.15)
        assert_normal(kernel, 0.01)


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_block_of_zero_init_starts_as_its_shortcut(block):
    module = block(32, slot=Slot(zero_init=True))
    x = jnp.abs(jax.random.normal(jax.random.key(0), (2, 8, 8, 32)))
    variables = module.init(jax.random.key(1), x)
    chex.assert_trees_all_equal(module.apply(variables, x), x)


@pytest.mark.full
def test_widths_are_multiples_of_eight_near_what_is_asked():
    assert [round_width(w) for w in (4, 12, 18, 33.6, 44.8, 320)] == [
        *[8, 16, 24, 32, 48, 320]
    ]
    narrow = MobileNetV2(1000, width_multiplier=0.5)
    params = abstract_variables(narrow, 64)["params"]
    assert params["features.17"]["conv.2"]["kernel"].shape[-1] == 160
    assert params["features.18"]["0"]["kernel"].shape[-1] == 1280
    wide = abstract_variables(MobileNetV2(width_multiplier=1.4), 64)["params"]
    assert wide["features.18"]["0"]["kernel"].shape[-1] == 1792


def test_networks_dropout_needs_training():
    module = MobileNetV2(stem="cifar", dropout_rate=0.5)
    x = jnp.zeros((2, 32, 32, 3))
    variables = abstract_variables(module, 32)
    jax.eval_shape(module.apply, variables, x)
    train = functools.partial(module.apply, train=True, mutable=["batch_stats"])
    with pytest.raises(Exception, match="dropout"):
        jax.eval_shape(train, variables, x)


@pytest.mark.parametrize(
    ("network", "kwargs", "message"),
    [
        ("resnet18", {"stem": "cifar10"}, "stem='cifar10': did you mean 'cifar'"),
        ("mobilenet_v2", {"stem": 3}, "stem=3: choices: imagenet, cifar"),
        ("resnet18", {"attention": "cbm"}, "attention='cbm': did you mean 'cbam'"),
        (
            "resnet18",
            {"attention": SCSA()},
            "choices: bam, ca, cbam.*, or a module factory",
        ),
        ("mobilenet_v2", {"attention": 7}, "attention=7: choices: bam, ca, cbam"),
        (
            "resnet18",
            {"attention_kwargs": {"window_size": 2}},
            "attention_kwargs={'window_size': 2}: needs attention",
        ),
        ("resnet18", {"stage_sizes": (1, 1)}, r"stage_sizes=\(1, 1\): must be 4"),
        ("resnet18", {"widths": (8, 16)}, r"widths=\(8, 16\): must be 4 numbers"),
    ],
)
def test_network_refuses(network, kwargs, message):
    with pytest.raises(ValueError, match=message):
        abstract_variables(NETWORKS[network](**kwargs), 32)
