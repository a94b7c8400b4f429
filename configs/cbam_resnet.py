"""`jaxattn/recipes/cbam_resnet.py`, for `--config configs/cbam_resnet.py`."""

from jaxattn.recipes.cbam_resnet import get_config
