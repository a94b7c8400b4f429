"""What PyTorch computes differently, and every choice that depends on the platform."""

from typing import TYPE_CHECKING

from jaxattn import lazy

if TYPE_CHECKING:
    from jaxattn.ops.boxes import box_iou as box_iou
    from jaxattn.ops.boxes import nms as nms
    from jaxattn.ops.conv import Conv as Conv
    from jaxattn.ops.conv import ConvKernel as ConvKernel
    from jaxattn.ops.conv import conv2d as conv2d
    from jaxattn.ops.detection_losses import sigmoid_focal_loss as sigmoid_focal_loss
    from jaxattn.ops.features import mark_features as mark_features
    from jaxattn.ops.group_norm import GroupNorm as GroupNorm
    from jaxattn.ops.init import kaiming_normal as kaiming_normal
    from jaxattn.ops.init import torch_bias as torch_bias
    from jaxattn.ops.init import torch_kernel as torch_kernel
    from jaxattn.ops.linear import Linear as Linear
    from jaxattn.ops.norm import BatchNorm as BatchNorm
    from jaxattn.ops.pool import adaptive_avg_pool as adaptive_avg_pool
    from jaxattn.ops.pool import max_along as max_along
    from jaxattn.ops.pool import max_pool as max_pool
    from jaxattn.ops.random import hashed_uniform as hashed_uniform
    from jaxattn.ops.resize import resize_bilinear as resize_bilinear
    from jaxattn.ops.resize import resize_nearest as resize_nearest
    from jaxattn.ops.stochastic_depth import drop_path as drop_path

__getattr__, __dir__, __all__ = lazy.face(
    __name__,
    {
        "BatchNorm": "jaxattn.ops.norm",
        "Conv": "jaxattn.ops.conv",
        "ConvKernel": "jaxattn.ops.conv",
        "GroupNorm": "jaxattn.ops.group_norm",
        "Linear": "jaxattn.ops.linear",
        "adaptive_avg_pool": "jaxattn.ops.pool",
        "box_iou": "jaxattn.ops.boxes",
        "conv2d": "jaxattn.ops.conv",
        "drop_path": "jaxattn.ops.stochastic_depth",
        "hashed_uniform": "jaxattn.ops.random",
        "kaiming_normal": "jaxattn.ops.init",
        "mark_features": "jaxattn.ops.features",
        "max_along": "jaxattn.ops.pool",
        "max_pool": "jaxattn.ops.pool",
        "nms": "jaxattn.ops.boxes",
        "resize_bilinear": "jaxattn.ops.resize",
        "resize_nearest": "jaxattn.ops.resize",
        "sigmoid_focal_loss": "jaxattn.ops.detection_losses",
        "torch_bias": "jaxattn.ops.init",
        "torch_kernel": "jaxattn.ops.init",
    },
)
