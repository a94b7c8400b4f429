"""Layers and stages are found by calling a network, whichever it is."""

import flax.linen as nn
import jax.numpy as jnp
import pytest
from tiers import full_but

from jaxattn import create_model, list_models
from jaxattn.models.classes import head_paths
from jaxattn.models.layers import find_layers


def found(name, size=32, **kwargs):
    model, shape = create_model(name, **kwargs), (size, size, 3)
    return find_layers(model, shape, head_paths(model, shape))


def shown(layers):
    """The modules of each stage, a layer's joined by a comma."""
    return {n: " | ".join(map(str, stage)) for n, stage in layers.stages().items()}


# As torchvision and timm divide them, where these have the network.
STAGES = {
    "resnet10": {
        0: "conv1, bn1",
        1: "layer1.0",
        2: "layer2.0",
        3: "layer3.0",
        4: "layer4.0",
        5: "fc",
    },
    "resnet18": {
        0: "conv1, bn1",
        1: "layer1.0 | layer1.1",
        2: "layer2.0 | layer2.1",
        3: "layer3.0 | layer3.1",
        4: "layer4.0 | layer4.1",
        5: "fc",
    },
    "mobilenet_v2": {
        0: "features.0 | features.1",
        1: "features.2 | features.3",
        2: "features.4 | features.5 | features.6",
        3: "features.7 | features.8 | features.9 | features.10 | features.11"
        " | features.12 | features.13",
        4: "features.14 | features.15 | features.16 | features.17 | features.18",
        5: "classifier.1",
    },
    "shufflenet_v2_x0_5": {
        0: "conv1.0, conv1.1",
        1: "stage2.0 | stage2.1 | stage2.2 | stage2.3",
        2: "stage3.0 | stage3.1 | stage3.2 | stage3.3 | stage3.4 | stage3.5 | stage3.6"
        " | stage3.7",
        3: "stage4.0 | stage4.1 | stage4.2 | stage4.3",
        4: "conv5.0, conv5.1",
        5: "fc",
    },
    "canet_tiny": {
        0: "res_0 | res_1",
        1: "res_2 | res_3",
        2: "res_4",
        3: "res_5, bn",
        4: "fc1",
        5: "fc2",
    },
    # What holds several stages is gone through.
    "vgg_a_bn": {
        0: "features.0, features.1",
        1: "features.4, features.5",
        2: "features.8, features.9 | features.11, features.12",
        3: "features.15, features.16 | features.18, features.19",
        4: "features.22, features.23 | features.25, features.26",
        5: "classifier.0 | classifier.2",
        6: "classifier.4",
    },
}


@pytest.mark.parametrize("name", full_but(STAGES, "resnet10", "canet_tiny", "vgg_a_bn"))
def test_stages_are_those_of_the_network(name):
    assert shown(found(name, 224 if name == "mobilenet_v2" else 32)) == STAGES[name]


@pytest.mark.full
@pytest.mark.parametrize("name", list_models("classification"))
def test_every_parameter_has_one_layer_and_the_head_is_the_last(name):
    size = 224 if "scsa" in name else 32
    model, shape = create_model(name), (size, size, 3)
    head = head_paths(model, shape)
    layers, _, sizes = find_layers(model, shape, head)
    paths = [path for layer in layers for path in layer.params]
    assert sorted(paths) == sorted(sizes)
    assert layers[-1].params == head
    assert len({layer.stage for layer in layers}) >= 3


@pytest.mark.full
@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
def test_attention_and_stem_move_no_stage(stem):
    plain, other = (
        found("resnet18", stem=stem, attention=attention)
        for attention in (None, "cbam")
    )
    assert shown(plain) == shown(other) == STAGES["resnet18"]


class Trunk(nn.Module):
    """Two stages of one layer each."""

    @nn.compact
    def __call__(self, x):
        for name in ("one", "two"):
            x = nn.Conv(4, (3, 3), strides=2, name=name)(x)
        return x


class Own(nn.Module):
    """A user's network, whose names are Flax's, with a parameter of its own."""

    @nn.compact
    def __call__(self, x, *, train=False):
        x = x + self.param("offset", nn.initializers.zeros, (1, 1, 1, 3))
        later = nn.Conv(5, (3, 3), name="called_last")
        x = Trunk(name="trunk")(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dense(3)(jnp.mean(later(x), (1, 2)))


def test_order_is_that_of_the_calls():
    layers, norms, sizes = find_layers(Own(), (8, 8, 3))
    assert [str(layer) for layer in layers] == [
        "trunk.one",
        "trunk.two, BatchNorm_0",
        "called_last",
        "Dense_0",
    ]
    assert ("params", "offset") in layers[0].params
    assert sizes["params", "Dense_0", "kernel"] == 15
    assert not norms  # which are `jaxattn.ops.BatchNorm`
