"""Published layouts of PyTorch state dicts of segmenters.

Here names are mmsegmentation's: `backbone.*`, `decode_head.*`, `auxiliary_head.*`.
torchvision calls the heads `classifier` and `aux_classifier`, and numbers their layers;
transformers has names of its own for a ResNet, and two others in a head.
"""

import re
from collections.abc import Callable, Iterable

_BACKBONE, _DECODE, _AUXILIARY = "backbone.", "decode_head.", "auxiliary_head."
_TORCHVISION_HEADS = (("classifier.", _DECODE), ("aux_classifier.", _AUXILIARY))

# torchvision's layers in a head, as `name.` and what follows it in a state dict.
_FCN = {"0": "convs.0.conv", "1": "convs.0.bn", "4": "conv_seg"}
_ASPP = "0.convs."
_DEEPLABV3 = {
    "0.convs.0.0": "aspp_modules.0.conv",
    "0.convs.0.1": "aspp_modules.0.bn",
    "0.convs.1.0": "aspp_modules.1.conv",
    "0.convs.1.1": "aspp_modules.1.bn",
    "0.convs.2.0": "aspp_modules.2.conv",
    "0.convs.2.1": "aspp_modules.2.bn",
    "0.convs.3.0": "aspp_modules.3.conv",
    "0.convs.3.1": "aspp_modules.3.bn",
    "0.convs.4.1": "image_pool.1.conv",
    "0.convs.4.2": "image_pool.1.bn",
    "0.project.0": "project.conv",
    "0.project.1": "project.bn",
    "1": "bottleneck.conv",
    "2": "bottleneck.bn",
    "4": "conv_seg",
}

# transformers' ResNet: stage, block, layer or shortcut, kind, the rest.
_HF_STEM = "backbone.embedder.embedder."
_HF_LAYER = re.compile(
    r"backbone\.encoder\.stages\.(\d+)\.layers\.(\d+)\.(?:layer\.(\d+)|shortcut)"
    r"\.(convolution|normalization)\.(.+)"
)


def is_segmenter(names: Iterable[str]) -> bool:
    """Whether the names of a state dict are those of a segmenter."""
    beginnings = {name.partition(".")[0] for name in names}
    return "decode_head" in beginnings or {"backbone", "classifier"} <= beginnings


def segmenter_names(
    names: Iterable[str], backbone_names: Callable[[list[str]], dict[str, str]]
) -> dict[str, str]:
    """Returns the name in this package of every entry of a segmenter's state dict.

    Args:
        names: All names of the state dict.
        backbone_names: Returns the names in this package of a backbone's entries, which
            begin with `backbone.`; those that it returns do not.
    """
    names = list(names)
    aspp = any(name.startswith(f"classifier.{_ASPP}") for name in names)
    heads = {"classifier.": _DEEPLABV3 if aspp else _FCN, "aux_classifier.": _FCN}
    ours = {}
    for name in names:
        found = _hf_name(name)
        for theirs, here in _TORCHVISION_HEADS:
            if name.startswith(theirs):
                layer, _, leaf = name.removeprefix(theirs).rpartition(".")
                found = f"{here}{heads[theirs].get(layer, layer)}.{leaf}"
        ours[name] = found
    bodies = backbone_names([n for n in ours.values() if n.startswith(_BACKBONE)])
    return {
        name: f"{_BACKBONE}{bodies[found]}" if found in bodies else found
        for name, found in ours.items()
    }


def _hf_name(name: str) -> str:
    """Returns mmsegmentation's name of an entry that has transformers'."""
    if name.startswith(_HF_STEM):
        kind, _, leaf = name.removeprefix(_HF_STEM).partition(".")
        return f"{_BACKBONE}{'conv1' if kind == 'convolution' else 'bn1'}.{leaf}"
    if match := _HF_LAYER.fullmatch(name):
        stage, block, layer, kind, leaf = match.groups()
        is_conv = kind == "convolution"
        if layer is None:
            place = f"downsample.{0 if is_conv else 1}"
        else:
            place = f"{'conv' if is_conv else 'bn'}{int(layer) + 1}"
        return f"{_BACKBONE}layer{int(stage) + 1}.{block}.{place}.{leaf}"
    if not name.startswith((_DECODE, _AUXILIARY)):
        return name
    head, _, rest = name.partition(".")
    rest = rest.replace(".batch_norm.", ".bn.")
    if rest.startswith("classifier."):
        rest = rest.replace("classifier.", "conv_seg.", 1)
    return f"{head}.{rest}"
