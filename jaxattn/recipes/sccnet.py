"""SCCNet on ImageNet, its project's recipe of 120 epochs; and on CIFAR-10.

    python main.py --config configs/sccnet.py --workdir workdir/sccnet18
    python main.py --config configs/sccnet.py:34_cifar --workdir workdir/sccnet34_cifar

Variants by argument: `18` (the default) and `34` on ImageNet, `18_cifar` and
`34_cifar`; and `resnet34` on ImageNet, with which the project compares, with shortcuts
by `--config.model.downsample` (conv1, conv3, conv5) and `--config.model.activation`
(relu, mish). ImageNet is TensorFlow Datasets' `imagenet2012`, prepared in
`--config.data.path` or in its own directory; or a folder of photos:
`--config.data.name=imagefolder --config.data.path=FOLDER`.

The project reports 74.85 % (top-5 92.06 %) for `34` on ImageNet, and tests after every
epoch; here 1 % of the training images are held out for that. It reports nothing for
CIFAR-10, whose recipe here is the usual one with its learning rate.
"""

from ml_collections import ConfigDict

from jaxattn.config.recipe import choose_variant, recipe

_MODELS = {
    "18": "sccnet18",
    "34": "sccnet34",
    "18_cifar": "sccnet18",
    "34_cifar": "sccnet34",
    "resnet34": "resnet34",
}
_SCC = {"downsample": "scc5", "mask_prob": 0.005, "forcing": "uniform"}
_RESNET = {"downsample": "conv1", "activation": "relu"}


def get_config(variant: str = "18") -> ConfigDict:
    """Returns the recipe.

    Args:
        variant: One of 18, 34, 18_cifar, 34_cifar, resnet34.
    """
    choose_variant(variant, _MODELS)
    is_cifar = variant.endswith("_cifar")
    return recipe(
        seed=42,
        num_epochs=200 if is_cifar else 120,
        batch_size=128,
        dtype="float32",  # SCC in bfloat16 is an approximation
        model={
            "name": _MODELS[variant],
            "stem": "cifar" if is_cifar else "imagenet",
            "drop_path_rate": None,
            "in_channels": None,
            **(_RESNET if variant == "resnet34" else _SCC),
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
        schedule={
            "name": "cosine",
            "learning_rate": 0.1,
            "final_factor": 0.001,
            "warmup_epochs": 0.0,
        },
        optimizer={
            "name": "sgd",
            "momentum": 0.9,
            "nesterov": False,
            "weight_decay": 5e-4 if is_cifar else 5e-5,
        },
    )
