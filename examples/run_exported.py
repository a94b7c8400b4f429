"""Classifies with an exported network: run_exported.py model.jaxattn [images.npy]."""

import json
import pathlib
import sys

import numpy as np
from jax import export

path = pathlib.Path(sys.argv[1])
network = export.deserialize(bytearray(path.read_bytes()))
about = json.loads(path.with_suffix(".json").read_text())
noise = np.random.default_rng(0).integers(0, 256, (2, *about["image_shape"]), np.uint8)
images = np.load(sys.argv[2]) if len(sys.argv) > 2 else noise  # uint8 [N, H, W, C]
for row in np.asarray(network.call(images)):
    print(*(f"{c}={p:.6f}" for c, p in zip(about["class_names"], row, strict=True)))
