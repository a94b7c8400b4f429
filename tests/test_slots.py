"""Every attention by name, at its authors' place, in every network that has slots."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from tiers import full_but, slow_from

from benchmarks import gallery
from jaxattn import UserError, create_model
from jaxattn.attention import (
    FrequencyChannelAttention,
    SpatialAttention,
    StyleRecalibration,
)
from jaxattn.cli import main
from jaxattn.models.attention_cost import find_paper
from jaxattn.models.cost import count_parameters
from jaxattn.models.mobilenet_v2 import MobileNetV2
from jaxattn.models.resnet import BasicBlock, Bottleneck, ResNet
from jaxattn.models.sccnet import SCCNet
from jaxattn.models.shufflenet_v2 import ShuffleNetV2
from jaxattn.models.slots import PLACES, Slot, list_attention
from jaxattn.ops import BatchNorm
from jaxattn.viz.attention_maps import Panel
from jaxattn.viz.pages import plot_gates

NETWORKS = ["resnet10", "mobilenet_v2", "shufflenet_v2_x0_5", "sccnet18"]
LAST_STAGES = {"attention_stages": (2, 3, 4)}

# Of ResNet-50 with 1000 classes and 224 pixels.
TOTALS = [
    ("bam", {}, 25_915_099),
    ("ca", {}, 27_474_864),
    ("cbam", {}, 28_073_544),
    (
        "cbam",
        {"attention_kwargs": {"biases": True, "spatial_norm": True}},
        28_089_624,
    ),
    ("cpca", {}, 49_884_120),
    ("eca", {}, 25_557_032 + 86),
    ("eca", {"attention_kwargs": {"kernel_size": (3, 5, 5, 7)}}, 25_557_032 + 80),
    ("ela", {}, 25_692_968),
    ("ema", {}, 25_755_400),
    ("fca", {}, 28_071_976),
    ("gc", {}, 28_105_032),
    ("gc", LAST_STAGES, 28_078_773),
    ("gc", {**LAST_STAGES, "attention_kwargs": {"reduction": 4}}, 35_557_941),
    ("gct", {}, 25_624_625),
    ("ge", {}, 31_106_600),
    ("ge", {"attention_kwargs": {"kind": "theta_plus"}}, 33_637_592),
    ("mca", {}, 25_557_310),
    ("sa", {}, 25_557_740),
    ("se", {}, 28_071_976),
    ("se", {"attention_kwargs": {"biases": True}}, 28_088_024),
    ("sge", {}, 25_559_080),
    ("simam", {}, 25_557_032),
    ("srm", {}, 25_617_448),
    ("triplet", {}, 25_561_832),
    # On the channels in between, where SCSA puts its own.
    ("se", {"attention_place": "inside"}, 25_714_216),
    (
        "cbam",
        {"attention_place": "inside", "attention_kwargs": {"min_channels": 8}},
        25_717_320,
    ),
    ("eca", {"attention_place": "inside"}, 25_557_032 + 74),
    ("ela", {"attention_place": "inside"}, 25_591_016),
    ("ema", {"attention_place": "inside"}, 25_569_784),
    ("fca", {"attention_place": "inside"}, 25_714_216),
    ("cpca", {"attention_place": "inside"}, 27_394_836),
]


def params_of(module, size=32, **how):
    x = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    rngs = {name: jax.random.key(0) for name in ("params", "dropout", "forcing")}
    init = functools.partial(module.init, **how)
    return jax.eval_shape(init, rngs, x)["params"]


def attended(params):
    """The paths of a network's attention modules, without what is inside them."""
    paths = traverse_util.flatten_dict(params)
    found = set()
    for path in paths:
        for i, name in enumerate(path):
            if name.endswith("attn") or name.startswith("attn"):
                found.add("/".join(path[: i + 1]))
                break
    return found


@pytest.mark.parametrize(
    ("attention", "kwargs", "total"), full_but(TOTALS, TOTALS[6], TOTALS[13])
)
def test_resnet50_has_the_parameters_of_its_authors(attention, kwargs, total):
    module = create_model("resnet50", 1000, attention=attention, **kwargs)
    assert count_parameters(params_of(module, 224)) == total


