"""`jaxattn/recipes/baselines.py`, for `--config configs/baselines.py`."""

from jaxattn.recipes.baselines import get_config
