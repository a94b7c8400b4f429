"""`jaxattn/recipes/scsa.py`, for `--config configs/scsa.py`."""

from jaxattn.recipes.scsa import get_config
