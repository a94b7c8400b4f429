"""Draws where a network looks, as heat over a photo: the picture of the README.

    python examples/attention_overlay.py assets/horses.jpg overlay.jpg

The network is CANet_tiny with the weights that come with the package. Left is the photo
with the class predicted; in the middle Grad-CAM, what in the last feature map speaks
for this class; right the gate of the last spatial attention, with which the features
are multiplied. The network sees 32 x 32 pixels, so the maps are coarse.
"""

import argparse

from jaxattn.viz import make_attend  # imports Matplotlib whatever MPLBACKEND names

# isort: split
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image

from jaxattn.training import load_trained

_SIDE_PX = 420
_HEAT = "turbo"


def draw(path: str) -> Figure:
    """Returns a photo, Grad-CAM and a gate, side by side."""
    trained = load_trained(weights="canet_tiny-cifar10")
    frame = trained.preprocess.frame  # what part of a photo the network is shown
    inputs = trained.preprocess.normalize(frame.read(path)[None])
    seen = make_attend(trained.model)(trained.variables, inputs)
    label = int(seen.probabilities[0].argmax())
    name, share = trained.class_names[label], seen.probabilities[0, label]
    layer = [k for k, gates in seen.gates.items() if "spatial_gate" in gates][-1]
    cam, gate = seen.grad_cam[0], seen.gates[layer]["spatial_gate"][0, ..., 0]

    with Image.open(path) as file:
        box = frame.box(file.height, file.width)
        photo = file.convert("RGB").resize((_SIDE_PX, _SIDE_PX), box=box)
    figure = Figure(figsize=(12.6, 4.3), layout="constrained")
    axes = figure.subplots(1, 3)
    panels = {
        f'predicted: "{name}", {share:.0%}': None,
        f'where it sees "{name}": Grad-CAM': cam / max(cam.max(), 1e-9),
        f"gate of its last spatial attention ({layer})": gate,
    }
    for ax, (title, values) in zip(axes, panels.items(), strict=True):
        ax.imshow(photo)
        ax.set_title(title)
        ax.axis("off")
        if values is not None:
            _lay_over(figure, ax, values)
    return figure


def _lay_over(figure: Figure, ax: Axes, values: np.ndarray) -> None:
    """Lays a map `[h, w]` over the photo; where it is low, the photo shows through."""
    image = Image.fromarray(values.astype(np.float32))
    smooth = image.resize((_SIDE_PX, _SIDE_PX), Image.Resampling.BICUBIC)
    low, high = float(values.min()), float(values.max())
    heat = np.clip(np.asarray(smooth), low, high)
    alpha = 0.25 + 0.4 * (heat - low) / max(high - low, 1e-9)
    ax.imshow(heat, cmap=_HEAT, alpha=alpha)
    figure.colorbar(ScalarMappable(Normalize(low, high), _HEAT), ax=ax, shrink=0.9)


def main() -> None:
    """Reads a photo and writes the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photo")
    parser.add_argument("out", help="a .jpg or .png")
    args = parser.parse_args()
    draw(args.photo).savefig(args.out, dpi=100)
    print(args.out)


if __name__ == "__main__":
    main()
