"""Makes `published.npz`: `python tests/golden/make_published.py`.

In an environment with torch, torchvision and timm, whose versions the file names.
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import numpy as np
import timm
import torch
import torchvision
from published_states import GOLDEN, fill, images

NETWORKS = {
    "torchvision/resnet18": lambda: torchvision.models.resnet18(),
    "torchvision/resnet50": lambda: torchvision.models.resnet50(),
    "torchvision/mobilenet_v2": lambda: torchvision.models.mobilenet_v2(),
    "timm/resnet50": lambda: timm.create_model("resnet50"),
    "timm/mobilenetv2_100": lambda: timm.create_model("mobilenetv2_100"),
    "timm/seresnet50": lambda: timm.create_model("seresnet50"),
    "timm/resnet18_eca": lambda: timm.create_model(
        "resnet18", block_args={"attn_layer": "eca"}
    ),
}

versions = {m.__name__: m.__version__ for m in (torch, torchvision, timm)}
arrays = {"versions": json.dumps(versions)}
x = torch.from_numpy(images().transpose(0, 3, 1, 2).astype(np.float64))
for name, make in NETWORKS.items():
    net = make().eval().double()
    shapes = {key: list(value.shape) for key, value in net.state_dict().items()}
    state = {key: torch.from_numpy(value) for key, value in fill(shapes).items()}
    net.load_state_dict(state)
    with torch.no_grad():
        y = net(x).numpy()
    assert np.abs(y[0] - y[1]).max() > 0.1, name  # else they would tell nothing
    arrays |= {f"{name}/shapes": json.dumps(shapes), f"{name}/logits": np.float32(y)}
np.savez_compressed(GOLDEN, **arrays)
