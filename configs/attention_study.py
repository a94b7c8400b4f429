"""`jaxattn/recipes/attention_study.py`, for `--config configs/attention_study.py`."""

from jaxattn.recipes.attention_study import get_config
