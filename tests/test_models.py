import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiers import full_but

import jaxattn.models
import jaxattn.ops
from jaxattn import UserError, create_model, from_torch, list_models, to_torch
from jaxattn.models.registry import model_keywords

# Published counts: at 10 classes, or with the ImageNet stem at 1000.
PARAMETERS = {
    "canet_tiny": 396_155,
    "canet_light": 1_576_244,
    "canet": 6_289_574,
    "canet_pro": 25_128_842,
    "efficient_resnet": 2_789_162,
    "enhanced_efficient_resnet": 4_913_705,
    "mobilenet_v2": 3_504_872,
    "mobilenet_v2_scsa": 3_619_048,
    "resnet10": 5_418_792,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet50_scsa": 25_617_448,
    "resnet101": 44_549_160,
    "resnet101_scsa": 44_679_208,
    "sccnet18": 15_849_384,
    "sccnet34": 25_979_816,
    "shufflenet_v2_x0_5": 352_042,
    "vgg11": 128_807_306,
    "vgg_a": 9_750_922,
    "vgg_a_bn": 9_756_426,
    "vgg_a_dropout": 9_750_922,
    "vgg_a_light": 285_162,
}
# Fast to trace; their families have deeper ones.
SHALLOW = ["canet_tiny", "efficient_resnet", "resnet18", "vgg_a_bn", "mobilenet_v2"]
# Of CANet's baselines, at 10 classes.
CIFAR_PARAMETERS = {
    "resnet18": 11_173_962,
    "resnet34": 21_282_122,
    "resnet50": 23_520_842,
    "mobilenet_v2": 2_236_682,
}


def abstract_variables(module, size=32):
    init = lambda x: module.init(jax.random.key(0), x)  # noqa: E731
    return jax.eval_shape(init, jnp.zeros((1, size, size, 3)))


def init(module, x):
    return jax.jit(module.init)(jax.random.key(0), x)


def count(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("name", full_but(PARAMETERS, *SHALLOW))
def test_parameter_count_is_the_published_one(name):
    large = "stem" in model_keywords(name)
    model = create_model(name, 1000 if large else 10)
    variables = abstract_variables(model, 224 if large else 32)
    assert count(variables["params"]) == PARAMETERS[name]


@pytest.mark.parametrize("name", full_but(CIFAR_PARAMETERS, "resnet18"))
def test_parameter_count_for_small_images_is_the_published_one(name):
    variables = abstract_variables(create_model(name, stem="cifar"))
    assert count(variables["params"]) == CIFAR_PARAMETERS[name]


def test_every_model_has_a_count():
    assert sorted(PARAMETERS) == list_models("classification")


def test_widths_are_those_of_the_stages_and_the_stem():
    widths = (4, 6, 8, 10)
    model = create_model("resnet10", stem="cifar", widths=widths)
    params = abstract_variables(model)["params"]
    assert params["conv1"]["kernel"].shape == (3, 3, 3, 4)
    outputs = [params[f"layer{i}.0"]["conv2"]["kernel"].shape[-1] for i in range(1, 5)]
    assert tuple(outputs) == widths


@pytest.mark.full
@pytest.mark.parametrize("name", ["resnet101_scsa", "mobilenet_v2_scsa"])
def test_scsa_networks_have_their_recipes_dropout(name):
    model = create_model(name)
    if name == "mobilenet_v2_scsa":
        assert (model.attention, model.dropout_rate) == ("scsa", 0.0)
        return
    assert dict(model.attention_kwargs) == {"attn_drop_ratio": 0.1}
    model = create_model(name, attention_kwargs={"window_size": 4})
    assert dict(model.attention_kwargs) == {"attn_drop_ratio": 0.1, "window_size": 4}


def test_fixed_attention_cannot_be_changed():
    with pytest.raises(UserError, match=r"model.attention: resnet50_scsa takes no"):
        create_model("resnet50_scsa", attention="cbam")


def test_num_classes_is_honoured():
    variables = abstract_variables(create_model("canet_tiny", num_classes=7))
    # 27 hidden units, 3 classes fewer: 28 parameters each.
    assert count(variables["params"]) == PARAMETERS["canet_tiny"] - 3 * 28


def test_logits_are_float32_at_bfloat16_compute():
    model = create_model("canet_tiny", dtype=jnp.bfloat16)
    variables = abstract_variables(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {
        jnp.dtype(jnp.float32)
    }
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    assert jax.eval_shape(model.apply, variables, x).dtype == jnp.float32


def test_bfloat16_reaches_the_convolutions():
    model = create_model("canet_tiny", dtype=jnp.bfloat16)
    variables = abstract_variables(model)
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    lowered = jax.jit(model.apply).lower(variables, x).as_text()
    convolutions = [s for s in lowered.splitlines() if "stablehlo.convolution" in s]
    assert convolutions
    assert all("bf16" in s and "f32" not in s for s in convolutions)


@pytest.mark.parametrize("size", [8, 24, 40])
def test_any_multiple_of_eight_is_classified(size):
    model = create_model("canet_tiny")
    x = jax.ShapeDtypeStruct((2, size, size + 8, 3), jnp.float32)
    variables = abstract_variables(model, size)
    assert jax.eval_shape(model.apply, variables, x).shape == (2, 10)


def test_other_sizes_are_refused():
    with pytest.raises(
        ValueError, match="height 30 and width 30 must be multiples of 8"
    ):
        abstract_variables(create_model("canet_tiny"), 30)


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "sizes", "others"),
    [
        ("vgg_a", (32, 63), (31, 64)),
        ("vgg_a_bn", (32, 63), (31, 64)),
        ("vgg_a_dropout", (32, 63), (31, 64)),
        ("vgg_a_light", (32, 35), (31, 36)),
        ("vgg11", (32, 224), (31,)),
    ],
)
def test_vggs_take_the_sizes_of_their_classifier(name, sizes, others):
    model = create_model(name)
    for size in sizes:
        x = jax.ShapeDtypeStruct((2, 40 if "light" not in name else 33, size, 3), "f4")
        logits = jax.eval_shape(model.apply, abstract_variables(model, size), x)
        assert logits.shape == (2, 10)
    for size in others:
        with pytest.raises(ValueError, match=f"VGG.*width {size} must be .*32.* pixel"):
            abstract_variables(model, size)


