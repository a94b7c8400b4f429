"""What batch normalisation does to the loss landscape of VGG-A, on CIFAR-10.

    jaxattn bn-landscape --config configs/vgg_bn.py --workdir workdir/vgg_bn

Trains both networks with four learning rates for 50 epochs, as the course project did
(PRML, Fudan University, 2025). Its events show all 50,000 images in training and an
accuracy measured on the 10,000 test images.

Smaller, on a CPU: `--config.model.width=8 --config.data.val_fraction=0.9`, which leaves
an eighth of the width and 5,000 images to train on.
"""

from ml_collections import ConfigDict

from jaxattn.config.recipe import study


def get_config() -> ConfigDict:
    """Returns the study."""
    return study(
        seed=2020,  # of weights and order, the same for every run
        num_epochs=50,  # of every run
        batch_size=128,
        learning_rates=(0.001, 0.002, 0.0005, 0.0001),
        dtype="float32",
        data_parallel="jit",
        steps_per_dispatch=None,
        model={"plain": "vgg_a", "bn": "vgg_a_bn", "width": None},
        data={
            "name": "cifar10",
            "path": None,
            "val_fraction": 0.0,  # left out
            "image_size": None,
        },
        pipeline={"loader": "auto", "num_workers": 0},
        normalize={"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
        optimizer={"name": "adam", "weight_decay": 0.0},
        landscape={"every_steps": 50, "step_factors": (0.5, 1.0, 2.0, 4.0)},
        log={"tensorboard": True},
    )
