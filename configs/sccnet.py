"""`jaxattn/recipes/sccnet.py`, for `--config configs/sccnet.py`."""

from jaxattn.recipes.sccnet import get_config