def test_unknown_model_names_the_choices():
    with pytest.raises(UserError, match=r"did you mean 'canet_tiny'.*canet_pro"):
        create_model("canet_tin")


def test_unknown_keyword_names_the_choices():
    with pytest.raises(
        UserError, match=r"model.widht: canet takes no such key; choices: .*dtype"
    ):
        create_model("canet", widht=3)


def test_fixed_width_cannot_be_changed():
    with pytest.raises(UserError, match=r"model.width: canet_tiny takes no such key"):
        create_model("canet_tiny", width=3)


@pytest.fixture(scope="module")
def tiny_state():
    model = create_model("canet_tiny")
    x = jnp.zeros((1, 32, 32, 3))
    return model, x, to_torch(model, init(model, x))


@pytest.fixture(scope="module")
def tiny_zeros():
    """A state dict of the network, without compiling its initialisation."""
    model = create_model("canet_tiny")
    shapes = abstract_variables(model)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    return model, jnp.zeros((1, 32, 32, 3)), to_torch(model, zeros)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("fc2.bias"), "missing: fc2.bias"),
        (lambda s: s.update(fc9=np.zeros(1)), "unexpected: fc9"),
        (
            lambda s: s.update({"fc2.weight": np.zeros((10, 26))}),
            r"wrong shape: fc2.weight \(10, 26\), not \(10, 27\)",
        ),
    ],
)
def test_ill_fitting_state_dict_is_named(tiny_zeros, change, message):
    model, x, state = tiny_zeros
    state = dict(state)
    change(state)
    with pytest.raises(ValueError, match=message):
        from_torch(model, state, x)


@pytest.mark.full
def test_initial_weights_have_torchs_distribution(tiny_state):
    _, _, state = tiny_state
    kernel = state["res_5.conv4.weight"]  # 64 x 64 x 3 x 3
    bound = 1 / np.sqrt(64 * 9)
    assert np.abs(kernel).max() <= bound
    assert abs(kernel.std() / (bound / np.sqrt(3)) - 1) < 0.02  # 36,864 draws
    assert np.abs(state["fc1.bias"]).max() <= 1 / np.sqrt(256)
    assert state["fc1.bias"].std() > 0
    assert np.abs(state["res_0.se.conv1.weight"]).max() <= 1 / np.sqrt(3)


