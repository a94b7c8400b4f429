"""`jaxattn/recipes/own_images.py`, for `--config configs/own_images.py`."""

from jaxattn.recipes.own_images import get_config
