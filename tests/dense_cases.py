"""The networks of the golden files of dense prediction, as `make(file, config)`.

`config` is what the file says of its network. Dropout is off: the arrays are without.
"""

from jaxattn.models import FCN, DeepLabV3, FasterRCNN, ResNet, RetinaNet, UPerNet
from jaxattn.models.fpn import FPN
from jaxattn.models.heads.mask import MaskHead

_DILATED = {
    "stage_sizes": (1, 1, 2, 2),
    "bottleneck": True,
    "widths": (4, 8, 16, 32),
    "output_stride": 8,
}
_PLAIN = {"stage_sizes": (1, 1, 1, 1), "widths": (8, 16, 32, 64)}
_FROZEN = {**_PLAIN, "norm": "frozen"}


def make_fcn(config):
    return FCN(
        backbone=ResNet(**_DILATED),
        num_classes=config["num_classes"],
        layout="torchvision",
        dropout_rate=0.0,
    )


def make_deeplabv3(config):
    return DeepLabV3(
        backbone=ResNet(**_DILATED),
        num_classes=config["num_classes"],
        channels=config["aspp_channels"],
        atrous_rates=config["aspp_rates"],
        layout="torchvision",
        dropout_rate=0.0,
    )


def make_upernet(config):
    return UPerNet(
        backbone=ResNet(**_PLAIN),
        num_classes=config["num_labels"],
        channels=config["hidden_size"],
        aux_channels=config["auxiliary_channels"],
        pool_scales=config["pool_scales"],
        dropout_rate=0.0,
    )


def make_fpn(config):
    """`config` also has "variant", of the file's."""
    variant = config["variant"]
    extra = {"p6_from_c5": "input", "p6_from_p5": "output", "pool": "pool"}[variant]
    return FPN(config["out_channels"], extra=extra, relu=True, layout="torchvision")


def make_retinanet(config):
    return RetinaNet(
        backbone=ResNet(**_FROZEN),
        num_classes=config["num_classes"],
        fpn_features=config["fpn_channels"],
        layout="torchvision",
        score_threshold=config["score_thresh"],
        nms_threshold=config["nms_thresh"],
        max_detections=config["detections_per_img"],
        num_candidates=config["topk_candidates"],
    )


def make_faster_rcnn(config):
    before, after = (
        [config[f"rpn_{when}_nms_top_n_{mode}"] for mode in ("train", "test")]
        for when in ("pre", "post")
    )
    return FasterRCNN(
        backbone=ResNet(**_FROZEN),
        num_classes=config["num_classes"] - 1,
        fpn_features=config["fpn_channels"],
        layout="torchvision",
        anchor_base=config["anchor_sizes"][0] / 4,
        hidden=config["representation"],
        proposals_before=before,
        proposals_after=after,
        rpn_samples=config["rpn_batch_size_per_image"],
        roi_samples=config["box_batch_size_per_image"],
        finest_scale=config["roi_pool"]["canonical_scale"] / 4,
        score_threshold=config["box_score_thresh"],
        nms_threshold=config["box_nms_thresh"],
        max_detections=config["box_detections_per_img"],
    )


def make_mask_head(config):
    return MaskHead(config["num_classes"], features=(12, 12), upsampled=10, is_mm=False)


# By the name of the golden file.
CASES = {
    "deeplabv3": make_deeplabv3,
    "faster_rcnn": make_faster_rcnn,
    "fcn": make_fcn,
    "fpn": make_fpn,
    "mask_head": make_mask_head,
    "retinanet": make_retinanet,
    "upernet": make_upernet,
}


def make(file, config):
    """Returns the network whose arrays a golden file holds.

    Args:
        file: Its name, without its ending.
        config: Its entry `config`, as a dict.
    """
    return CASES[file](config)
