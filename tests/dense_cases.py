"""The networks of the golden files of dense prediction, as `make(file, config)`.

`config` is what the file says of its network. Dropout is off: the arrays are without.
"""

from jaxattn.models import FCN, DeepLabV3, ResNet, UPerNet

_DILATED = {
    "stage_sizes": (1, 1, 2, 2),
    "bottleneck": True,
    "widths": (4, 8, 16, 32),
    "output_stride": 8,
}
_PLAIN = {"stage_sizes": (1, 1, 1, 1), "widths": (8, 16, 32, 64)}


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


# By the name of the golden file.
CASES = {
    "deeplabv3": make_deeplabv3,
    "fcn": make_fcn,
    "upernet": make_upernet,
}


def make(file, config):
    """Returns the network whose arrays a golden file holds.

    Args:
        file: Its name, without its ending.
        config: Its entry `config`, as a dict.
    """
    return CASES[file](config)
