"""Segmenters: numbers of torchvision and transformers, parameters, keywords, shapes."""

import functools
import json
import os
import pathlib

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_cases import make
from flax import traverse_util
from jax.sharding import PartitionSpec
from tiers import full_but

from jaxattn import UserError, create_model, from_torch, list_models, to_torch
from jaxattn.data.datasets.registry import load_data
from jaxattn.inference.freezing import compile_network
from jaxattn.inference.torch_files import import_torch
from jaxattn.models import (
    FCN,
    DeepLabV3,
    MobileNetV2,
    ResNet,
    SCCNet,
    Slot,
    UPerNet,
    list_attention,
)
from jaxattn.models.classes import without_attention
from jaxattn.models.cost import _equations, count_parameters, measure_cost
from jaxattn.models.heads.dense import DenseHead
from jaxattn.models.heads.fcn import FCNHead
from jaxattn.models.registry import list_backbones, model_keywords, task_of
from jaxattn.models.safetensors_files import write_safetensors
from jaxattn.models.stems import dilate
from jaxattn.models.torch_layouts import torchvision_names
from jaxattn.ops.conv import Conv
from jaxattn.ops.features import FEATURE_MAP
from jaxattn.ops.resize import resize_bilinear
from jaxattn.training.checkpoints.pretrained import Pretrained

GOLDENS = os.environ.get("JAXATTN_DENSE_GOLDENS")
# Beside torch's float32: of values, and of gradients and what training mode computes.
FORWARD, BACKWARD = 1e-5, 1e-4

TINY = {"stage_sizes": (1, 1, 1, 1), "widths": (4, 4, 8, 8), "stem": "cifar"}


def tiny(network=UPerNet, backbone=ResNet, **kwargs):
    kwargs = {"channels": 4, "aux_channels": 4, "num_classes": 3} | kwargs
    return network(backbone=backbone(**TINY), **kwargs)


def shapes(module, size=(64, 64), channels=3, **how):
    """Shapes of the variables, and of what the network makes of two images."""
    rngs = {name: jax.random.key(0) for name in ("params", "dropout", "forcing")}
    x = jax.ShapeDtypeStruct((2, *size, channels), jnp.float32)
    outputs, variables = jax.eval_shape(
        functools.partial(module.init_with_output, **how), rngs, x
    )
    return variables, outputs


# Golden numbers ---------------------------------------------------------------------


def cross_entropy(logits, labels):
    """The mean over pixels that are not 255."""
    is_known = labels != 255
    chosen = jnp.where(is_known, labels, 0)[..., None]
    logs = jnp.take_along_axis(jax.nn.log_softmax(logits), chosen, -1)[..., 0]
    return -jnp.sum(jnp.where(is_known, logs, 0)) / jnp.sum(is_known)


def read_golden(file):
    with np.load(pathlib.Path(GOLDENS, f"{file}.npz")) as archive:
        arrays = dict(archive)
    return json.loads(str(arrays.pop("config"))), arrays


def assert_close(actual, expected, tolerance):
    scale = max(1e-3, float(np.abs(expected).max()))
    np.testing.assert_allclose(actual, expected, atol=tolerance * scale, rtol=0)


