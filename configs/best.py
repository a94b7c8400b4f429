"""`jaxattn/recipes/best.py`, for `--config configs/best.py`."""

from jaxattn.recipes.best import get_config
