"""State dicts of mmpretrain's layout, whose names are written here the other way."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiers import full_but

from jaxattn import create_model, from_torch, to_torch
from jaxattn.models.torch_layouts import torchvision_names

# Blocks of MobileNetV2's stages.
STAGES = (1, 2, 3, 4, 3, 3, 1)
# Of the published backbones.
ENTRIES = {"resnet50_scsa": 590, "mobilenet_v2_scsa": 601}


def random_state(name):
    module, rng = create_model(name, 7), np.random.default_rng(0)
    x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    abstract = jax.eval_shape(module.init, jax.random.key(0), x)
    draw = lambda leaf: rng.standard_normal(leaf.shape, np.float32)  # noqa: E731
    return module, x, to_torch(module, jax.tree.map(draw, abstract))


def mmpretrain_name(name, is_mobile, is_attended):
    if name.startswith(("fc.", "classifier.1.")):
        return f"head.fc.{name.rpartition('.')[2]}"
    if not is_mobile:
        return f"backbone.{name}"
    index, rest = re.fullmatch(r"features\.(\d+)\.(.+)", name).groups()
    if index in ("0", "18"):
        place, leaf = rest.split(".")
        conv = "conv1" if index == "0" else "conv2"
        return f"backbone.{conv}.{('conv', 'bn')[int(place)]}.{leaf}"
    blocks = [(stage, i) for stage, n in enumerate(STAGES, 1) for i in range(n)]
    stage, block = blocks[int(index) - 1]
    prefix = f"backbone.layer{stage}.{block}.conv"
    depthwise = 0 if index == "1" else 1  # the first block does not widen
    if rest.startswith("attn."):
        return f"{prefix}.{depthwise + 1}.{rest.removeprefix('attn.')}"
    _, place, *rest = rest.split(".")
    if int(place) <= depthwise:
        return f"{prefix}.{place}.{('conv', 'bn')[int(rest[0])]}.{rest[1]}"
    last = depthwise + (2 if is_attended else 1)
    kind = "conv" if int(place) == depthwise + 1 else "bn"
    return f"{prefix}.{last}.{kind}.{rest[0]}"


@pytest.mark.parametrize(
    "name",
    full_but(
        ["resnet18", "resnet50_scsa", "mobilenet_v2", "mobilenet_v2_scsa"],
        "mobilenet_v2_scsa",
    ),
)
def test_published_layout_is_read(name):
    module, x, state = random_state(name)
    kinds = "mobilenet" in name, "scsa" in name
    published = {mmpretrain_name(k, *kinds): v for k, v in state.items()}
    assert len(published) == len(state)
    backbone = [k for k in published if k.startswith("backbone.")]
    assert len(backbone) == ENTRIES.get(name, len(backbone))
    variables = from_torch(module, published, x)
    chex.assert_trees_all_equal(to_torch(module, variables), state)


def test_names_of_the_specification():
    names = torchvision_names(
        [
            "backbone.layer1.0.conv.0.conv.weight",
            "backbone.layer1.0.conv.1.local_dwc.bias",
            "backbone.layer1.0.conv.2.conv.weight",
            "backbone.layer1.0.conv.2.bn.running_mean",
            "backbone.layer2.0.conv.0.bn.bias",
            "backbone.layer2.0.conv.2.norm_h.weight",
            "backbone.layer2.0.conv.3.conv.weight",
            "backbone.conv2.bn.bias",
            "head.fc.bias",
        ]
    )
    assert list(names.values()) == [
        "features.1.conv.0.0.weight",
        "features.1.attn.local_dwc.bias",
        "features.1.conv.1.weight",
        "features.1.conv.2.running_mean",
        "features.2.conv.0.1.bias",
        "features.2.attn.norm_h.weight",
        "features.2.conv.2.weight",
        "features.3.1.bias",
        "classifier.1.bias",
    ]


def test_other_names_stay():
    names = ["layer1.0.conv1.weight", "fc.bias"]
    assert torchvision_names(names) == dict(zip(names, names, strict=True))


def test_missing_entries_are_named_as_here():
    module, x, state = random_state("resnet18")
    published = {mmpretrain_name(k, False, False): v for k, v in state.items()}
    del published["backbone.layer1.0.conv1.weight"]
    with pytest.raises(ValueError, match=r"missing: layer1\.0\.conv1\.weight"):
        from_torch(module, published, x)