@pytest.mark.skipif(not GOLDENS, reason="needs JAXATTN_DENSE_GOLDENS")
@pytest.mark.parametrize("file", ["fcn", "deeplabv3", "upernet"])
def test_numbers_are_those_of_the_reference(file):
    config, arrays = read_golden(file)
    module = make(file, config)
    x = np.moveaxis(arrays["input"], 1, -1)
    labels = arrays["labels"].astype(np.int32)
    state = {k[6:]: v for k, v in arrays.items() if k.startswith("state/")}
    variables = from_torch(module, state, x)

    auxiliary = FCNHead(
        num_classes=module.num_classes,
        channels=len(variables["params"]["auxiliary_head"]["convs.0"]["bn"]["bias"]),
        stage=3,
    )

    def auxiliary_logits(inputs, x):
        """Of evaluation, where the network itself has none."""
        own = lambda name: {key: tree[name] for key, tree in inputs.items()}  # noqa: E731
        maps = module.backbone.apply(own("backbone"), x)
        logits = auxiliary.apply(own("auxiliary_head"), maps)
        return resize_bilinear(logits, x.shape[1:3])

    @functools.partial(jax.jit, static_argnames="train")
    def compute(params, x, train):
        def loss(params, x):
            inputs = {"params": params, "batch_stats": variables["batch_stats"]}
            if train:
                (logits, other), updated = module.apply(
                    inputs, x, train=True, mutable=["batch_stats"]
                )
            else:
                logits, updated = module.apply(inputs, x), {}
                other = auxiliary_logits(inputs, x)
            losses = {
                "out": cross_entropy(logits, labels),
                "aux": cross_entropy(other, labels),
            }
            total = losses["out"] + config["aux_weight"] * losses["aux"]
            return total, (logits, other, losses | {"total": total}, updated)

        return jax.grad(loss, (0, 1), has_aux=True)(params, x)

    theirs = {ours: name for name, ours in torchvision_names(state).items()}

    def check_gradients(mode, grads, others):
        """Compares all that the file has of a mode."""
        ours, checked = to_torch(module, {"params": grads} | others), 0
        for name, value in ours.items():
            for kind in ("grad", "stats_after"):
                key = f"{mode}/{kind}/{theirs[name]}"
                if key in arrays:
                    assert_close(value, arrays[key], BACKWARD)
                    checked += 1
        parts = (f"{mode}/grad/", f"{mode}/stats_after/")
        wanted = {k for k in arrays if k.startswith(parts)} - {"train/grad/input"}
        assert checked == len(wanted) > 0

    (grads, _), (logits, _, losses, _) = compute(variables["params"], x, False)
    assert logits.dtype == jnp.float32
    assert_close(logits, np.moveaxis(arrays["eval/logits"], 1, -1), FORWARD)
    for name, value in losses.items():
        assert_close(value, arrays[f"eval/loss/{name}"], FORWARD)
    check_gradients("eval", grads, {})

    (grads, dx), (logits, other, losses, updated) = compute(
        variables["params"], x, True
    )
    for value, name in ((logits, "logits"), (other, "aux_logits")):
        if f"train/{name}_image0" in arrays:
            image = np.moveaxis(arrays[f"train/{name}_image0"], 0, -1)
            assert_close(value[0], image, BACKWARD)
    for name, value in losses.items():
        if f"train/loss/{name}" in arrays:
            assert_close(value, arrays[f"train/loss/{name}"], BACKWARD)
    assert_close(dx, np.moveaxis(arrays["train/grad/input"], 1, -1), BACKWARD)
    check_gradients("train", grads, jax.device_get(updated))


# Parameters and keywords ------------------------------------------------------------

COUNTS = [
    ("fcn", 21, {}, 35_322_218),
    ("fcn", 21, {"aux": False}, 32_957_013),
    ("fcn", 21, {"backbone": "resnet101"}, 54_314_346),
    ("deeplabv3", 21, {}, 42_004_074),
    ("deeplabv3", 21, {"aux": False}, 39_638_869),
    ("deeplabv3", 21, {"backbone": "resnet101"}, 60_996_202),
    ("upernet", 150, {"channels": 512}, 66_496_876),
    ("upernet", 150, {"stem": "v1c"}, 66_516_108),
    ("upernet", 19, {"stem": "v1c"}, 66_415_238),
    ("upernet", 21, {"stem": "v1c"}, 66_416_778),
    ("upernet", 150, {"stem": "v1c", "aux": False}, 64_117_750),
]


@pytest.mark.parametrize(
    ("name", "num_classes", "kwargs", "parameters"),
    full_but(COUNTS, COUNTS[0], COUNTS[3], COUNTS[7]),
)
def test_parameters_are_the_published_ones(name, num_classes, kwargs, parameters):
    variables, _ = shapes(create_model(name, num_classes, **kwargs))
    assert count_parameters(variables["params"]) == parameters


