import flax.linen as nn
import jax
import pytest
from tiers import full_but

from jaxattn import create_model
from jaxattn.attention import (
    ECA,
    ELA,
    MCA,
    SCC,
    SCSA,
    GatherExcite,
    GlobalContext,
    MultiKernelECA,
    StyleRecalibration,
)
from jaxattn.models.cost import count_parameters, measure_cost, summarize_model


class Small(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (3, 3), padding=1)(x)
        x = nn.Conv(8, (3, 3), padding=1, feature_group_count=4)(x)
        return nn.Dense(5)(x.mean((1, 2)))


def test_macs_are_the_hand_counted():
    dense = 16 * 16 * 8 * 9 * 3 + 16 * 16 * 8 * 9 * 2 + 8 * 5
    assert measure_cost(Small(), (16, 16, 3)).macs == dense


@pytest.mark.parametrize(
    ("name", "million"),
    full_but(
        [
            ("canet_tiny", 68),
            ("canet_light", 269),
            ("canet", 1071),
            ("enhanced_efficient_resnet", 525),
        ],
        ("canet_tiny", 68),
    ),
)
def test_macs_are_the_known(name, million):
    assert round(measure_cost(create_model(name), (32, 32, 3)).macs / 1e6) == million


# 1000 classes, 224 pixels: multiply-accumulates, and the theoretical ones of SCC.
PUBLISHED = [
    ("resnet18", {}, 1_814_073_344, None),
    ("resnet34", {}, 3_663_761_408, None),
    ("resnet50", {}, 4_089_184_256, None),
    ("resnet101", {}, 7_801_405_440, None),
    ("mobilenet_v2", {}, 300_774_272, None),
    ("resnet18", {"attention": "scsa"}, 1_818_657_792, None),
    ("resnet34", {"attention": "scsa"}, 3_672_922_624, None),
    ("resnet50_scsa", {}, 4_098_345_472, None),
    ("resnet101_scsa", {}, 7_820_262_912, None),
    ("mobilenet_v2_scsa", {}, 325_967_104, None),
    ("sccnet18", {"downsample": "conv1"}, 2_000_326_656, 1_814_073_344),
    ("sccnet18", {"downsample": "scc1"}, 2_000_326_656, 1_814_073_344),
    ("sccnet18", {"downsample": "scc3"}, 2_173_734_912, 1_968_214_016),
    ("sccnet18", {}, 2_655_424_512, 2_276_495_360),
    ("sccnet34", {"downsample": "conv1"}, 4_055_535_616, 3_663_761_408),
    ("sccnet34", {"downsample": "conv3"}, 4_209_676_288, 3_817_902_080),
    ("sccnet34", {"downsample": "conv5"}, 4_517_957_632, 4_126_183_424),
    ("sccnet34", {"downsample": "scc3"}, 4_228_943_872, 3_817_902_080),
    ("sccnet34", {}, 4_710_633_472, 4_126_183_424),
]


@pytest.mark.parametrize(
    ("name", "kwargs", "macs", "theoretical"),
    full_but(PUBLISHED, PUBLISHED[5], PUBLISHED[13]),
)
def test_macs_are_the_published(name, kwargs, macs, theoretical):
    cost = measure_cost(create_model(name, 1000, **kwargs), (224, 224, 3))
    assert (cost.macs, cost.theoretical_macs) == (macs, theoretical or macs)


@pytest.mark.parametrize(
    ("block", "macs"),
    [
        # 6 * 8 * (6 + 6) of strips, 3 * 8 * T, 2 * 8 * d * T; T tokens, d a head's.
        (SCSA(window_size=3), 576 + 24 * 4 + 16 * 8 * 4),
        (SCSA(window_size=-1), 576 + 24 + 16 * 8),
        (SCSA(window_size=3, head_num=2), 576 + 24 * 4 + 16 * 4 * 4),
        (
            SCSA(window_size=3, down_sample_mode="recombination"),
            576 + 24 * 4 + 16 * 8 * 4 + 8 * 9 * 8 * 4,
        ),
        (SCC(4, 3, groups=2), 36 * 4 * 4 * (1 + 9)),
        # Convolutions that no operation of the program shows: taps by outputs.
        (ECA(), 3 * 8),
        (ELA(norm_groups=8), 7 * 8 * (6 + 6)),
        (MultiKernelECA(), (3 + 5 + 7) * 8),
        (GatherExcite(), 6 * 6 * 8),
        # And the product of scores and positions, and both layers of the bottleneck.
        (GlobalContext(reduction=4), 2 * 36 * 8 + 2 * 8 * 2),
        (MCA(), 3 * 6 + 3 * 6 + 1 * 8),
        (StyleRecalibration(), 2 * 8),
        (SCC(4, 5, stride=4), 4 * 4 * 8 * (1 + 9 + 25)),
    ],
)
def test_macs_of_a_block_follow_its_formula(block, macs):
    assert measure_cost(block, (6, 6, 8)).macs == macs


def test_work_inside_a_rematerialised_module_is_counted():
    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.remat(Small)()(x)

    shape = (16, 16, 3)
    assert measure_cost(Outer(), shape) == measure_cost(Small(), shape)


def test_summary_names_modules():
    text = summarize_model(create_model("canet_tiny"), (32, 32, 3))
    for name in ("res_0", "res_5", "fc2", "[1,4,4,64]"):
        assert name in text


def test_summary_of_scsa_warns_of_nothing():
    model = create_model("resnet18", stem="cifar", attention="scsa")
    assert "layer4.1/attn" in summarize_model(model, (32, 32, 3))


def test_parameters_are_counted():
    params = jax.eval_shape(
        Small().init, jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 8, 3), "float32")
    )["params"]
    assert count_parameters(params) == (27 * 8 + 8) + (18 * 8 + 8) + 45
