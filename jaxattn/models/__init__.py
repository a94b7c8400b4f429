"""Networks, their weights from and to PyTorch, and what they cost."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxattn.models.canet import CANet
    from jaxattn.models.cbam_resnet import EfficientResNet, EnhancedEfficientResNet
    from jaxattn.models.cost import (
        Cost,
        count_parameters,
        measure_cost,
        summarize_model,
    )
    from jaxattn.models.mobilenet_v2 import MobileNetV2
    from jaxattn.models.registry import create_model, list_models
    from jaxattn.models.resnet import ResNet
    from jaxattn.models.sccnet import SCCNet
    from jaxattn.models.shufflenet_v2 import ShuffleNetV2
    from jaxattn.models.slots import Slot
    from jaxattn.models.torch_weights import from_torch, read_state_dict, to_torch
    from jaxattn.models.vgg import VGG11, VGGA, VGGADropout, VGGALight

__all__ = [
    "VGG11",
    "VGGA",
    "CANet",
    "Cost",
    "EfficientResNet",
    "EnhancedEfficientResNet",
    "MobileNetV2",
    "ResNet",
    "SCCNet",
    "ShuffleNetV2",
    "Slot",
    "VGGADropout",
    "VGGALight",
    "count_parameters",
    "create_model",
    "from_torch",
    "list_models",
    "measure_cost",
    "read_state_dict",
    "summarize_model",
    "to_torch",
]

# The file of every name.
_FILES = {
    "canet": ["CANet"],
    "cbam_resnet": ["EfficientResNet", "EnhancedEfficientResNet"],
    "cost": ["Cost", "count_parameters", "measure_cost", "summarize_model"],
    "mobilenet_v2": ["MobileNetV2"],
    "registry": ["create_model", "list_models"],
    "resnet": ["ResNet"],
    "sccnet": ["SCCNet"],
    "shufflenet_v2": ["ShuffleNetV2"],
    "slots": ["Slot"],
    "torch_weights": ["from_torch", "read_state_dict", "to_torch"],
    "vgg": ["VGG11", "VGGA", "VGGADropout", "VGGALight"],
}


def __getattr__(name: str) -> Any:
    """Imports the file of a name at the name's first use."""
    for file, names in _FILES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{file}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
