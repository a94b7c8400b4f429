"""Draws where a network looked, as heat over a photo: the picture of the README.

    python examples/attention_overlay.py assets/horses.jpg overlay.jpg

The network is CANet_tiny with the weights that come with the package. Left is the photo
and the class predicted; in the middle Grad-CAM, where the last feature map speaks for
this class; right the gate of the last spatial attention, which its features are
multiplied with. The network sees 32 x 32 pixels, so the maps are coarse.
"""

import argparse

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image, ImageOps

from jaxattn.training.trained import load_trained
from jaxattn.viz.attention_maps import make_attend

_SIDE_PX = 420
_HEAT = "turbo"


def draw(photo: Image.Image, weights: str = "canet_tiny-cifar10") -> plt.Figure:
    """Returns the photo, Grad-CAM and a gate, side by side."""
    trained = load_trained(weights=weights)
    photo = ImageOps.fit(photo.convert("RGB"), (_SIDE_PX, _SIDE_PX))  # centre square
    side = trained.image_shape[0]
    pixels = jnp.asarray(np.asarray(photo.resize((side, side)))[None])
    seen = make_attend(trained.model)(trained.variables, trained.normalize(pixels))
    label = int(seen.probabilities[0].argmax())
    name, share = trained.class_names[label], seen.probabilities[0, label]
    layer = [k for k, gates in seen.gates.items() if "spatial_gate" in gates][-1]
    cam, gate = seen.grad_cam[0], seen.gates[layer]["spatial_gate"][0, ..., 0]

    figure, axes = plt.subplots(1, 3, figsize=(12.6, 4.3), layout="constrained")
    maps = [None, cam / max(cam.max(), 1e-9), gate]
    titles = [f"predicted: {name}, {share:.0%}", f'what speaks for "{name}": Grad-CAM']
    titles += [f"spatial gate of block {layer.split('/')[0]}"]
    for ax, values, title in zip(axes, maps, titles, strict=True):
        ax.imshow(photo)
        ax.set_title(title)
        ax.axis("off")
        if values is not None:
            _lay_over(ax, values, photo.size)
    return figure


def _lay_over(ax: plt.Axes, values: np.ndarray, size: tuple[int, int]) -> None:
    """Lays a map `[h, w]` over the photo; where it is low the photo shows through."""
    smooth = Image.fromarray(values.astype(np.float32)).resize(size, Image.BICUBIC)
    heat = np.clip(np.asarray(smooth), values.min(), values.max())
    alpha = 0.25 + 0.4 * (heat - heat.min()) / max(np.ptp(heat), 1e-9)
    ax.imshow(heat, cmap=_HEAT, alpha=alpha)
    scale = plt.cm.ScalarMappable(plt.Normalize(heat.min(), heat.max()), _HEAT)
    ax.figure.colorbar(scale, ax=ax, shrink=0.9)


def main() -> None:
    """Reads a photo and writes the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photo")
    parser.add_argument("out")
    args = parser.parse_args()
    with Image.open(args.photo) as photo:
        figure = draw(photo)
    figure.savefig(args.out, dpi=100)
    print(args.out)


if __name__ == "__main__":
    main()
