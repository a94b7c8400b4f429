"""`jaxattn/recipes/retinanet.py`, for `--config configs/retinanet.py`."""

from jaxattn.recipes.retinanet import get_config
