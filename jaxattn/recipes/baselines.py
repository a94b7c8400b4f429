"""CANet's baselines on CIFAR-10, by the recipe of its report: 70 epochs.

    python main.py --config configs/baselines.py:resnet18 --workdir workdir/resnet18

Variants by argument: `resnet18` (the default), `resnet34`, `resnet50`, `mobilenet_v2`,
`shufflenet_v2_x0_5`, `vgg11`. The recipe is that of `configs/canet.py`. ResNets and
MobileNetV2 have stems that keep small images large; ShuffleNetV2 does not, and its maps
end as one position.

The report claims test accuracies of 93.00 (resnet18), 93.56 (resnet34), 84.14
(mobilenet_v2), 62.66 (shufflenet_v2_x0_5) and 85.75 % (vgg11), and none for resnet50.
"""

from ml_collections import ConfigDict

from jaxattn.config.recipe import choose_variant
from jaxattn.recipes import canet

# Of those that have several.
_STEMS = {
    "resnet18": {"stem": "cifar"},
    "resnet34": {"stem": "cifar"},
    "resnet50": {"stem": "cifar"},
    "mobilenet_v2": {"stem": "cifar"},
    "shufflenet_v2_x0_5": {},
    "vgg11": {},
}


def get_config(variant: str = "resnet18") -> ConfigDict:
    """Returns the recipe.

    Args:
        variant: Name of the network.
    """
    choose_variant(variant, _STEMS)
    config = canet.get_config()
    config.model = ConfigDict({"name": variant, **_STEMS[variant]})
    return config
