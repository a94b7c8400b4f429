"""CIFAR-10 in a short training: a recipe of our own, none of its values tuned yet.

    python main.py --config configs/best.py:cpu --workdir workdir/best_cpu

Variants by argument: `gpu` (the default), a ResNet-18 of three quarters of the usual
width, 6.3 M parameters, 100 epochs in bfloat16; `cpu`, a ResNet-10 of half the usual
width, 1.2 M parameters, 16 epochs in float32. Both have large batches, one rise and
fall of a high learning rate, and an average of the weights; `gpu`, which has not been
trained yet, also mixes by CutMix. It reproduces nothing published.

Without `--config.data.path` the data are downloaded by TensorFlow Datasets.
"""

from ml_collections import ConfigDict

from jaxattn.config.recipe import choose_variant, recipe


def get_config(variant: str = "gpu") -> ConfigDict:
    """Returns the recipe.

    Args:
        variant: One of gpu, cpu.
    """
    on_gpu = choose_variant(variant, ("gpu", "cpu")) == "gpu"
    cutmix = {"cutmix_probability": 0.5, "cutmix_alpha": 1.0} if on_gpu else {}
    return recipe(
        seed=0,
        num_epochs=100 if on_gpu else 16,
        batch_size=512,
        dtype="bfloat16" if on_gpu else "float32",
        model={
            "name": "resnet18" if on_gpu else "resnet10",
            "widths": (48, 96, 192, 384) if on_gpu else (32, 64, 128, 256),
            "attention": None,
            "stem": "cifar",
        },
        data={"name": "cifar10", "val_fraction": 0.02},
        normalize={"mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616)},
        augment={
            "flip_probability": 0.5,
            "crop_padding_px": 4,
            "crop_fill": "reflect",
            **cutmix,
        },
        loss={"label_smoothing": 0.1},
        schedule={
            "name": "cosine",
            "learning_rate": 0.4,
            "warmup_epochs": 10.0 if on_gpu else 3.0,
            "update_per": "step",
        },
        optimizer={
            "name": "sgd",
            "momentum": 0.9,
            "nesterov": True,
            "weight_decay": 5e-4,
        },
        ema={"decay": 0.999 if on_gpu else 0.99},
        log={"histograms": False, "images": False},
    )
