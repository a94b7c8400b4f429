"""State dicts of published networks: their real names and shapes, random values.

The values are made anew in each test and are no part of `tests/golden/published.npz`.
They come from the bits of a generator whose stream NumPy never changes.
"""

import json
import math
import pathlib

import numpy as np

GOLDEN = pathlib.Path(__file__).parent / "golden" / "published.npz"
INPUT_SHAPE = (2, 64, 64, 3)


def random_state(network):
    """Returns the state dict of a network of the golden file, such as timm/resnet50."""
    with np.load(GOLDEN) as arrays:
        shapes = json.loads(str(arrays[f"{network}/shapes"]))
    return fill(shapes)


def logits(network):
    """Returns what PyTorch made of `images()`, `[2, 1000]`."""
    with np.load(GOLDEN) as arrays:
        return arrays[f"{network}/logits"]


def images():
    return _uniform(2**32, INPUT_SHAPE).astype(np.float32)


def fill(shapes):
    """Returns arrays by name that keep a network's activations near 1."""
    return {
        name: _value(name, tuple(shape), seed)
        for seed, (name, shape) in enumerate(shapes.items())
    }


def _value(name, shape, seed):
    u, leaf = _uniform(seed, shape), name.rpartition(".")[2]
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if leaf == "running_var" or (leaf == "weight" and len(shape) == 1):
        u = 1 + 0.5 * u
    elif leaf == "weight":
        u = u * math.sqrt(6 / math.prod(shape[1:]))
    else:
        u = 0.1 * u
    return u.astype(np.float32)


def _uniform(seed, shape):
    """Values in [-1, 1)."""
    bits = np.random.PCG64(seed).random_raw(math.prod(shape)) >> np.uint64(11)
    return (bits * 2.0**-52 - 1).reshape(shape)