def test_multiply_accumulates_are_those_of_convolutions():
    cost = measure_cost(tiny(FCN), (16, 24, 3))
    # Stem and first stage at 16 x 24, the others at a half each; shortcuts are 1x1.
    full, half, quarter, eighth = (16 * 24 // 4**i for i in range(4))
    stages = full * 9 * (3 * 4 + 2 * 4 * 4) + half * (9 * 2 * 16 + 16)
    stages += quarter * (9 * (4 * 8 + 8 * 8) + 4 * 8) + eighth * (9 * 2 * 64 + 64)
    assert cost.macs == stages + eighth * (9 * 8 * 4 + 4 * 3)


@pytest.mark.full
@pytest.mark.parametrize(("name", "giga"), [("fcn", 152.717), ("deeplabv3", 178.722)])
def test_multiply_accumulates_are_torchvisions(name, giga):
    macs = measure_cost(create_model(name, 21), (520, 520, 3)).macs
    # torchvision's have the auxiliary head, which is of training here.
    macs += 65 * 65 * (1024 * 256 * 9 + 256 * 21)
    assert round(macs / 1e9, 3) == giga


def test_a_model_of_a_name_knows_its_task():
    names = list_models("segmentation")
    assert names == ["deeplabv3", "fcn", "upernet"]
    assert {task_of(name) for name in names} == {"segmentation"}
    assert not {*names} & {*list_models("classification")}
    assert {*names} <= {*list_models()}


@pytest.mark.parametrize("backbone", list_backbones())
def test_keywords_are_those_of_network_and_backbone(backbone):
    keywords = model_keywords("upernet", backbone)
    assert {"backbone", "channels", "aux", "layout", "output_stride"} <= {*keywords}
    assert ("attention" in keywords) == ("scsa" not in backbone)
    assert "out_stages" not in keywords
    assert ("mask_prob" in keywords) == backbone.startswith("sccnet")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"backbone": "vgg_a"}, r"model.backbone='vgg_a': choices: mobilenet_v2, "),
        ({"backbone": "resnet5"}, r"model.backbone='resnet5': did you mean 'resnet50'"),
        ({"mask_prob": 0.1}, r"model.mask_prob: upernet takes no such key; choices"),
        ({"out_stages": (1,)}, r"model.out_stages: upernet takes no such key"),
        ({"num_classes": 0}, r"num_classes=0: must be an integer from 1 on for uper"),
        ({"output_stride": 4}, r"model.output_stride=4: must be one of 8, 16, 32"),
        ({"channels": 0}, r"model.channels=0: must be an integer from 1 on"),
        ({"pool_scales": ()}, r"model.pool_scales=\(\): must be integers from 1 on"),
        ({"layout": "tv"}, r"layout='tv': choices: mm, torchvision"),
        ({"stem": "v1d"}, r"stem='v1d': did you mean 'v1c'"),
        ({"stem": "v1c", "backbone": "sccnet18"}, r"stem='v1c': choices: imagenet, ci"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(kwargs, message):
    with pytest.raises(UserError, match=rf"^{message}") as caught:
        shapes(create_model("upernet", **{"num_classes": 2, **kwargs}))
    assert "\n" not in str(caught.value)


# Dilation ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output_stride", "steps"),
    [
        (32, [(1, 1, 1), (2, 1, 1), (2, 1, 1), (2, 1, 1)]),
        (16, [(1, 1, 1), (2, 1, 1), (2, 1, 1), (1, 2, 1)]),
        # The first block of a stage keeps the dilation before, the last number.
        (8, [(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 4, 2)]),
    ],
)
def test_stages_beyond_the_output_stride_are_dilated(output_stride, steps):
    assert dilate((1, 2, 2, 2), 4, output_stride) == steps


def dilations(backbone):
    """How often each dilation above 1 is among the convolutions of a backbone."""
    backbone = backbone.clone(out_stages=(4,))
    variables, (last,) = shapes(backbone, (128, 128))
    assert last.shape[1:3] == (16, 16)
    x = jax.ShapeDtypeStruct((2, 128, 128, 3), jnp.float32)
    traced = jax.make_jaxpr(backbone.apply)(variables, x)
    found = [
        eqn.params["rhs_dilation"][0]
        for eqn in _equations(traced.jaxpr)
        if eqn.primitive.name == "conv_general_dilated"
    ]
    return {d: found.count(d) for d in sorted({*found}) if d > 1}


