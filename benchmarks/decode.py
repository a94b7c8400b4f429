"""Decoding and random crops: images per second of one core.

    python benchmarks/decode.py --data photos --out benchmarks/results/decode_cpu.json

Takes JPEGs of an image folder, scales them to 500 x 375 (quality 90), and reads each as
training does, to 224 pixels: in one thread, by its processor time, in blocks.
"""

import argparse
import dataclasses
import io
import json
import pathlib
import statistics
import sys
import time

import numpy as np
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from benchmarks import timing
from jaxattn.data.crops import Crops, File, RandomlyCroppedImages
from jaxattn.data.datasets.folder import read_folder

_SIZE = (500, 375)  # width and height in pixels


@dataclasses.dataclass(frozen=True)
class _Encoded:
    """Encoded images in memory."""

    files: list[File]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> File:
        return self.files[index]

    @property
    def labels(self) -> np.ndarray:
        """All labels, int32 `[N]`."""
        return np.array([file.label for file in self.files], np.int32)


def main() -> None:
    """Prints the speed of every block and writes the JSON."""
    args = _parse()
    paths = read_folder(args.data).train.paths[:: args.every]
    source = RandomlyCroppedImages(_Encoded([_encode(path) for path in paths]), Crops())
    speeds = [_images_per_s(source, block) for block in range(args.blocks)]
    results = {
        "environment": timing.environment("cpu"),
        "images": len(source),
        "images_per_s_per_core": speeds,
    }
    print(
        f"{statistics.median(speeds):,.0f} images/s per core (median of {args.blocks}"
        f" blocks of {len(source)}, {min(speeds):,.0f} to {max(speeds):,.0f})"
    )
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n")


def _encode(path: str) -> File:
    buffer = io.BytesIO()
    with Image.open(path) as image:
        image.convert("RGB").resize(_SIZE).save(buffer, "JPEG", quality=90)
    return File(buffer.getvalue(), 0, path)


def _images_per_s(source: RandomlyCroppedImages, seed: int) -> float:
    rng, start = np.random.default_rng(seed), time.process_time()
    for i in range(len(source)):
        source.draw(i, rng)
    return len(source) / (time.process_time() - start)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=pathlib.Path, required=True, help="image folder")
    parser.add_argument(
        "--every", type=int, default=3, help="takes one image in so many"
    )
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
