"""ResNet and MobileNetV2 with SCSA on ImageNet, their project's recipes; and CIFAR-10.

    python main.py --config configs/scsa.py --workdir workdir/resnet50_scsa
    python main.py --config configs/scsa.py:resnet18_cifar --workdir workdir/scsa_cifar

Variants by argument: `resnet50` (the default), `resnet101` and `mobilenet_v2` on
ImageNet; `resnet18_cifar` and `resnet50_cifar`, with SCSA's window of 4. ImageNet is
TensorFlow Datasets' `imagenet2012`, prepared in `--config.data.path` or in its own
directory; or a folder of photos: `--config.data.name=imagefolder
--config.data.path=FOLDER`.

The project tests after every epoch; here 1 % of the training images are held out for
that. It has no recipe for CIFAR-10; this is mmpretrain's, its framework.
"""

from ml_collections import ConfigDict

from jaxattn.config.recipe import choose_variant, recipe

_MODELS = {
    "resnet50": {"name": "resnet50_scsa"},
    "resnet101": {"name": "resnet101_scsa"},
    "mobilenet_v2": {"name": "mobilenet_v2_scsa"},
    "resnet18_cifar": {"name": "resnet18", "attention": "scsa"},
    "resnet50_cifar": {"name": "resnet50_scsa"},
}


def get_config(variant: str = "resnet50") -> ConfigDict:
    """Returns the recipe.

    Args:
        variant: One of resnet50, resnet101, mobilenet_v2, resnet18_cifar,
            resnet50_cifar.
    """
    choose_variant(variant, _MODELS)
    is_cifar = variant.endswith("_cifar")
    num_epochs, batch_size, weight_decay = 200 if is_cifar else 100, 128, 1e-4
    schedule = {
        "name": "multi_step",
        "learning_rate": 0.1 if is_cifar else 0.05,
        "milestones": (100, 150) if is_cifar else (30, 60, 90),
        "decay_rate": 0.1,
        "warmup_epochs": 0.0,
    }
    if variant == "mobilenet_v2":
        num_epochs, batch_size, weight_decay = 400, 96, 4e-5
        schedule = {
            "name": "exponential",
            "learning_rate": 0.045,
            "decay_rate": 0.98,
            "warmup_epochs": 0.0,
        }
    return recipe(
        seed=42,
        num_epochs=num_epochs,
        batch_size=batch_size,
        model={
            "stem": "cifar" if is_cifar else "imagenet",
            "attention_kwargs": {
                "window_size": None,
                "head_num": None,
                "attn_drop_ratio": None,
            },
            **_MODELS[variant],
        },
        data={
            "name": "cifar10" if is_cifar else "imagenet2012",
            "val_fraction": 0.1 if is_cifar else 0.01,
            "resize_px": None,
            "crop_scale": None,
            "crop_ratio": None,
            "on_bad_image": None,
        },
        augment={
            "flip_probability": 0.5,
            "crop_padding_px": 4 if is_cifar else 0,
            "crop_fill": "zero",
        },
        schedule=schedule,
        optimizer={
            "name": "sgd",
            "momentum": 0.9,
            "nesterov": False,
            "weight_decay": weight_decay,
        },
    )
