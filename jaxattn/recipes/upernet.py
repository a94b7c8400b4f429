"""Semantic segmentation by UPerNet, whose backbone may have any attention.

    python main.py --config configs/upernet.py:camvid --workdir workdir/camvid \
        --config.data.path=camvid

Variants by argument:

- `camvid`: ResNet-18 with 64 channels, from random weights, for CamVid at 180 x 240
  (367 training images, 11 classes): minutes on two CPU cores.
- `own` (the default): the same network for images of your own, at 320 x 320 of which
  training sees 256 x 256; docs/segmentation.md has what the folder is.
- `ade20k`: mmsegmentation's `upernet_r50_4xb4-80k_ade20k-512x512`: ResNet-50-v1c with
  512 channels, 16 crops of 512 x 512 a step, SGD. There its backbone begins from
  ImageNet's weights: set `init_from`.

Deviations of `ade20k`: 63 epochs of 1,264 steps are 79,632 steps, not 80,000. As there
nothing is held out of the training images, so the last weights are tested. An
evaluation shows images at their own size on a canvas of 683 x 683, and larger ones
scaled down to it; mmsegmentation scales the shorter side to 512, and counts at the size
of the file: a mean IoU is near its figures, not equal to them.
"""

from typing import Any

from ml_collections import ConfigDict

from jaxattn.config.recipe import choose_variant, recipe

_CAMVID_CLASSES = (
    "sky 128 128 128",
    "building 128 0 0",
    "pole 192 192 128",
    "road 128 64 128",
    "pavement 0 0 192",
    "tree 128 128 0",
    "sign 192 128 128",
    "fence 64 64 128",
    "car 64 0 128",
    "pedestrian 64 64 0",
    "bicyclist 0 128 192",
)

_ATTENTION = {"attention": None, "attention_init": None}
_MODELS: dict[str, dict[str, Any]] = {
    "small": {
        "name": "upernet",
        "backbone": "resnet18",
        "stem": "imagenet",
        "channels": 64,
        **_ATTENTION,
    },
    "ade20k": {
        "name": "upernet",
        "backbone": "resnet50",
        "stem": "v1c",
        "channels": 512,
        **_ATTENTION,
    },
}

# Which a command line may set.
_LOSSES: dict[str, Any] = {
    "class_weights": None,
    "dice_weight": None,
    "focal_gamma": None,
    "ohem_threshold": None,
    "ohem_min_kept": None,
}

# What learns from random weights in few steps.
_FROM_NOTHING: dict[str, Any] = {
    "schedule": {
        "name": "poly",
        "learning_rate": 1e-3,
        "power": 0.9,
        "final_factor": 0.0,
        "warmup_epochs": 1.0,
        "update_per": "step",
    },
    "optimizer": {"name": "adamw", "weight_decay": 0.05, "clip_norm": 1.0},
}

_VARIANTS: dict[str, dict[str, Any]] = {
    "camvid": {
        "num_epochs": 40,
        "batch_size": 8,
        "model": _MODELS["small"],
        "data": {
            "canvas_size": (180, 240),
            "crop_size": (180, 240),
            "scale_range": (0.75, 1.5),
            "classes": _CAMVID_CLASSES,
        },
        "augment": {"flip_probability": 0.5, "photometric_probability": 0.5},
        "loss": {"aux_weight": 0.4, **_LOSSES},
        **_FROM_NOTHING,
    },
    "own": {
        "num_epochs": 40,
        "batch_size": 8,
        "model": _MODELS["small"],
        "data": {
            "canvas_size": (320, 320),
            "crop_size": (256, 256),
            "scale_range": (0.5, 2.0),
            "classes": None,
        },
        "augment": {
            "flip_probability": 0.5,
            "rotation_degrees": 0.0,
            "photometric_probability": 0.5,
        },
        "loss": {"aux_weight": 0.4, **_LOSSES},
        **_FROM_NOTHING,
    },
    "ade20k": {
        "num_epochs": 63,
        "batch_size": 16,
        "model": _MODELS["ade20k"],
        "data": {
            "val_fraction": 0.0,
            "canvas_size": (683, 683),
            "crop_size": (512, 512),
            "scale_range": (0.5, 2.0),
            "classes": None,
        },
        "augment": {"flip_probability": 0.5, "photometric_probability": 0.5},
        "loss": {"aux_weight": 0.4, "avg_non_ignore": False, **_LOSSES},
        "schedule": {
            "name": "poly",
            "learning_rate": 0.01,
            "power": 0.9,
            "final_factor": 0.01,  # down to 1e-4
            "update_per": "step",
        },
        "optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 5e-4},
    },
}


def get_config(variant: str = "own") -> ConfigDict:
    """Returns the recipe.

    Args:
        variant: One of camvid, own, ade20k.
    """
    choose_variant(variant, _VARIANTS)
    own = _VARIANTS[variant]
    data = {
        "name": "segmentation_folder",
        "val_fraction": 0.1,
        "reduce_zero_label": None,
        "cat_max_ratio": 0.75,
        "on_bad_image": None,
        **own["data"],
    }
    return recipe(**{**own, "data": data, "seed": 0, "task": "segmentation"})
