"""Published layouts of PyTorch state dicts of detectors: torchvision's, new and old.

Here names are MMDetection's: `backbone.*`, `neck.*`, `bbox_head.*`, `rpn_head.*`,
`roi_head.*`.
"""

import re
from collections.abc import Callable, Iterable

_BACKBONE = "backbone."

# As torchvision has them; of old files, where a convolution was no sequence, too.
_RENAMED = [
    (r"backbone\.body\.", _BACKBONE),
    (r"backbone\.fpn\.inner_blocks\.(\d)\.(?:0\.)?", r"neck.lateral_convs.\1.conv."),
    (r"backbone\.fpn\.layer_blocks\.(\d)\.(?:0\.)?", r"neck.fpn_convs.\1.conv."),
    (r"backbone\.fpn\.extra_blocks\.p6\.", "neck.fpn_convs.3.conv."),
    (r"backbone\.fpn\.extra_blocks\.p7\.", "neck.fpn_convs.4.conv."),
    (r"head\.classification_head\.cls_logits\.", "bbox_head.retina_cls."),
    (r"head\.regression_head\.bbox_reg\.", "bbox_head.retina_reg."),
    (r"rpn\.head\.conv\.(?:0\.0\.)?", "rpn_head.rpn_conv."),
    (r"rpn\.head\.cls_logits\.", "rpn_head.rpn_cls."),
    (r"rpn\.head\.bbox_pred\.", "rpn_head.rpn_reg."),
    (r"roi_heads\.box_head\.fc6\.", "roi_head.bbox_head.shared_fcs.0."),
    (r"roi_heads\.box_head\.fc7\.", "roi_head.bbox_head.shared_fcs.1."),
    (r"roi_heads\.box_predictor\.cls_score\.", "roi_head.bbox_head.fc_cls."),
    (r"roi_heads\.box_predictor\.bbox_pred\.", "roi_head.bbox_head.fc_reg."),
    (r"roi_heads\.mask_head\.(\d)\.0\.", r"roi_head.mask_head.convs.\1.conv."),
    (r"roi_heads\.mask_predictor\.conv5_mask\.", "roi_head.mask_head.upsample."),
    (
        r"roi_heads\.mask_predictor\.mask_fcn_logits\.",
        "roi_head.mask_head.conv_logits.",
    ),
]
_PATTERNS = [(re.compile(pattern), new) for pattern, new in _RENAMED]
# Of towers: as a sequence of sequences, or of old files of convolutions and ReLUs.
_TOWER = re.compile(r"head\.(classification|regression)_head\.conv\.(\d)\.(0\.)?")
_MASK_CONV = re.compile(r"roi_heads\.mask_head\.mask_fcn(\d)\.")
_OURS = ("neck.", "bbox_head.", "rpn_head.", "roi_head.")


def is_detector(names: Iterable[str]) -> bool:
    """Whether the names of a state dict are those of a detector."""
    names = list(names)
    is_ours = any(name.startswith(_OURS) for name in names)
    return is_ours or any(name.startswith("backbone.fpn.") for name in names)


def detector_names(
    names: Iterable[str], backbone_names: Callable[[list[str]], dict[str, str]]
) -> dict[str, str]:
    """Returns the name in this package of every entry of a detector's state dict.

    Args:
        names: All names of the state dict.
        backbone_names: Returns the names in this package of a backbone's entries, which
            begin with `backbone.`; those that it returns do not.
    """
    ours = {name: _renamed(name) for name in names}
    bodies = backbone_names([n for n in ours.values() if n.startswith(_BACKBONE)])
    return {
        name: f"{_BACKBONE}{bodies[found]}" if found in bodies else found
        for name, found in ours.items()
    }


def _renamed(name: str) -> str:
    if match := _TOWER.match(name):
        tower = "cls_convs" if match[1] == "classification" else "reg_convs"
        place = int(match[2]) if match[3] else int(match[2]) // 2
        return f"bbox_head.{tower}.{place}.conv.{name[match.end() :]}"
    if match := _MASK_CONV.match(name):
        place = int(match[1]) - 1
        return f"roi_head.mask_head.convs.{place}.conv.{name[match.end() :]}"
    for pattern, new in _PATTERNS:
        if match := pattern.match(name):
            return match.expand(new) + name[match.end() :]
    return name