def deep(**kwargs):
    widths = (16, 16, 32, 32)
    return ResNet((1, 1, 2, 2), True, widths, output_stride=8, **kwargs)


REPLACING = ["cond_conv", "scconv", "scnet", "sk", "split"]


@pytest.mark.parametrize(
    ("attention", "expected"),
    full_but(
        [
            (None, {2: 2, 4: 1}),
            ("cond_conv", {2: 2, 4: 1}),
            ("scconv", {2: 2, 4: 1}),
            ("scnet", {2: 6, 4: 3}),
            # Its second branch has twice the dilation, everywhere.
            ("sk", {2: 5, 4: 3, 8: 1}),
            ("split", {2: 2, 4: 1}),
        ],
        (None, {2: 2, 4: 1}),
        ("sk", {2: 5, 4: 3, 8: 1}),
    ),
)
def test_what_replaces_a_convolution_is_dilated(attention, expected):
    assert dilations(deep(attention=attention)) == expected


def test_other_backbones_are_dilated():
    # As mmseg's, whose every block of a stage is: 7 of stride 16, 4 of 32.
    assert dilations(MobileNetV2(output_stride=8)) == {2: 7, 4: 4}
    # Of every second block the first SCC, whose branch of 1x1 has no distance.
    scc = SCCNet((1, 1, 2, 2), (4, 4, 8, 8), output_stride=8, downsample="conv1")
    assert dilations(scc) == {2: 2, 4: 1}


def test_a_module_of_ones_own_that_takes_no_dilation_is_refused():
    own = Slot(Conv, "replace", hints=("features", "stride"))
    with pytest.raises(UserError, match=r"^output_stride: dilates a convolution"):
        shapes(deep(attention=own, attention_stages=(4,)))


@pytest.mark.parametrize(
    "attention", full_but(list_attention(), "scsa", "gct", "split")
)
def test_every_attention_is_in_a_segmenter(attention):
    model = create_model(
        "fcn", 3, backbone="resnet10", widths=(16, 16, 32, 32), attention=attention
    )
    _, outputs = shapes(model, (64, 64), train=True)
    assert [y.shape for y in outputs] == [(2, 64, 64, 3)] * 2


