"""VGG-A, and VGG-11 as torchvision has it.

VGG-A is of tyyyyy333/Fdu_DS_DL24spring_collection, pj2/codes/VGG_BatchNorm.

Notation: N batch, C channels, H, W spatial; feature maps are `[N, C, H, W]`.
"""
# pyright: reportMissingImports=false

from torch import Tensor, nn


class VGG(nn.Module):
    """VGG-A, with batch normalisation or dropout if wanted; and VGG-11.

    Args:
        num_classes: Number of logits.
        width: Channels of the first convolution.
        batch_norm: Normalises between convolution and ReLU.
        hidden: Outputs of the classifier's hidden layers; None: 8 * width.
        pooled: Side of the map before the classifier.
        dropout_rate: Of VGG-11's classifier; 0 leaves the layers out.
    """

    def __init__(
        self,
        num_classes: int = 10,
        width: int = 64,
        batch_norm: bool = False,
        hidden: int | None = None,
        pooled: int = 1,
        dropout_rate: float = 0.0,
    ) -> None:
        super().__init__()
        stages = _vgg_stages(width, batch_norm)
        self.features = nn.Sequential(*(m for stage in stages for m in stage))
        self.avgpool = nn.AdaptiveAvgPool2d(pooled)
        C = 8 * width
        hidden = hidden or C
        drop = [nn.Dropout(dropout_rate)] if dropout_rate else []
        relu = nn.ReLU(inplace=True)
        first = nn.Linear(C * pooled * pooled, hidden)
        second, last = nn.Linear(hidden, hidden), nn.Linear(hidden, num_classes)
        layers = first, relu, *drop, second, relu, *drop, last
        self.classifier = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits of images `[N, 3, H, W]`."""
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


class VGGADropout(nn.Module):
    """VGG-A with dropout, whose five stages are modules of their own.

    Args:
        num_classes: Number of logits.
        width: Channels of the first convolution.
    """

    def __init__(self, num_classes: int = 10, width: int = 64) -> None:
        super().__init__()
        self.stage1, self.stage2, self.stage3, self.stage4, self.stage5 = (
            nn.Sequential(*stage) for stage in _vgg_stages(width, batch_norm=False)
        )
        C = 8 * width
        relu, drop = nn.ReLU(inplace=True), nn.Dropout(0.5)
        layers = drop, nn.Linear(C, C), relu, drop, nn.Linear(C, C), relu
        self.classifier = nn.Sequential(*layers, nn.Linear(C, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits of images `[N, 3, H, W]`."""
        x = self.stage3(self.stage2(self.stage1(x)))
        return self.classifier(self.stage5(self.stage4(x)).flatten(1))


def _vgg_stages(width: int, batch_norm: bool) -> list[list[nn.Module]]:
    stages, C = [], 3
    for multiples in ((1,), (2,), (4, 4), (8, 8), (8, 8)):
        stage: list[nn.Module] = []
        for multiple in multiples:
            stage.append(nn.Conv2d(C, multiple * width, 3, padding=1))
            C = multiple * width
            stage += [nn.BatchNorm2d(C)] if batch_norm else []
            stage.append(nn.ReLU(inplace=True))
        stages.append([*stage, nn.MaxPool2d(2)])
    return stages
