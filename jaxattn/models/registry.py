"""Networks by name."""

import dataclasses
import numbers
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn

from jaxattn.errors import UserError, choose, require, suggest
from jaxattn.models.canet import CANet
from jaxattn.models.cascade_rcnn import CascadeRCNN
from jaxattn.models.cbam_resnet import EfficientResNet, EnhancedEfficientResNet
from jaxattn.models.faster_rcnn import FasterRCNN
from jaxattn.models.mask_rcnn import MaskRCNN
from jaxattn.models.mobilenet_v2 import MobileNetV2
from jaxattn.models.resnet import ResNet
from jaxattn.models.retinanet import RetinaNet
from jaxattn.models.sccnet import SCCNet
from jaxattn.models.segmenter import FCN, DeepLabV3, UPerNet
from jaxattn.models.shufflenet_v2 import ShuffleNetV2
from jaxattn.models.stems import OUTPUT_STRIDES
from jaxattn.models.vgg import VGG11, VGGA, VGGADropout, VGGALight


class _Entry(NamedTuple):
    """A network, the keywords that its name fixes, and those it starts from.

    A network that has a backbone takes the keywords of this, too.
    """

    network: type[nn.Module]
    fixed: Mapping[str, Any] = {}
    defaults: Mapping[str, Any] = {}
    task: str = "classification"


_BASIC_10 = {"stage_sizes": (1, 1, 1, 1), "bottleneck": False}
_BASIC = {"stage_sizes": (2, 2, 2, 2), "bottleneck": False}
_BASIC_34 = {"stage_sizes": (3, 4, 6, 3), "bottleneck": False}
_DEEP_50 = {"stage_sizes": (3, 4, 6, 3), "bottleneck": True}
_DEEP_101 = {"stage_sizes": (3, 4, 23, 3), "bottleneck": True}
_SCSA = {"attention": "scsa"}
# Of segmenters and detectors; the output stride is what each of them is published with.
_BACKBONE = {"backbone": "resnet50"}
_DILATED = {**_BACKBONE, "output_stride": 8}

_MODELS = {
    "canet": _Entry(CANet, {"width": 64}),
    "canet_light": _Entry(CANet, {"width": 32}),
    "canet_pro": _Entry(CANet, {"width": 128}),
    "canet_tiny": _Entry(CANet, {"width": 16}),
    "cascade_rcnn": _Entry(CascadeRCNN, {}, _BACKBONE, "detection"),
    "deeplabv3": _Entry(DeepLabV3, {}, _DILATED, "segmentation"),
    "efficient_resnet": _Entry(EfficientResNet),
    "enhanced_efficient_resnet": _Entry(EnhancedEfficientResNet),
    "faster_rcnn": _Entry(FasterRCNN, {}, _BACKBONE, "detection"),
    "fcn": _Entry(FCN, {}, _DILATED, "segmentation"),
    "mask_rcnn": _Entry(MaskRCNN, {}, _BACKBONE, "detection"),
    "mobilenet_v2": _Entry(MobileNetV2),
    "mobilenet_v2_scsa": _Entry(MobileNetV2, _SCSA, {"dropout_rate": 0.0}),
    "retinanet": _Entry(RetinaNet, {}, _BACKBONE, "detection"),
    "resnet10": _Entry(ResNet, _BASIC_10),
    "resnet18": _Entry(ResNet, _BASIC),
    "resnet34": _Entry(ResNet, _BASIC_34),
    "resnet50": _Entry(ResNet, _DEEP_50),
    "resnet50_scsa": _Entry(ResNet, _DEEP_50 | _SCSA),
    "resnet101": _Entry(ResNet, _DEEP_101),
    "resnet101_scsa": _Entry(
        ResNet, _DEEP_101 | _SCSA, {"attention_kwargs": {"attn_drop_ratio": 0.1}}
    ),
    "sccnet18": _Entry(SCCNet, {"stage_sizes": (2, 2, 2, 2)}),
    "sccnet34": _Entry(SCCNet, {"stage_sizes": (3, 4, 6, 3)}),
    "shufflenet_v2_x0_5": _Entry(ShuffleNetV2, {"widths": (24, 48, 96, 192, 1024)}),
    "upernet": _Entry(UPerNet, {}, _BACKBONE, "segmentation"),
    "vgg11": _Entry(VGG11),
    "vgg_a": _Entry(VGGA, {"batch_norm": False}),
    "vgg_a_bn": _Entry(VGGA, {"batch_norm": True}),
    "vgg_a_dropout": _Entry(VGGADropout),
    "vgg_a_light": _Entry(VGGALight),
}


def list_models(task: str | None = None) -> list[str]:
    """Returns the names that `create_model` knows, sorted.

    Args:
        task: Only networks of this task: "classification", "segmentation" or
            "detection".
    """
    return sorted(k for k, entry in _MODELS.items() if task in (None, entry.task))


def list_backbones() -> list[str]:
    """Returns the names that networks with a backbone take as `backbone=`, sorted.

    These yield maps of four stages, which `output_stride` keeps large.
    """
    return [
        name
        for name in list_models("classification")
        if "output_stride" in _fields(_MODELS[name].network)
    ]


def task_of(name: str) -> str:
    """Returns the task of a network.

    Args:
        name: One of `list_models()`.
    """
    return _MODELS[name].task


