"""`jaxattn/recipes/vgg_bn.py`, for `--config configs/vgg_bn.py`."""

from jaxattn.recipes.vgg_bn import get_config
