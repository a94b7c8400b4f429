"""Arrays of detectors: their targets and inputs, and comparisons with them."""

import jax.numpy as jnp
import numpy as np
from dense_goldens import assert_close, config_of
from flax import traverse_util

from jaxattn.models.detection import BoxTargets
from jaxattn.models.torch_layouts import torchvision_names
from jaxattn.models.torch_weights import torch_name


def padded_targets(arrays, prefixes, image_sizes, G=8):
    """Targets of images, from arrays `<prefix>/boxes` and `<prefix>/labels`."""
    boxes, labels = np.zeros((len(prefixes), G, 4), np.float32), None
    labels = np.zeros((len(prefixes), G), np.int32)
    valid = np.zeros((len(prefixes), G), bool)
    for i, prefix in enumerate(prefixes):
        n = len(arrays[f"{prefix}/labels"])
        boxes[i, :n], labels[i, :n] = (
            arrays[f"{prefix}/{key}"] for key in ("boxes", "labels")
        )
        valid[i, :n] = True
    sizes = np.float32(image_sizes)
    return BoxTargets(*map(jnp.asarray, (boxes, labels, valid, sizes)))


def check_gradients(golden, params, expected):
    """Of parameters, within 1e-4 of the largest value of each."""
    leaves = traverse_util.flatten_dict(params)
    actual = {torch_name(("params", *path)): v for path, v in leaves.items()}
    ours = torchvision_names(golden.state)
    assert expected
    for name, gradient in expected.items():
        value = actual[ours[name]]
        if gradient.ndim in (2, 4):
            axes = (2, 3, 1, 0) if gradient.ndim == 4 else (1, 0)
            gradient = gradient.transpose(axes)
        atol = 1e-4 * np.abs(gradient).max()
        np.testing.assert_allclose(value, gradient, rtol=0, atol=atol, err_msg=name)


def check_detections(arrays, found, key, scales=((1, 1), (1, 1)), first_label=0):
    for i, (y, x) in enumerate(scales):
        valid = found.valid[i]
        labels = found.labels[i, valid] + first_label
        np.testing.assert_array_equal(labels, arrays[f"{key}/{i}/labels"])
        assert_close(found.scores[i, valid], arrays[f"{key}/{i}/scores"], 2e-5)
        boxes = found.boxes[i, valid] * np.float32([x, y, x, y])
        assert_close(boxes, arrays[f"{key}/{i}/boxes"], 1e-5)
        assert not found.boxes[i, ~valid].any()


def uneven_batch(arrays):
    """Images of two sizes and their targets, and pixels of each a pixel of the input.

    Without targets in the file there are no boxes.
    """
    config, sizes = config_of(arrays), arrays["uneven/image_sizes"]
    images = [arrays[f"uneven/image{i}"] for i in (0, 1)]
    scales = [
        (image.shape[1] / h, image.shape[2] / w)
        for image, (h, w) in zip(images, sizes, strict=True)
    ]
    pairs = zip(images, sizes, strict=True)
    x = np.stack([as_batched(image, config, size, (128, 128)) for image, size in pairs])
    prefixes = ["uneven/target/0", "uneven/target/1"]
    if f"{prefixes[0]}/boxes" not in arrays:
        return jnp.asarray(x), jnp.asarray(sizes), scales
    targets = padded_targets(arrays, prefixes, sizes)
    to_input = np.float32([[1 / x, 1 / y, 1 / x, 1 / y] for y, x in scales])
    targets = targets.replace(boxes=targets.boxes * to_input[:, None])
    return jnp.asarray(x), targets, scales


def as_batched(image, config, size, padded):
    """As torchvision normalises, resizes and pads an image `[3, H, W]`."""
    mean, std = (
        np.float32(config[f"image_{key}"])[:, None, None] for key in ("mean", "std")
    )
    image = (image - mean) / std
    rows, columns = (linear(n, m) for n, m in zip(image.shape[1:], size, strict=True))
    image = np.einsum("yh,chw,xw->yxc", rows, image, columns)
    pads = [(0, p - n) for p, n in zip(padded, image.shape[:2], strict=True)]
    return np.pad(image, [*pads, (0, 0)]).astype(np.float32)


def linear(n, m):
    places = np.maximum(0, (np.arange(m) + 0.5) * n / m - 0.5)
    low = np.minimum(np.floor(places).astype(int), n - 1)
    weights = np.zeros((m, n))
    np.add.at(weights, (np.arange(m), low), 1 - (places - low))
    np.add.at(weights, (np.arange(m), np.minimum(low + 1, n - 1)), places - low)
    return weights
