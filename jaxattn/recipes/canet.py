"""CANet on CIFAR-10: the recipe of its report, 70 epochs.

    python main.py --config configs/canet.py:tiny --workdir workdir/canet_tiny

Variants by argument: `tiny`, `light`, `base` (the default), `pro`. Without
`--config.data.path` the data are downloaded by TensorFlow Datasets.

The report claims test accuracies of 88.66 (tiny), 91.56 (light), 93.50 (base) and
93.56 % (pro). Its code validates on augmented images; here they are clean.
"""

from ml_collections import ConfigDict

from jaxattn.config.recipe import choose_variant, recipe

_MODELS = {
    "tiny": "canet_tiny",
    "light": "canet_light",
    "base": "canet",
    "pro": "canet_pro",
}


def get_config(variant: str = "base") -> ConfigDict:
    """Returns the recipe.

    Args:
        variant: One of tiny, light, base, pro.
    """
    choose_variant(variant, _MODELS)
    return recipe(
        seed=42,
        num_epochs=70,
        batch_size=256,
        model={"name": _MODELS[variant]},
        data={
            "name": "cifar10",
            "val_fraction": 0.1,
            "crop_scale": None,
            "on_bad_image": None,
        },
        augment={
            "flip_probability": 0.5,
            "crop_padding_px": 4,
            "crop_fill": "zero",
            "erase_probability": 0.5,
            "erase_area": (0.04, 0.2),
            "erase_aspect": (0.5, 2.0),
            "mixup_probability": 0.3,
            "mixup_alpha": 0.5,
            "cutmix_probability": 0.3,
            "cutmix_alpha": 0.5,
        },
        loss={"label_smoothing": 0.1},
        schedule={"name": "exponential", "learning_rate": 1e-3, "decay_rate": 0.96},
        optimizer={
            "name": "adamw_then_sgd",
            "switch_fraction": 0.8,
            "weight_decay": 1e-3,
            "momentum": 0.9,
        },
    )
