"""Networks, their weights from and to PyTorch, and what they cost."""

from typing import TYPE_CHECKING

from jaxattn import lazy

if TYPE_CHECKING:
    from jaxattn.models.attention_network import AttentionNetwork as AttentionNetwork
    from jaxattn.models.canet import CANet as CANet
    from jaxattn.models.cascade_rcnn import CascadeRCNN as CascadeRCNN
    from jaxattn.models.cbam_resnet import EfficientResNet as EfficientResNet
    from jaxattn.models.cbam_resnet import (
        EnhancedEfficientResNet as EnhancedEfficientResNet,
    )
    from jaxattn.models.cost import Cost as Cost
    from jaxattn.models.cost import count_parameters as count_parameters
    from jaxattn.models.cost import measure_cost as measure_cost
    from jaxattn.models.cost import summarize_model as summarize_model
    from jaxattn.models.detection import BoxTargets as BoxTargets
    from jaxattn.models.detection import Detections as Detections
    from jaxattn.models.detector import Detector as Detector
    from jaxattn.models.faster_rcnn import FasterRCNN as FasterRCNN
    from jaxattn.models.mask_rcnn import MaskRCNN as MaskRCNN
    from jaxattn.models.mobilenet_v2 import MobileNetV2 as MobileNetV2
    from jaxattn.models.network import Network as Network
    from jaxattn.models.registry import create_model as create_model
    from jaxattn.models.registry import list_models as list_models
    from jaxattn.models.resnet import ResNet as ResNet
    from jaxattn.models.retinanet import RetinaNet as RetinaNet
    from jaxattn.models.sccnet import SCCNet as SCCNet
    from jaxattn.models.segmenter import FCN as FCN
    from jaxattn.models.segmenter import DeepLabV3 as DeepLabV3
    from jaxattn.models.segmenter import Segmenter as Segmenter
    from jaxattn.models.segmenter import UPerNet as UPerNet
    from jaxattn.models.shufflenet_v2 import ShuffleNetV2 as ShuffleNetV2
    from jaxattn.models.slots import Slot as Slot
    from jaxattn.models.slots import list_attention as list_attention
    from jaxattn.models.torch_weights import from_torch as from_torch
    from jaxattn.models.torch_weights import read_state_dict as read_state_dict
    from jaxattn.models.torch_weights import to_torch as to_torch
    from jaxattn.models.vgg import VGG11 as VGG11
    from jaxattn.models.vgg import VGGA as VGGA
    from jaxattn.models.vgg import VGGADropout as VGGADropout
    from jaxattn.models.vgg import VGGALight as VGGALight

__getattr__, __dir__, __all__ = lazy.face(
    __name__,
    {
        "AttentionNetwork": "jaxattn.models.attention_network",
        "BoxTargets": "jaxattn.models.detection",
        "CANet": "jaxattn.models.canet",
        "CascadeRCNN": "jaxattn.models.cascade_rcnn",
        "Cost": "jaxattn.models.cost",
        "DeepLabV3": "jaxattn.models.segmenter",
        "Detections": "jaxattn.models.detection",
        "Detector": "jaxattn.models.detector",
        "EfficientResNet": "jaxattn.models.cbam_resnet",
        "EnhancedEfficientResNet": "jaxattn.models.cbam_resnet",
        "FCN": "jaxattn.models.segmenter",
        "FasterRCNN": "jaxattn.models.faster_rcnn",
        "MaskRCNN": "jaxattn.models.mask_rcnn",
        "MobileNetV2": "jaxattn.models.mobilenet_v2",
        "Network": "jaxattn.models.network",
        "ResNet": "jaxattn.models.resnet",
        "RetinaNet": "jaxattn.models.retinanet",
        "SCCNet": "jaxattn.models.sccnet",
        "Segmenter": "jaxattn.models.segmenter",
        "ShuffleNetV2": "jaxattn.models.shufflenet_v2",
        "Slot": "jaxattn.models.slots",
        "UPerNet": "jaxattn.models.segmenter",
        "VGG11": "jaxattn.models.vgg",
        "VGGA": "jaxattn.models.vgg",
        "VGGADropout": "jaxattn.models.vgg",
        "VGGALight": "jaxattn.models.vgg",
        "count_parameters": "jaxattn.models.cost",
        "create_model": "jaxattn.models.registry",
        "from_torch": "jaxattn.models.torch_weights",
        "list_attention": "jaxattn.models.slots",
        "list_models": "jaxattn.models.registry",
        "measure_cost": "jaxattn.models.cost",
        "read_state_dict": "jaxattn.models.torch_weights",
        "summarize_model": "jaxattn.models.cost",
        "to_torch": "jaxattn.models.torch_weights",
    },
)
