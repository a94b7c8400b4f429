"""Published layouts of PyTorch state dicts that rename networks and blocks.

mmpretrain, whose classifiers SCSA's networks are, calls the network `backbone` and its
last layer `head.fc`. Its MobileNetV2 has stages of blocks where torchvision has one
row, and keeps SCSA inside a block's sequence.

timm's ResNets have torchvision's names, and call a block's attention `se`. Its
MobileNetV2 has stages of blocks, whose layers have names instead of places.

An attention block has the names of the code that its file names first; `_BLOCKS` has
those of others.
"""

import re
from collections.abc import Collection, Iterable

from jaxattn.models.detector_layouts import detector_names, is_detector
from jaxattn.models.segmenter_layouts import is_segmenter, segmenter_names

_BACKBONE, _HEAD = "backbone.", "head.fc."
# Stage, block, place in the block's sequence, module, the rest.
_BLOCK = re.compile(r"backbone\.layer(\d)\.(\d)\.conv\.(\d)\.(\w+)\.(.+)")
_END = re.compile(r"backbone\.conv([12])\.(conv|bn)\.(.+)")
_PLACE = {"conv": "0", "bn": "1"}  # in torchvision's triple of conv, norm and ReLU6

# Of ResNets: timm's attention, and mmpretrain's SE.
_GATE = re.compile(r"(layer\d\.\d+)\.(?:se|se_layer)\.(.+)")
_SE_LAYER = re.compile(r"conv([12])\.conv\.")

# timm's MobileNetV2: stage, block, layer, the rest.
_TIMM_BLOCK = re.compile(r"blocks\.(\d)\.(\d)\.(\w+)\.(.+)")
_TIMM_STEM = "conv_stem.weight"
_TIMM_PLACES = {"conv_dw": "0.0", "bn1": "0.1", "conv_pw": "1", "bn2": "2"}
_TIMM_WIDENING = {
    "conv_pw": "0.0",
    "bn1": "0.1",
    "conv_dw": "1.0",
    "bn2": "1.1",
    "conv_pwl": "2",
    "bn3": "3",
}


def torchvision_names(names: Iterable[str]) -> dict[str, str]:
    """Returns the name in this package of every entry of a state dict.

    Names of mmpretrain's and timm's ResNet and MobileNetV2 become torchvision's, those
    of segmenters mmsegmentation's (`segmenter_layouts`), those of detectors
    MMDetection's (`detector_layouts`); others stay.

    Args:
        names: All names of the state dict, which tell what network it is of.
    """
    names = list(names)
    if is_detector(names):
        return detector_names(names, _classifier_names)
    if is_segmenter(names):
        return segmenter_names(names, _classifier_names)
    return _classifier_names(names)


def _classifier_names(names: list[str]) -> dict[str, str]:
    if _TIMM_STEM in names:
        return _timm_mobilenet_names(names)
    if any(_BLOCK.fullmatch(name) for name in names):
        return _mobilenet_names(names)
    is_mmpretrain = any(name.startswith(_BACKBONE) for name in names)
    return {name: _resnet_name(name, is_mmpretrain) for name in names}


def _resnet_name(name: str, is_mmpretrain: bool) -> str:
    ours = name
    if is_mmpretrain:
        ours = name.removeprefix(_BACKBONE).replace(_HEAD, "fc.", 1)
    if match := _GATE.fullmatch(ours):
        rest = _SE_LAYER.sub(r"fc\1.", match[2])
        return f"{match[1]}.attn.{rest}"
    return ours


def _mobilenet_names(names: list[str]) -> dict[str, str]:
    matches = {name: match for name in names if (match := _BLOCK.fullmatch(name))}
    # By stage and block: the place of the last convolution, and that of SCSA.
    last, attention = {}, {}
    for stage, block, place, kind, _ in (m.groups() for m in matches.values()):
        if kind == "conv":
            last[stage, block] = max(int(place), last.get((stage, block), 0))
        elif kind != "bn":
            attention[stage, block] = int(place)
    row = {key: i for i, key in enumerate(sorted(last), 1)}

    def in_block(match: re.Match[str]) -> str:
        stage, block, place, kind, rest = match.groups()
        key, i = (stage, block), int(place)
        prefix = f"features.{row[key]}"
        if kind not in _PLACE:
            return f"{prefix}.attn.{kind}.{rest}"
        if i < last[key]:
            return f"{prefix}.conv.{i}.{_PLACE[kind]}.{rest}"
        # The last two are no triple: two entries of the sequence, without SCSA's.
        i += int(_PLACE[kind]) - (key in attention)
        return f"{prefix}.conv.{i}.{rest}"

    def elsewhere(name: str) -> str:
        if match := _END.fullmatch(name):
            i = 0 if match[1] == "1" else 1 + len(row)
            return f"features.{i}.{_PLACE[match[2]]}.{match[3]}"
        return name.replace(_HEAD, "classifier.1.", 1)

    return {
        name: in_block(matches[name]) if name in matches else elsewhere(name)
        for name in names
    }