def test_every_name_has_a_total_but_those_that_are_published_elsewhere():
    others = {"scsa", "multi_kernel_eca", "ese", "da", "lsk", "non_local", "sp"}
    others |= {"cond_conv", "scconv", "scnet", "sk", "split"}
    assert {*list_attention()} - {case[0] for case in TOTALS} == others


def test_mobilenet_has_coordinate_attention_in_what_it_widens():
    module = create_model("mobilenet_v2", 1000, attention="ca")
    params = params_of(module, 64)
    assert count_parameters(params) == 3_950_648
    assert "features.1/attn" not in attended(params)


@pytest.mark.parametrize("name", slow_from(1, NETWORKS))
@pytest.mark.parametrize("attention", list_attention())
def test_every_name_fits_every_network(attention, name):
    params = params_of(create_model(name, attention=attention), 224, train=True)
    plain = params_of(create_model(name), 224)
    changed = traverse_util.flatten_dict(params) != traverse_util.flatten_dict(plain)
    assert changed == (attention != "simam")


# Places -----------------------------------------------------------------------------


class PerChannel(nn.Module):
    """Has a factor for each channel of its map, and a convolution's keywords."""

    features: int = 0
    stride: int = 1
    groups: int = 1

    @nn.compact
    def __call__(self, x, *, train=False):
        del train
        x = x[:, :: self.stride, :: self.stride]
        return x * self.param("factor", nn.initializers.ones, (1, 1, 1, x.shape[-1]))


CONVOLVES = ("features", "stride", "groups")
# Of the second stage's first block, what a module sees: path and channels.
SEEN = {
    "basic": {
        "inside": {"attn": 6},
        "after": {"attn": 6},
        "before_norm": {"attn": 6},
        "before_convs": {"conv1.attn": 4, "conv2.attn": 6, "downsample.0.attn": 4},
        "replace": {"conv2": 6},
    },
    "bottleneck": {
        "inside": {"attn": 6},
        "after": {"attn": 24},
        "before_norm": {"attn": 6},
        "before_convs": {
            "conv1.attn": 16,
            "conv2.attn": 6,
            "conv3.attn": 6,
            "downsample.0.attn": 16,
        },
        "replace": {"conv2": 6},
    },
    "mobilenet": {
        "inside": {"attn": 144},
        "after": {"attn": 32},
        "before_norm": {"conv.1/attn": 144},
        "before_convs": {
            "conv.0/attn": 24,
            "conv.1/attn": 144,
            "conv.2.attn": 144,
        },
        "replace": {"conv.1/0": 144},
    },
    "shufflenet": {
        "inside": {"branch2/attn": 6},
        "after": {"branch2/attn": 6},
        "before_norm": {"branch2/attn": 6},
        "before_convs": {
            "branch1/0.attn": 4,
            "branch1/2.attn": 4,
            "branch2/0.attn": 4,
            "branch2/3.attn": 6,
            "branch2/5.attn": 6,
        },
        "replace": {"branch2/3": 6},
    },
    "sccnet": {
        "inside": {"attn": 6},
        "after": {"attn": 6},
        "before_norm": {"attn": 6},
        "before_convs": {"conv1.attn": 4, "conv2.attn": 6, "downsample.0.attn": 4},
        "replace": {"conv2": 6},
    },
}
WIDTHS = (4, 6, 8, 10)
BLOCKS = {
    "basic": (functools.partial(ResNet, (1, 1, 1, 1), widths=WIDTHS), "layer2.0"),
    "bottleneck": (
        functools.partial(ResNet, (1, 1, 1, 1), True, WIDTHS),
        "layer2.0",
    ),
    "mobilenet": (MobileNetV2, "features.4"),
    "shufflenet": (functools.partial(ShuffleNetV2, (4, 12, 8, 10, 8)), "stage2.0"),
    "sccnet": (functools.partial(SCCNet, (1, 1), WIDTHS[:2]), "layer2.0"),
}


