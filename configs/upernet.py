"""`jaxattn/recipes/upernet.py`, for `--config configs/upernet.py`."""

from jaxattn.recipes.upernet import get_config
