"""`jaxattn/recipes/canet.py`, for `--config configs/canet.py`."""

from jaxattn.recipes.canet import get_config