# Of torchvision's state dicts: name, and shape at 10 classes.
TORCHVISION = {
    "resnet18": {
        "conv1.weight": (64, 3, 7, 7),
        "bn1.running_var": (64,),
        "layer1.0.conv1.weight": (64, 64, 3, 3),
        "layer2.0.downsample.0.weight": (128, 64, 1, 1),
        "layer2.0.downsample.1.bias": (128,),
        "layer4.1.bn2.num_batches_tracked": (),
        "fc.weight": (10, 512),
    },
    "shufflenet_v2_x0_5": {
        "conv1.0.weight": (24, 3, 3, 3),
        "conv1.1.running_mean": (24,),
        "stage2.0.branch1.0.weight": (24, 1, 3, 3),
        "stage2.0.branch1.3.bias": (24,),
        "stage2.0.branch2.3.weight": (24, 1, 3, 3),
        "stage3.7.branch2.5.weight": (48, 48, 1, 1),
        "stage4.3.branch2.6.running_var": (96,),
        "conv5.0.weight": (1024, 192, 1, 1),
        "fc.weight": (10, 1024),
    },
    "vgg11": {
        "features.0.weight": (64, 3, 3, 3),
        "features.11.bias": (512,),
        "features.18.weight": (512, 512, 3, 3),
        "classifier.0.weight": (4096, 25088),
        "classifier.3.weight": (4096, 4096),
        "classifier.6.bias": (10,),
    },
    "vgg_a_bn": {
        "features.4.weight": (128, 64, 3, 3),
        "features.26.running_mean": (512,),
        "classifier.4.weight": (10, 512),
    },
    "vgg_a_dropout": {
        "stage3.2.weight": (256, 256, 3, 3),
        "classifier.1.weight": (512, 512),
        "classifier.6.weight": (10, 512),
    },
}
# Entries in all; `num_batches_tracked` of every normalisation is one.
ENTRIES = {
    "resnet18": 122,
    "shufflenet_v2_x0_5": 338,
    "vgg11": 22,
    "vgg_a_bn": 62,
    "vgg_a_dropout": 22,
}


# vgg11's state takes 0.5 GB.
@pytest.mark.parametrize(
    "name", full_but(TORCHVISION, *(TORCHVISION.keys() - {"vgg11"}))
)
def test_state_dict_has_the_published_names_and_shapes(name):
    model = create_model(name)
    zeros = lambda leaf: np.broadcast_to(np.float32(0), leaf.shape)  # noqa: E731
    state = to_torch(model, jax.tree.map(zeros, abstract_variables(model)))
    shapes = {key: value.shape for key, value in state.items()}
    assert shapes.items() >= TORCHVISION[name].items()
    assert len(shapes) == ENTRIES[name]


@pytest.mark.full
def test_vgg11_is_initialised_as_torchvisions():
    model = create_model("vgg11")

    @jax.jit
    def drawn():  # without the first layer of 103 million, which nothing here reads
        variables = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        params = variables["params"]
        classifier = params["classifier"]
        return params["features"]["18"], classifier["3"], classifier["6"]

    last_conv, hidden, last = drawn()
    assert abs(np.std(last_conv["kernel"]) / np.sqrt(2 / (512 * 9)) - 1) < 0.01
    chex.assert_trees_all_equal(last_conv["bias"], jnp.zeros(512))
    assert abs(np.std(hidden["kernel"]) / 0.01 - 1) < 0.01
    chex.assert_trees_all_equal(hidden["bias"], jnp.zeros(4096))
    bound = 1 / np.sqrt(4096)
    assert 0.99 * bound < np.abs(last["kernel"]).max() <= bound
    assert np.abs(last["bias"]).max() > 0


