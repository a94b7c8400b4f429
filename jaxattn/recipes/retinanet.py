"""Object detection by RetinaNet, whose backbone may have any attention.

    python main.py --config configs/retinanet.py:bccd --workdir workdir/bccd \
        --config.data.path=BCCD

Variants by argument:

- `bccd`: ResNet-18 with a pyramid of 64 channels, from random weights, for BCCD at
  240 x 320 (205 training photos of blood, with red and white cells and platelets). Its
  least anchors are of 16 pixels, for platelets are small.
- `own` (the default): the same network for photos of your own, on a canvas of
  512 x 512; docs/detection.md has what the folder is.
- `coco`: MMDetection's `retinanet_r50_fpn_1x_coco`: ResNet-50 with 256 channels, 12
  epochs of 16 photos a step, SGD. Its backbone begins from ImageNet's weights: set
  `init_from`.

Deviations of `coco`: all photos are shown on one canvas of 1088 x 1088, so that there
is one program: one of 640 x 480 pixels at 1088 x 816, where MMDetection shows it at
1067 x 800. What is beside a photo on the canvas is background to the network. Photos
without boxes, 1,021 of 118,287, are learnt as background, there left out. The rate
rises over 500 steps from 0, there from a thousandth of the rate.
"""

from typing import Any

from ml_collections import ConfigDict

from jaxattn.config.recipe import choose_variant, recipe

_ATTENTION = {"attention": None, "attention_init": None}


def _small(anchor_base: Any) -> dict[str, Any]:
    """What learns from random weights in few steps."""
    return {
        "num_epochs": 40,
        "batch_size": 4,
        "model": {
            "name": "retinanet",
            "backbone": "resnet18",
            "fpn_features": 64,
            "anchor_base": anchor_base,
            **_ATTENTION,
        },
        "augment": {
            "flip_probability": 0.5,
            "brightness": 0.2,
            "contrast": 0.2,
            "saturation": 0.2,
        },
        "schedule": {
            "name": "cosine",
            "learning_rate": 5e-4,
            "warmup_epochs": 2.0,
            "update_per": "step",
        },
        "optimizer": {"name": "adamw", "weight_decay": 0.05, "clip_norm": 1.0},
    }


_VARIANTS: dict[str, dict[str, Any]] = {
    "bccd": {
        **_small(2.0),
        "data": {"canvas_size": (240, 320), "max_boxes": 40, "scale_range": None},
    },
    "own": {
        **_small(None),
        "data": {
            "canvas_size": (512, 512),
            "max_boxes": None,
            "scale_range": (0.7, 1.4),
        },
    },
    "coco": {
        "num_epochs": 12,
        "batch_size": 16,
        "freeze_stages": 1,
        "freeze_batch_norm": "statistics",
        "model": {
            "name": "retinanet",
            "backbone": "resnet50",
            "fpn_features": 256,
            "anchor_base": None,
            **_ATTENTION,
        },
        "data": {
            "canvas_size": (1088, 1088),
            "max_boxes": None,
            "scale_range": None,
            "val_fraction": 0.0,  # all of train2017 is learnt, and val2017 tested
        },
        "augment": {"flip_probability": 0.5},
        "schedule": {
            "name": "multi_step",
            "learning_rate": 0.01,
            "milestones": (8, 11),
            "decay_rate": 0.1,
            "warmup_epochs": 0.06763,  # 500 steps of 7,393
        },
        "optimizer": {
            "name": "sgd",
            "momentum": 0.9,
            "nesterov": False,
            "weight_decay": 1e-4,
        },
    },
}


def get_config(variant: str = "own") -> ConfigDict:
    """Returns the recipe.

    Args:
        variant: One of bccd, own, coco.
    """
    choose_variant(variant, _VARIANTS)
    own = _VARIANTS[variant]
    data = {
        "name": "detection_folder",
        "val_fraction": 0.1,
        "scales_up": None,
        "on_bad_image": None,
        **own["data"],
    }
    loss = {"box_loss": None, "box_weight": None}
    return recipe(**{**own, "data": data, "seed": 0, "task": "detection", "loss": loss})
