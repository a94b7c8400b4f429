"""`jaxattn/recipes/quickstart.py`, for `--config configs/quickstart.py`."""

from jaxattn.recipes.quickstart import get_config