@pytest.fixture(scope="module")
def enhanced_state():
    model = create_model("enhanced_efficient_resnet")
    return to_torch(model, init(model, jnp.zeros((1, 8, 8, 3))))


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "fan_out"),
    [
        ("layer4.1.conv2", 248 * 9),
        ("layer4.1.channel_attention.0", 16),
        ("layer4.1.channel_attention.2", 248),
        ("layer3.0.shortcut.0", 248),
        ("extra_conv", 248),
    ],
)
def test_enhanced_resnet_is_initialised_by_kaiming_normal(
    enhanced_state, name, fan_out
):
    kernel = enhanced_state[f"{name}.weight"]
    std = np.sqrt(2 / fan_out)
    assert abs(kernel.std() / std - 1) < 5 / np.sqrt(2 * kernel.size)
    assert np.abs(kernel).max() > 2.5 * std  # a truncated normal ends before
    bound = 1 / np.sqrt(248)
    assert 0.9 * bound < np.abs(enhanced_state["fc.weight"]).max() <= bound


@pytest.mark.full
def test_efficient_resnet_keeps_torchs_default_initialisation():
    model = create_model("efficient_resnet")
    state = to_torch(model, init(model, jnp.zeros((1, 8, 8, 3))))
    bound = 1 / np.sqrt(256 * 9)
    assert 0.99 * bound < np.abs(state["layer3.1.conv2.weight"]).max() <= bound


@pytest.mark.full
def test_dropout_acts_in_training_alone():
    model = create_model("enhanced_efficient_resnet", base_width=8)
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    variables = init(model, x)

    @functools.partial(jax.jit, static_argnums=1)
    def logits(seed, train):
        rngs = {"dropout": jax.random.key(seed)}
        kwargs = {"train": True, "mutable": ["batch_stats"], "rngs": rngs}
        out = model.apply(variables, x, **(kwargs if train else {}))
        return out[0] if train else out

    assert np.abs(logits(0, True) - logits(1, True)).max() > 1e-3
    chex.assert_trees_all_equal(logits(0, False), logits(1, False))


@pytest.mark.parametrize("size", [9, 20])
def test_the_attention_resnets_take_any_size(size):
    model = create_model("efficient_resnet")
    x = jax.ShapeDtypeStruct((2, size, size + 3, 3), jnp.float32)
    assert jax.eval_shape(model.apply, abstract_variables(model), x).shape == (2, 10)


def test_the_package_exports_its_names():
    for name in ("create_model", "from_torch", "list_models", "to_torch"):
        assert name in jaxattn.__all__


@pytest.mark.parametrize("face", [jaxattn.models, jaxattn.ops])
def test_a_face_has_every_name_it_lists(face):
    for name in face.__all__:
        assert getattr(face, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = face.nothing


@pytest.mark.parametrize(
    ("name", "blocks", "widths"),
    [
        (
            "resnet18",
            "layer1.1 layer2.1 layer3.1 layer4.1",
            (64, 128, 256, 512),
        ),
        (
            "mobilenet_v2",
            "features.3 features.6 features.13 features.17",
            (24, 32, 96, 320),
        ),
        ("shufflenet_v2_x0_5", "stage2.3 stage3.7 stage4.3", (24, 48, 96, 192)),
        ("sccnet18", "layer1.1 layer2.1 layer3.1 layer4.1", (64, 128, 256, 512)),
    ],
)
def test_maps_are_the_last_of_strides_4_to_32(name, blocks, widths):
    model, outputs = create_model(name, dtype=jnp.bfloat16), {}

    def record(call, args, kwargs, context):
        outputs[context.module.path] = call(*args, **kwargs)
        return outputs[context.module.path]

    def maps_and_variables(key, x):
        with nn.intercept_methods(record):
            maps, variables = model.init_with_output(key, x, return_features=True)
        last = [outputs[(block,)] for block in blocks.split()]
        # ShuffleNetV2's first map is its stem's, which is no module.
        for i in range(-1, -len(last) - 1, -1):
            assert maps[i] is last[i]
        return maps, variables

    x = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    maps, variables = jax.eval_shape(maps_and_variables, jax.random.key(0), x)
    assert [m.shape for m in maps] == [
        (2, side, side, width)
        for side, width in zip((16, 8, 4, 2), widths, strict=True)
    ]
    assert {m.dtype for m in maps} == {jnp.dtype(jnp.bfloat16)}
    head = {"fc", "head", "classifier.1", "conv5.0", "features.18"}
    assert not head & variables["params"].keys()