def factors(params):
    """From the paths of the modules `PerChannel` to the channels that they see."""
    return {
        "/".join(path[:-1]): leaf.shape[-1]
        for path, leaf in traverse_util.flatten_dict(params).items()
        if path[-1] == "factor"
    }


@pytest.mark.parametrize("name", full_but(BLOCKS, "bottleneck"))
def test_a_place_is_where_it_says_in_every_kind_of_block(name):
    make, block = BLOCKS[name]
    for place in PLACES[:-1]:
        hints = CONVOLVES if place == "replace" else ()
        params = params_of(make(attention=Slot(PerChannel, place, hints=hints)))
        assert factors(params[block]) == SEEN[name][place], place


@pytest.mark.parametrize("name", full_but(BLOCKS, "bottleneck"))
def test_a_module_behind_a_stage_is_there_once(name):
    make, _ = BLOCKS[name]
    found = factors(params_of(make(attention=PerChannel, attention_place="stage")))
    assert [*found] == [f"attn{i + 1}" for i in range(2 if name == "sccnet" else 4)]
    stages = {"attention_stages": (2,)}
    maps = make(attention=Slot(Nothing, "stage"), **stages)
    x = jnp.ones((1, 32, 32, 3))
    first, second, *_ = jax.jit(
        lambda: maps.init_with_output(jax.random.key(0), x, return_features=True)[0]
    )()
    assert jnp.any(first != 0)
    assert jnp.all(second == 0)


class Nothing(nn.Module):
    """Turns everything to zero."""

    @nn.compact
    def __call__(self, x, *, train=False):
        del train
        return 0 * x


@pytest.mark.parametrize("block", full_but([BasicBlock, Bottleneck], BasicBlock))
def test_before_its_norm_a_module_is_behind_the_convolution(block):
    module = block(8, slot=Slot(Nothing, "before_norm"))
    x = jnp.abs(jax.random.normal(jax.random.key(0), (2, 4, 4, 8)))
    variables = module.init(jax.random.key(1), x)
    bias = lambda path, v: v + 1.0 if path[-1].key == "bias" else v  # noqa: E731
    variables = jax.tree_util.tree_map_with_path(bias, variables)
    # The normalisation of nothing is its bias.
    after = jax.tree.map(jnp.copy, variables)
    after["params"]["conv2"]["kernel"] *= 100.0
    assert jnp.allclose(module.apply(variables, x), module.apply(after, x))
    if block is BasicBlock:
        assert jnp.allclose(module.apply(variables, x), x + 1, rtol=1e-6)


def test_a_module_that_normalises_takes_the_norms_place():
    for normalizes in (False, True):
        slot = Slot(PerChannel, "replace", hints=CONVOLVES, normalizes=normalizes)
        module = ResNet((1, 1, 1, 1), True, WIDTHS, attention=slot)
        assert ("bn2" in params_of(module)["layer1.0"]) == (not normalizes)


def test_stages_are_chosen_and_0_is_the_stem():
    make, _ = BLOCKS["bottleneck"]
    gct = functools.partial(make, attention="gct")
    stages = lambda found: {name.partition("/")[0] for name in found}  # noqa: E731
    every = {"conv1.attn", *(f"layer{i}.0" for i in range(1, 5))}
    assert stages(attended(params_of(gct()))) == every
    chosen = attended(params_of(gct(attention_stages=(0, 3))))
    assert stages(chosen) == {"conv1.attn", "layer3.0"}


def test_a_keyword_has_a_value_a_stage():
    kwargs = {"attention_kwargs": {"kernel_size": (3, 5, 7, 9)}}
    slot = Slot(SpatialAttention, by_stage=("kernel_size",))
    params = params_of(BLOCKS["basic"][0](attention=slot, **kwargs))
    sizes = [
        params[f"layer{i}.0"]["attn"]["conv"]["kernel"].shape[0] for i in range(1, 5)
    ]
    assert sizes == [3, 5, 7, 9]


def modules_of(module, kind, size=32):
    """The modules of a kind that a network calls."""
    found = []

    def record(call, args, kwargs, context):
        if isinstance(context.module, kind) and context.method_name == "__call__":
            found.append(context.module)
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        params_of(module, size)
    return found


