"""The last feature map of a network, where Grad-CAM looks and differentiates."""

import flax.linen as nn
import jax

FEATURE_MAP = "feature_map"
"""Its name in `intermediates`, and that of what is added to it in `perturbations`."""


def mark_features(module: nn.Module, x: jax.Array) -> jax.Array:
    """Marks the map that a network pools and classifies; call it in `__call__`.

    The map is sown in `intermediates`. A variable `feature_map` of the collection
    `perturbations`, of its shape, is added to it: the gradient with respect to zeros
    there is the map's. Without either collection this does nothing. (Flax's `perturb`
    would put zeros for one image size into the variables that `init` returns.)

    Args:
        module: The network.
        x: Feature map `[N, H, W, C]`.

    Returns:
        The map, with the perturbation if there is one.
    """
    module.sow("intermediates", FEATURE_MAP, x)
    if module.has_variable("perturbations", FEATURE_MAP):
        x = x + module.get_variable("perturbations", FEATURE_MAP)
    return x