# Shapes and dtypes ------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (33, 70)])
@pytest.mark.parametrize("network", full_but([FCN, DeepLabV3, UPerNet], UPerNet))
def test_logits_are_float32_of_the_size_of_the_image(network, size):
    module = tiny(network, dtype=jnp.bfloat16)
    for train in (False, True):
        variables, outputs = shapes(module, size, train=train)
        outputs = outputs if train else [outputs]
        assert [y.shape for y in outputs] == [(2, *size, 3)] * (1 + train)
        assert {y.dtype for y in outputs} == {jnp.dtype(jnp.float32)}
        assert {"decode_head", "auxiliary_head"} < {*variables["params"]}
        assert {v.dtype for v in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_a_clone_of_another_dtype_has_such_a_backbone():
    module = tiny(dtype=jnp.bfloat16)
    assert module.backbone.dtype == jnp.bfloat16
    assert module.clone(dtype=jnp.float32).backbone.dtype == jnp.float32


def test_without_an_auxiliary_head_training_returns_logits_alone():
    variables, logits = shapes(tiny(aux=False), train=True)
    assert logits.shape == (2, 64, 64, 3)
    assert "auxiliary_head" not in variables["params"]


def test_attention_is_the_backbones():
    with_attention = tiny(backbone=functools.partial(ResNet, attention="se"))
    plain, _ = shapes(without_attention(with_attention))
    assert jax.tree.structure(plain) == jax.tree.structure(shapes(tiny())[0])


def test_the_map_that_is_classified_is_marked():
    module = tiny()
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    apply = functools.partial(module.apply, mutable=["intermediates"])
    _, sown = jax.eval_shape(apply, variables, x)
    (feature_map,) = sown["intermediates"][FEATURE_MAP]
    assert feature_map.shape == (2, 32, 32, 4)  # of stride 1, before `conv_seg`


# Layouts ----------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["mm", "torchvision"])
def test_heads_start_as_their_layout(layout):
    head, is_mm = FCNHead(num_classes=50, channels=64, layout=layout), layout == "mm"
    params = jax.jit(head.init)(jax.random.key(0), [jnp.ones((1, 2, 2, 32))])["params"]
    last = params["conv_seg"]
    spread = 0.01 if is_mm else 64**-0.5 / 3**0.5
    # Of 3,200 values and more.
    assert np.std(last["kernel"]) == pytest.approx(spread, rel=0.05)
    assert np.any(last["bias"] != 0) == (not is_mm)
    spread = (2 / (9 * 64)) ** 0.5 if is_mm else (9 * 32) ** -0.5 / 3**0.5
    assert np.std(params["convs.0"]["conv"]["kernel"]) == pytest.approx(
        spread, rel=0.05
    )


@pytest.mark.parametrize("layout", ["mm", "torchvision"])
def test_dropout_leaves_out_channels_or_values_as_the_layout(layout):
    class Head(DenseHead):
        @nn.compact
        def __call__(self, x):
            return self._drop(x, True)

    head = Head(num_classes=1, channels=1, dropout_rate=0.5, layout=layout)
    y = head.apply({}, jnp.ones((2, 4, 4, 32)), rngs={"dropout": jax.random.key(0)})
    kept = np.asarray(y) > 0
    assert 0.3 < kept.mean() < 0.7  # at 64 channels three standard errors
    assert np.all(kept == kept[:, :1, :1]) == (layout == "mm")


@pytest.mark.parametrize(
    ("network", "layout", "rates"),
    full_but(
        [
            (FCN, "mm", {0.1}),
            (DeepLabV3, "mm", {0.1}),
            (DeepLabV3, "torchvision", {0.1, 0.5}),
            (UPerNet, "mm", {0.1}),
        ],
        (DeepLabV3, "torchvision", {0.1, 0.5}),
    ),
)
def test_shares_left_out_are_those_of_the_layout(network, layout, rates):
    found = set()

    def record(call, args, kwargs, context):
        if isinstance(context.module, nn.Dropout):
            found.add(context.module.rate)
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        shapes(tiny(network, layout=layout), train=True)
    assert found == rates


def test_names_of_others_are_mmsegmentations_here():
    names = [
        "backbone.conv1.weight",
        "classifier.0.convs.2.1.running_mean",
        "classifier.0.convs.4.1.weight",
        "classifier.0.project.1.bias",
        "classifier.1.weight",
        "classifier.4.bias",
        "aux_classifier.0.weight",
        "aux_classifier.4.weight",
    ]
    assert [*torchvision_names(names).values()] == [
        "backbone.conv1.weight",
        "decode_head.aspp_modules.2.bn.running_mean",
        "decode_head.image_pool.1.conv.weight",
        "decode_head.project.bn.bias",
        "decode_head.bottleneck.conv.weight",
        "decode_head.conv_seg.bias",
        "auxiliary_head.convs.0.conv.weight",
        "auxiliary_head.conv_seg.weight",
    ]
    names = [
        "backbone.embedder.embedder.normalization.weight",
        "backbone.encoder.stages.1.layers.0.shortcut.convolution.weight",
        "backbone.encoder.stages.3.layers.2.layer.1.normalization.bias",
        "decode_head.psp_modules.0.1.batch_norm.weight",
        "decode_head.classifier.weight",
    ]
    assert [*torchvision_names(names).values()] == [
        "backbone.bn1.weight",
        "backbone.layer2.0.downsample.0.weight",
        "backbone.layer4.2.bn2.bias",
        "decode_head.psp_modules.0.1.bn.weight",
        "decode_head.conv_seg.weight",
    ]
    # mmsegmentation's MobileNetV2.
    names = ["backbone.layer1.0.conv.1.conv.weight", "decode_head.conv_seg.bias"]
    assert [*torchvision_names(names).values()] == [
        "backbone.features.1.conv.1.weight",
        "decode_head.conv_seg.bias",
    ]


def test_state_dicts_come_and_go():
    module = tiny()
    variables, _ = shapes(module)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), variables
    )
    state = to_torch(module, variables)
    example = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    chex.assert_trees_all_equal(from_torch(module, state, example), variables)