@pytest.mark.parametrize(("stem", "sides"), [("imagenet", 56), ("cifar", 32)])
def test_frequencies_are_of_the_stages_usual_size(stem, sides):
    module = BLOCKS["bottleneck"][0](stem=stem, attention="fca")
    found = modules_of(module, FrequencyChannelAttention, 48)
    assert [m.dct_size for m in found] == [(sides >> i, sides >> i) for i in range(4)]
    # As many as divide the channels; ResNet's own divide all 16.
    assert [m.freq_sel_method for m in found] == ["top16", "top8", "top16", "top8"]


def test_statistics_of_an_attention_are_over_all_devices():
    module = BLOCKS["basic"][0](attention=StyleRecalibration, axis_name="data")
    norms = modules_of(module, BatchNorm)
    assert len(norms) > 10
    assert {norm.axis_name for norm in norms} == {"data"}


class FirstChannel(nn.Module):
    """Drops all channels but one."""

    stride: int = 1

    @nn.compact
    def __call__(self, x, *, train=False):
        del train
        return x[..., :1]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"attention_stages": (1,)}, r"attention_stages=\(1,\): needs attention"),
        ({"attention_place": "after"}, "attention_place='after': needs attention"),
        (
            {"attention": "se", "attention_place": "befor"},
            "attention_place='befor': .*choices: inside, after",
        ),
        (
            {"attention": "se", "attention_stages": (5,)},
            r"attention_stages=\(5,\): must be some of 0 to 4",
        ),
        (
            {"attention": "eca", "attention_kwargs": {"kernel_size": (3, 5)}},
            r"attention_kwargs.kernel_size=\(3, 5\): must be one value, or 4",
        ),
        (
            {"attention": "se", "attention_place": "replace"},
            "attention_place='replace': attention='se' makes no convolution",
        ),
        (
            {"attention": Slot(FirstChannel, "replace", hints=("stride",))},
            r"FirstChannel makes \[8, 8, 1\] of .*must be of stride 1 and have 4 chan",
        ),
    ],
)
def test_a_network_refuses_what_does_not_fit(kwargs, message):
    module = BLOCKS["basic"][0](stem="cifar", **kwargs)
    with pytest.raises(UserError, match=message):
        params_of(module, 8)


# The table --------------------------------------------------------------------------


@pytest.mark.parametrize("attention", list_attention())
def test_every_attention_says_its_paper(attention):
    paper = find_paper(attention)
    if attention == "multi_kernel_eca":
        assert paper == (
            'Course project "CANet" (PRML, Fudan University, 2024)',
            "",
            "",
        )
        return
    assert re.fullmatch(r"\w+( et al\.| and \w+), .*20\d\d", paper.citation)
    assert paper.url.startswith("https://")
    assert len(paper.title) > 10


@pytest.mark.full
def test_the_command_prints_what_each_attention_adds(capsys):
    assert main(["models", "--attention"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["attention", "parameters", "MACs", "paper"]
    assert [row.split()[0] for row in rows] == list_attention()
    (row,) = (row for row in rows if row.startswith("se "))
    assert row.split()[1:4] == ["+2,514,944", "+2,514,944", "Hu"]


def test_the_command_refuses_a_network_without_slots(capsys):
    assert main(["models", "vgg11", "--attention"]) == 2
    assert "model.attention: vgg11 takes no such key" in capsys.readouterr().err


def test_the_gallery_is_made_from_the_blocks():
    page = gallery.PAGE.read_text()
    assert gallery.replace_gallery(page) == page
    for name in list_attention():
        assert f"### `{name}`" in page


def test_a_picture_of_the_gallery_is_small(tmp_path):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (32, 32, 3), np.uint8)
    shown = [
        Panel("map", rng.random((16, 16)), "map"),
        Panel("bars", rng.random(64), "bars"),
    ]
    gallery.save(plot_gates(image, shown), tmp_path / "one.png")
    assert 1_000 < (tmp_path / "one.png").stat().st_size <= 15_000
