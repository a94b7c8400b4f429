"""Images of your own, in `photos/train/<class>/` and `photos/val/<class>/`.

    python main.py --config configs/own_images.py --workdir workdir/photos \
        --config.data.path=photos

A ResNet-18 for images of 128 pixels, from random weights, by a recipe that forgives
much. Variants by argument are the attention in every block: `cbam` (the default),
`eca`, and `none`, a plain ResNet. Each can begin from published weights
(`--config.init_from=torchvision:resnet18`), an attention as if it were not there at
first (`--config.model.attention_init=identity`).
"""

from ml_collections import ConfigDict

from jaxattn.config.recipe import choose_variant, recipe


def get_config(variant: str = "cbam") -> ConfigDict:
    """Returns the recipe.

    Args:
        variant: One of cbam, eca, none.
    """
    choose_variant(variant, ("cbam", "eca", "none"))
    none = variant == "none"
    attention = {} if none else {"attention": variant, "attention_init": None}
    return recipe(
        seed=0,
        num_epochs=30,
        batch_size=32,
        model={"name": "resnet18", "stem": "imagenet", **attention},
        data={
            "name": "imagefolder",
            "val_fraction": 0.1,
            "image_size": 128,
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
        optimizer={"name": "adamw", "weight_decay": 5e-2, "clip_norm": 1.0},
    )