def create_model(name: str, num_classes: int = 10, **kwargs: Any) -> nn.Module:
    """Returns the network `name`, not yet initialised.

    Apply it as `module.apply(variables, x, train=False)` to float images
    `[N, H, W, C]`; it returns float32 logits, of a classifier `[N, num_classes]`, of a
    segmenter `[N, H, W, num_classes]` (see `jaxattn.models.Segmenter` for training); of
    a detector a struct, which has the methods `losses` and `predict`.

    Args:
        name: One of `list_models()`.
        num_classes: Number of logits; of a classifier 0 leaves the last layer out, and
            returns what it would be given: the pooled features.
        **kwargs: Keywords of the network, such as `dtype` and `axis_name`; of a
            segmenter or detector also `backbone`, one of `list_backbones()`, and its
            keywords.

    Raises:
        UserError: If the name or a keyword is unknown, or `num_classes` below 0.
    """
    choose("model.name", name, list_models())
    _require_range("num_classes", num_classes)
    entry = _MODELS[name]
    kwargs = _merged(entry.defaults, kwargs)
    allowed = model_keywords(name, kwargs.get("backbone"))
    for key in kwargs:
        if key not in allowed:
            choices = suggest(key, allowed)
            raise UserError(f"model.{key}: {name} takes no such key; {choices}")
        _require_range(f"model.{key}", kwargs[key])
    if "backbone" in kwargs:
        wanted = f"an integer from 1 on for {name}"
        require("num_classes", num_classes, num_classes >= 1, wanted)
        kwargs = _with_backbone(entry.network, kwargs)
    return entry.network(num_classes=num_classes, **entry.fixed, **kwargs)


def _with_backbone(network: type[nn.Module], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Returns the keywords of a network, its backbone made of those that it takes."""
    fields = _fields(network)
    own = {key: value for key, value in kwargs.items() if key in fields}
    rest = {key: value for key, value in kwargs.items() if key not in fields}
    return own | {"backbone": create_model(own["backbone"], **rest)}


# By the last part of a key, whatever the network.
_FROM_1 = (
    "width",
    "base_width",
    "in_channels",
    "channels",
    "aux_channels",
    "fpn_features",
    "max_detections",
    "num_candidates",
    "hidden",
    "rpn_samples",
    "roi_samples",
    "reduction",
    "window_size",
    "head_num",
)
_BELOW_1 = ("dropout_rate", "drop_path_rate", "attn_drop_ratio")
_OR_NONE = ("in_channels", "channels", "aux_channels")


def _require_range(key: str, value: Any) -> None:
    """Checks a keyword of a network that is a number, and those inside a mapping."""
    name = key.rsplit(".", 1)[-1]
    if isinstance(value, Mapping):
        for inner, number in value.items():
            _require_range(f"{key}.{inner}", number)
    elif name in _OR_NONE and value is None:
        return
    elif name == "num_classes":
        holds = _is_count(value, least=0)
        require(key, value, holds, "an integer from 0 on")
    elif name == "frozen_stages":
        require(key, value, _is_count(value, least=0), "an integer from 0 on")
    elif name in _FROM_1:
        require(key, value, _is_count(value), "an integer from 1 on")
    elif name in ("widths", "pool_scales", "atrous_rates"):
        require(key, value, _are_counts(value), "integers from 1 on")
    elif name == "output_stride":
        wanted = f"one of {', '.join(map(str, OUTPUT_STRIDES))}"
        require(key, value, _is_count(value) and value in OUTPUT_STRIDES, wanted)
    elif name in ("attention_stages", "out_stages"):
        least = 0 if name == "attention_stages" else 1
        holds = value is None or _are_counts(value, least)
        require(key, value, holds, "some numbers of stages, which begin with 1")
    elif name == "anchor_base":
        require(key, value, _is_number(value) and value > 0, "a number above 0")
    elif name in (*_BELOW_1, "mask_prob"):
        holds = _is_number(value) and 0 <= float(value) <= 1
        holds = holds and (value != 1 or name == "mask_prob")
        wanted = "in [0, 1]" if name == "mask_prob" else "in [0, 1)"
        require(key, value, holds, wanted)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _are_counts(values: Any, least: int = 1) -> bool:
    is_sequence = isinstance(values, tuple | list) and len(values) > 0
    return is_sequence and all(_is_count(value, least) for value in values)


def _is_count(value: Any, least: int = 1) -> bool:
    is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return is_integer and int(value) >= least


def model_keywords(name: str, backbone: str | None = None) -> list[str]:
    """Returns the keywords that `create_model` takes for a network, sorted.

    Args:
        name: One of `list_models()`.
        backbone: Of a network that has one, one of `list_backbones()`; None is its
            default.

    Raises:
        UserError: If the network has no such backbone.
    """
    entry = _MODELS[name]
    keywords = _fields(entry.network) - entry.fixed.keys()
    if "backbone" in keywords:
        inner = str(backbone or entry.defaults["backbone"])
        choose("model.backbone", inner, list_backbones())
        keywords |= {*model_keywords(inner)} - _OF_CLASSIFIERS
    return sorted(keywords - {"num_classes", "name", "parent"})


# What a backbone has no use for.
_OF_CLASSIFIERS = {"out_stages", "dropout_rate"}


def _fields(network: type[nn.Module]) -> set[str]:
    return {field.name for field in dataclasses.fields(network)}  # pyright: ignore


def _merged(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Fills in defaults, also inside keywords that are mappings themselves."""
    merged = {**defaults, **given}
    for key in defaults.keys() & given.keys():
        if isinstance(given[key], Mapping):
            merged[key] = {**defaults[key], **given[key]}
    return merged
