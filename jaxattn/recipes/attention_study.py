"""Which attention helps a small ResNet: one recipe, minutes on two CPU cores each.

    python main.py --config configs/attention_study.py:cbam --workdir workdir/study_cbam
    jaxattn compare --root workdir/attention_study --seeds 0 1 2 --configs \
        configs/attention_study.py:none configs/attention_study.py:cbam

Variants by argument: `none` (the default), the name of an attention (all of
`jaxattn models --attention`), and `scc`. They are a ResNet-10 of a quarter of the usual
width, with the module where its authors have it; CBAM's bottlenecks are as wide as at
full width. `scc` is an SCCNet-18 so narrow that it has about as many parameters and
multiply-accumulates. Trained on 5,000 images of CIFAR-10, 1,000 others for validation.
SCSA comes with its authors' initialisation, which starts every block as its shortcut.

Without `--config.data.path` the data are downloaded by TensorFlow Datasets.
"""

from typing import Any

from ml_collections import ConfigDict

from jaxattn.config.recipe import choose_variant, recipe

# fmt: off
_NAMES = (
    "bam", "ca", "cbam", "cond_conv", "cpca", "da", "eca", "ela", "ema", "ese", "fca",
    "gc", "gct", "ge", "lsk", "mca", "multi_kernel_eca", "non_local", "sa", "scconv",
    "scnet", "scsa", "se", "sge", "simam", "sk", "sp", "split", "srm", "triplet",
)
# fmt: on


def get_config(variant: str = "none") -> ConfigDict:
    """Returns the recipe.

    Args:
        variant: none, scc or the name of an attention.
    """
    choose_variant(variant, ("none", "scc", *_NAMES))
    model = {"name": "resnet10", "widths": (16, 32, 64, 128), "attention": None}
    if variant == "cbam":
        model["attention_kwargs"] = {"reduction": 4}
    if variant == "scc":  # with shortcuts as in the ResNet
        model = {"name": "sccnet18", "widths": (10, 20, 40, 80), "downsample": "conv1"}
    config: Any = recipe(
        seed=0,
        num_epochs=15,
        batch_size=128,
        model={
            **model,
            "stem": "cifar",
            "attention_stages": None,
            "attention_place": None,
        },
        data={"name": "cifar10", "val_fraction": 0.02, "max_train_examples": 5000},
        augment={"flip_probability": 0.5, "crop_padding_px": 4, "crop_fill": "zero"},
        schedule={
            "name": "cosine",
            "learning_rate": 0.1,
            "warmup_epochs": 1.0,
            "update_per": "step",
        },
        optimizer={
            "name": "sgd",
            "momentum": 0.9,
            "nesterov": True,
            "weight_decay": 5e-4,
        },
        log={"tensorboard": False, "histograms": False, "images": False},
    )
    if variant in _NAMES:
        config.update({"model": {"attention": variant}})
    return config
