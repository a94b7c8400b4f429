"""`jaxattn/recipes/finetune.py`, for `--config configs/finetune.py`."""

from jaxattn.recipes.finetune import get_config
