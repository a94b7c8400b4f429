"""What PyTorch computes differently, and every choice that depends on the platform."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxattn.ops.conv import Conv, ConvKernel, conv2d
    from jaxattn.ops.features import mark_features
    from jaxattn.ops.group_norm import GroupNorm
    from jaxattn.ops.init import kaiming_normal, torch_bias, torch_kernel
    from jaxattn.ops.linear import Linear
    from jaxattn.ops.norm import BatchNorm
    from jaxattn.ops.pool import adaptive_avg_pool, max_along, max_pool
    from jaxattn.ops.random import hashed_uniform

__all__ = [
    "BatchNorm",
    "Conv",
    "ConvKernel",
    "GroupNorm",
    "Linear",
    "adaptive_avg_pool",
    "conv2d",
    "hashed_uniform",
    "kaiming_normal",
    "mark_features",
    "max_along",
    "max_pool",
    "torch_bias",
    "torch_kernel",
]

# The file of every name.
_FILES = {
    "conv": ["Conv", "ConvKernel", "conv2d"],
    "features": ["mark_features"],
    "group_norm": ["GroupNorm"],
    "init": ["kaiming_normal", "torch_bias", "torch_kernel"],
    "linear": ["Linear"],
    "norm": ["BatchNorm"],
    "pool": ["adaptive_avg_pool", "max_along", "max_pool"],
    "random": ["hashed_uniform"],
}


def __getattr__(name: str) -> Any:
    """Imports the file of a name at the name's first use."""
    for file, names in _FILES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{file}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