# Starting from a classifier ---------------------------------------------------------

SMALL = {"backbone": "resnet10", "widths": (4, 6, 8, 10)}


@pytest.fixture
def start(tmp_path):
    """Starts a segmenter from a classifier's file; returns what it got, and notes."""
    classifier = create_model("resnet10", 7, widths=SMALL["widths"])
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    abstract = jax.eval_shape(classifier.init, jax.random.key(0), x)
    ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), abstract)
    write_safetensors(tmp_path / "a.safetensors", to_torch(classifier, ones))
    data = load_data("synthetic", image_size=32, num_train=8, num_test=8, num_classes=7)

    def from_classifier(origin=tmp_path / "a.safetensors", **kwargs):
        model, notes = create_model("fcn", 7, **(SMALL | kwargs)), []
        return Pretrained(str(origin), model, data).read(notes.append), notes

    return from_classifier


def test_a_classifiers_weights_are_the_backbones(start):
    kwargs = {"attention": "se", "attention_kwargs": {"reduction": 2}}
    given, notes = start(**kwargs)
    expected, _ = shapes(create_model("fcn", 7, **SMALL))
    wanted = traverse_util.flatten_dict(expected)
    # The classifier's `fc` is left out.
    assert given.keys() == {path for path in wanted if path[1] == "backbone"}
    assert "the head starts anew" in notes[0]
    *attention, auxiliary, head = sorted(
        notes[1].rpartition("there: ")[2].split(", "), key=lambda s: s[0] != "b"
    )
    assert attention == [f"backbone.layer{i}.0.attn" for i in range(1, 5)]
    assert (auxiliary, head) == ("auxiliary_head", "decode_head")


@pytest.mark.full
def test_a_run_of_a_classifier_gives_what_its_file_does(start, tmp_path):
    expected, _ = start()
    file, workdir = tmp_path / "a.safetensors", tmp_path / "run"
    kwargs = {"widths": SMALL["widths"]}
    import_torch(
        file, workdir, model="resnet10", model_kwargs=kwargs, class_names="abcdefg"
    )
    given, notes = start(origin=workdir)
    chex.assert_trees_all_equal(given, expected)
    assert "it told apart a, b, c" in notes[0]


def test_weights_of_another_backbone_are_refused(start):
    with pytest.raises(UserError, match=r"^init_from=.*does not fit ResNet: wrong sh"):
        start(widths=(4, 8, 16, 32))


# Devices ----------------------------------------------------------------------------


@pytest.mark.full
def test_two_devices_compute_what_one_does():
    module = tiny(FCN, dropout_rate=0.0)
    x = jax.random.normal(jax.random.key(0), (4, 16, 16, 3))
    variables = jax.jit(module.init)(jax.random.key(1), x)

    def step(module, variables, x):
        apply = functools.partial(module.apply, train=True, mutable=["batch_stats"])
        (logits, other), updated = apply(variables, x)
        return jnp.stack([logits, other]), updated

    whole, stats = jax.jit(functools.partial(step, module))(variables, x)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))
    parallel = module.clone(axis_name="data")
    assert parallel.backbone.axis_name == "data"
    halves, other_stats = jax.jit(
        jax.shard_map(
            functools.partial(step, parallel),
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec("data")),
            out_specs=(PartitionSpec(None, "data"), PartitionSpec()),
        )
    )(variables, x)
    # Sums over devices round otherwise.
    chex.assert_trees_all_close(halves, whole, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(other_stats, stats, rtol=1e-4, atol=1e-6)


@pytest.mark.full
def test_frozen_weights_answer_as_before():
    module = tiny()
    x = jax.random.normal(jax.random.key(0), (2, 16, 24, 3))
    variables = jax.device_get(jax.jit(module.init)(jax.random.key(1), x))
    apply = functools.partial(module.apply, train=False)
    expected = jax.jit(apply)(variables, x)
    actual = compile_network(apply, variables)(x)
    chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-6)
