"""CANet_tiny on handwritten digits: a minute or two on a CPU, no download.

python main.py --config configs/quickstart.py --workdir workdir/quickstart
"""

from ml_collections import ConfigDict

from jaxattn.config.recipe import recipe


def get_config() -> ConfigDict:
    """Returns the recipe."""
    return recipe(
        seed=0,
        num_epochs=15,
        batch_size=64,
        model={"name": "canet_tiny"},
        data={
            "name": "digits",
            "val_fraction": 0.1,
            "image_size": 16,
            "crop_scale": None,
            "on_bad_image": None,
        },
        normalize={"mean": (0.5,), "std": (0.5,)},
        # A mirrored digit is another one, so no flip.
        augment={"crop_padding_px": 2, "crop_fill": "zero"},
        loss={"label_smoothing": 0.1},
        schedule={"name": "cosine", "learning_rate": 2e-3, "update_per": "step"},
        optimizer={"name": "adamw", "weight_decay": 1e-2},
        log={"every_steps": 5},
    )