def _timm_mobilenet_names(names: list[str]) -> dict[str, str]:
    matches = {name: match for name in names if (match := _TIMM_BLOCK.fullmatch(name))}
    keys = sorted({(match[1], match[2]) for match in matches.values()})
    row = {key: i for i, key in enumerate(keys, 1)}
    widening = {m.groups()[:2] for m in matches.values() if m[3] == "conv_pwl"}
    last = 1 + len(row)
    ends = {"conv_stem": "0.0", "bn1": "0.1"}
    ends |= {"conv_head": f"{last}.0", "bn2": f"{last}.1"}

    def rename(name: str) -> str:
        if match := matches.get(name):
            stage, block, layer, rest = match.groups()
            key = (stage, block)
            place = (_TIMM_WIDENING if key in widening else _TIMM_PLACES).get(layer)
            return f"features.{row[key]}.conv.{place}.{rest}" if place else name
        layer, _, rest = name.partition(".")
        if layer in ends:
            return f"features.{ends[layer]}.{rest}"
        return name.replace("classifier.", "classifier.1.", 1)

    return {name: rename(name) for name in names}


# By block: beginnings of its names in other code, and here. What fits is what the
# module has, so that two blocks may claim one name.
_BLOCKS = {
    "ca": [  # SCSA's
        ("conv.conv", "conv1"),
        ("conv.bn", "bn1"),
        ("attn_h", "conv_h"),
        ("attn_w", "conv_w"),
    ],
    "cbam": [  # the authors', SCSA's and timm's
        ("ChannelGate.mlp.1", "channel_attention.shared_mlp.0"),
        ("ChannelGate.mlp.3", "channel_attention.shared_mlp.2"),
        ("SpatialGate.spatial", "spatial_attention"),
        ("mlp_chans", "channel_attention.shared_mlp"),
        ("mlp_spaces", "spatial_attention.conv"),
        ("channel.fc1", "channel_attention.shared_mlp.0"),
        ("channel.fc2", "channel_attention.shared_mlp.2"),
        ("spatial.conv.conv", "spatial_attention.conv"),
        ("spatial.conv.bn", "spatial_attention.bn"),
    ],
    "cpca": [
        (f"dconv{size}", f"dwc{size}")
        for size in ("5_5", "1_7", "7_1", "1_11", "11_1", "1_21", "21_1")
    ],
    "da": [
        (f"pam.{name[0]}", f"pam.{name}_conv") for name in ("query", "key", "value")
    ],
    "gc": [
        ("conv_attn", "conv_mask"),
        *(
            (f"mlp_{here}.{name}", f"channel_{there}_conv.{i}")
            for here, there in (("add", "add"), ("scale", "mul"))
            for name, i in (("fc1", 0), ("norm", 1), ("fc2", 3))
        ),
    ],
    "ge": [("mlp.fc1", "down"), ("mlp.fc2", "up")],
    "non_local": [("norm", "W.1"), ("p", "phi"), ("t", "theta"), ("z", "W.0")],
    "sa": [("c_w", "cweight"), ("c_b", "cbias"), ("s_w", "sweight"), ("s_b", "sbias")],
    "se": [("fc1", "fc.0"), ("bn", "fc.1"), ("fc2", "fc.2"), ("fc2", "fc.3")],
    "sk": [
        ("attn.bn", "fc.0.bn"),
        ("attn.fc_reduce", "fc.0.conv"),
        ("attn.fc_select", "fc.1"),
        ("paths", "conv"),
    ],
    # SK*, whose layers are the bottleneck's.
    "sk_star": [
        ("bn2", "conv2.conv.0.bn"),
        ("bn2g", "conv2.conv.1.bn"),
        ("bn_fc1", "conv2.fc.0.bn"),
        ("conv2", "conv2.conv.0.conv"),
        ("conv2g", "conv2.conv.1.conv"),
        ("conv_fc1", "conv2.fc.0.conv"),
        ("conv_fc2", "conv2.fc.1"),
    ],
    "triplet": [
        ("ChannelGateH.spatial", "cw.conv"),
        ("ChannelGateW.spatial", "hc.conv"),
        ("SpatialGate.spatial", "hw.conv"),
    ],
}
_PATTERNS = [
    (re.compile(rf"(^|.*\.){re.escape(other)}(?=\.|$)"), rf"\g<1>{ours}")
    for pairs in _BLOCKS.values()
    for other, ours in pairs
]


def block_names(names: Iterable[str], known: Collection[str]) -> dict[str, str]:
    """Returns the name in this package of every entry of a state dict.

    What is not known by its name may be by that of another code's block.

    Args:
        names: Of the state dict.
        known: Names in this package.
    """
    names = list(names)
    free = set(known) - set(names)
    ours = {}
    for name in names:
        tried = (pattern.sub(new, name, count=1) for pattern, new in _PATTERNS)
        fits = name if name in known else next((t for t in tried if t in free), name)
        free.discard(fits)
        ours[name] = fits
    return ours
