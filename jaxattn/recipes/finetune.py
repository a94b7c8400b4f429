"""Images of your own, from weights that have learned from others.

    python main.py --config configs/finetune.py --workdir workdir/photos_tuned \
        --config.data.path=photos

The folder is `photos/train/<class>/` and `photos/val/<class>/`. CANet_tiny begins from
the weights that come with the package (CIFAR-10). Another network with other weights:

    python main.py --config configs/finetune.py --workdir workdir/photos_resnet18 \
        --config.data.path=photos --config.data.image_size=224 \
        --config.model.name=resnet18 --config.init_from=resnet18.pth
"""

from ml_collections import ConfigDict

from jaxattn.config.recipe import recipe


def get_config() -> ConfigDict:
    """Returns the recipe."""
    return recipe(
        seed=0,
        num_epochs=5,
        batch_size=32,
        init_from="canet_tiny-cifar10",
        model={"name": "canet_tiny"},
        data={
            "name": "imagefolder",
            "val_fraction": 0.1,
            "image_size": 32,  # which the weights have learned from
            "resize_px": None,
            "crop_scale": None,
            "crop_ratio": None,
            "on_bad_image": None,
        },
        augment={
            "flip_probability": 0.5,
            "brightness": 0.2,
            "contrast": 0.2,
            "saturation": 0.2,
        },
        loss={"label_smoothing": 0.1},
        schedule={
            "name": "cosine",
            "learning_rate": 1e-3,
            "warmup_epochs": 1.0,
            "update_per": "step",
        },
        optimizer={
            "name": "adamw",
            "weight_decay": 0.05,
            "clip_norm": 1.0,
            "layer_decay": 0.8,
            "head_rate": 3e-3,
        },
    )
