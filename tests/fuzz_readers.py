"""Feeds damaged files to every reader: `python -m tests.fuzz_readers --minutes 5`.

A reader may return, or raise a `UserError` or an `OSError`, in time and in memory.
Anything else is a crasher: it is written to `tests/golden/crashers/`, which
`test_fuzz.py` replays, and the program exits with 1. Inputs follow from the seed.
"""

import argparse
import contextlib
import csv
import gzip
import io
import json
import pathlib
import pickle
import random
import resource
import struct
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image, PngImagePlugin

from jaxattn.config.file import load_config
from jaxattn.data import formats
from jaxattn.data.datasets.archives import LAYOUTS, read_cifar, read_pickle
from jaxattn.data.files import scan
from jaxattn.data.images import read_crop, read_image
from jaxattn.data.preprocess import Frame
from jaxattn.errors import UserError
from jaxattn.inference.inputs import read_inputs
from jaxattn.tasks.classification.predictions import read_predictions
from jaxattn.text import printable
from jaxattn.training.checkpoints.trained import load_trained
from jaxattn.training.records.writer import read_metrics, truncate_run

CRASHERS = pathlib.Path(__file__).parent / "golden" / "crashers"
SLOW_S = 10.0
_MAX_MEMORY_BYTES = 16 * 2**30  # of addresses: an allocation beyond it fails
_MAX_BYTES = 2**20
# What parsers compare with: limits of integers, ends of text, openings of formats.
_TOKENS = (
    *(b"\x00", b"\xff" * 4, b"\x7f\xff\xff\xff", b"\x80\x00\x00\x00", b"\xff" * 8),
    *(b"-1", b"1e999", b"nan", b"null", b"[]", b"{}", b'"', b",", b"\n", b"\r", b"("),
    *(
        b"PK\x03\x04",
        b"\x93NUMPY",
        b"\x1f\x8b",
        b"\x89PNG",
        b"GIF89a",
        b"cos\nsystem\n",
    ),
)


class Reader(NamedTuple):
    """A reader under test.

    Attributes:
        seeds: Valid inputs.
        read: Reads one, from the bytes and a folder of its own.
    """

    seeds: list[bytes]
    read: Callable[[bytes, pathlib.Path], object]


def mutate(rng: random.Random, seeds: list[bytes]) -> bytes:
    """Returns a valid input with one to six faults."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        at = rng.randrange(len(data) + 1)
        length = min(rng.choice((1, 1, 2, 4, 8, 64, 1024)), len(data) - at)
        other = rng.choice(seeds)
        start = rng.randrange(len(other) + 1)
        kind = rng.randrange(7)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 1 and data:
            data[at % len(data)] = rng.randrange(256)
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + length]
        elif kind == 4:
            data[at:at] = data[at : at + length]
        elif kind == 5:
            data[at : at + length] = rng.choice(_TOKENS)
        else:
            data[at:at] = other[start : start + rng.randrange(256)]
    return bytes(data[:_MAX_BYTES])


# Readers --------------------------------------------------------------------------


def _file(name: str, read: Callable[[pathlib.Path], object]) -> Callable[..., object]:
    """A reader of one file of that name."""

    def from_bytes(data: bytes, folder: pathlib.Path) -> object:
        path = folder / name
        path.write_bytes(data)
        return read(path)

    return from_bytes


def _batch(seed: int, protocol: int = 2, n: int = 2) -> bytes:
    rows = np.random.default_rng(seed).integers(0, 256, (n, 3072), np.uint8)
    return pickle.dumps({"data": rows, "labels": list(range(n))}, protocol)


def _pickles() -> list[bytes]:
    small = np.arange(12, dtype=np.uint8).reshape(3, 4)
    contents = (
        {b"data": small, b"labels": [1, 2]},
        {"x": np.float32(1), "y": {"z": [None]}},
    )
    return [pickle.dumps(c, protocol) for c in contents for protocol in range(6)]


def _npzs() -> list[bytes]:
    images = np.zeros((3, 32, 32, 3), np.uint8)
    labels = np.arange(3)
    seeds = []
    for save in (np.savez, np.savez_compressed):
        for arrays in (
            {"images": images, "ids": labels},
            {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels},
        ):
            file = io.BytesIO()
            save(file, **arrays)
            seeds.append(file.getvalue())
    return seeds


def _tars() -> list[bytes]:
    layout, file = LAYOUTS["cifar10"], io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for i, name in enumerate((*layout.train_files, *layout.test_files)):
            data = _batch(i, n=1)
            member = tarfile.TarInfo(f"{layout.folder}/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return [file.getvalue(), gzip.compress(file.getvalue())]


def _read_cifar_folder(data: bytes, folder: pathlib.Path) -> object:
    layout = LAYOUTS["cifar10"]
    for i, name in enumerate((*layout.train_files, layout.meta_file)):
        names = [f"name {k}" for k in range(10)]
        valid = (
            pickle.dumps({layout.class_names_key: names}) if i == 5 else _batch(i, n=1)
        )
        (folder / name).write_bytes(valid)
    # The damaged file in turn for a batch and for the names.
    damaged = (
        layout.test_files[0]
        if data[:1] != b"\x80" or len(data) % 2
        else layout.meta_file
    )
    (folder / layout.test_files[0]).write_bytes(_batch(9, n=1))
    (folder / damaged).write_bytes(data)
    return read_cifar("cifar10", folder)


def _texts() -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "x" * 500, zip=True)
    info.add_itxt("Title", "y" * 500, zip=True)
    return info


def _vague_images() -> list[bytes]:
    """Of formats that only the ending of a name tells."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (9, 7, 3), np.uint8))
    seeds = []
    for kind in ("TGA", "PCX", "SGI", "DIB"):
        file = io.BytesIO()
        rgb.save(file, kind)
        seeds.append(file.getvalue())
    return [*seeds, b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 2, 2, 8, 3)]


def _read_vague(data: bytes, folder: pathlib.Path) -> None:
    for ending in ("tga", "pcx", "sgi", "dib"):
        path = folder / f"a.{ending}"
        path.write_bytes(data)
        with contextlib.suppress(UserError):
            read_image(path)


def _openings() -> list[bytes]:
    """What files that are no images begin with, and whole images."""
    return [
        *(b"version https://git-lfs.github.com/spec/v1\n", b"<!doctype html>"),
        *(b"<?xml version='1.0'?><!-- x --><svg>", b"%PDF-1.4", b"PK\3\4", bytes(40)),
        *(b"\0\0\0\x18ftypheic", b"\0\0\0\x18ftypavif", b'{"a": 1}'),
        *_images()[:8],
    ]


def _read_opening(data: bytes, folder: pathlib.Path) -> None:
    """A file without an ending, in a folder that is searched."""
    (folder / "a").write_bytes(data)
    for path in scan(folder).paths:
        read_image(folder / path)
    line = formats.explain(io.BytesIO(data))
    assert line == printable(line), line


def _images() -> list[bytes]:
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (9, 7, 3), np.uint8))
    deep = Image.fromarray(rng.integers(0, 65536, (9, 7), np.uint16))
    seeds = []
    for kind, image, options in (
        *((k, rgb, {}) for k in ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")),
        *((k, rgb, {}) for k in ("AVIF", "JPEG2000", "ICO", "DDS", "QOI")),
        ("PNG", rgb, {"pnginfo": _texts(), "icc_profile": bytes(2000)}),
        ("JPEG", rgb.convert("CMYK"), {"progressive": True}),
        ("PNG", rgb.convert("RGBA"), {}),
        ("PNG", rgb.convert("P"), {"transparency": 3}),
        ("PNG", deep, {}),
        ("TIFF", deep, {}),
        ("TIFF", rgb, {"compression": "tiff_lzw"}),
        ("GIF", rgb, {"save_all": True, "append_images": [rgb.rotate(180)]}),
    ):
        file = io.BytesIO()
        exif = Image.Exif()
        exif[274] = 6
        image.save(file, kind, exif=exif, **options) if kind in (
            "JPEG",
            "PNG",
            "TIFF",
            "WEBP",
        ) else image.save(file, kind, **options)
        seeds.append(file.getvalue())
    return seeds


def _read_image(path: pathlib.Path) -> None:
    with contextlib.suppress(UserError):
        read_image(path)
    read_crop(path, lambda h, w: (0, 0, w, h), 4, reduce=True)


def _csvs() -> list[bytes]:
    seeds = [
        b"ID,Labels\n0,3\n1,4\n2,5\n",
        b'\xef\xbb\xbfID,Labels,0,1\r\n"a,b",1,0.5,0.5\r\n',
    ]
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerows([("ID", "Labels"), *((f"n {i}", i) for i in range(20))])
    return [*seeds, file.getvalue().encode()]


_OVERRIDES = (
    "--config.num_epochs=3",
    "--config.batch_size=8",
    "--config.data.val_fraction=0.1",
    "--config.data.name=synthetic",
    "--config.normalize.mean=(0.5, 0.5, 0.5)",
    "--config.schedule.learning_rate=1e-3",
    "--config.ema.decay=0.9",
    "--config.dtype=bfloat16",
    "--config.model.name=canet_tiny",
    "--config.data.path=None",
    "--config.augment.crop_fill=reflect",
    "--config.log.tensorboard=false",
    "--config.steps_per_dispatch=2",
)


def _read_overrides(data: bytes, folder: pathlib.Path) -> None:
    del folder
    lines = data.decode("utf-8", "replace").replace("\x00", "").splitlines()
    smoke = pathlib.Path(__file__).parent / "smoke.py"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ml_collections loads the config by old means
        load_config(f"{smoke}:small", lines)


def _configs() -> list[bytes]:
    config = {
        "seed": 0,
        "dtype": "float32",
        "model": {"name": "efficient_resnet", "base_width": 2},
        "normalize": {"mean": [0.5], "std": [0.5]},
        "ema": {"decay": 0.9, "batch_stats": "live"},
        "dataset": {"class_names": ["a", "b"], "image_shape": [8, 8, 3]},
        "versions": {"jax": "0.10.2"},
    }
    return [json.dumps(config, indent=2).encode(), json.dumps(config).encode()]


def _metrics() -> list[bytes]:
    rows = [
        {"step": i, "step/loss": 1.0 / (i + 1), "step/accuracy": None} for i in range(9)
    ]
    return ["".join(json.dumps(row) + "\n" for row in rows).encode()]


def _read_metrics(path: pathlib.Path) -> None:
    read_metrics(path.parent)
    truncate_run(path.parent, 5)
    assert all(row["step"] <= 5 for row in read_metrics(path.parent))


def readers() -> dict[str, Reader]:
    """Returns every reader by name."""
    frame = Frame((32, 32, 3))
    return {
        "pickle": Reader(_pickles(), lambda data, _: read_pickle(data, "f")),
        "pickled images": Reader(
            [_batch(0, protocol) for protocol in range(6)],
            _file("a.pkl", lambda path: read_inputs([path], frame)),
        ),
        "npz": Reader(_npzs(), _file("a.npz", lambda path: read_inputs([path], frame))),
        "npz of CIFAR": Reader(
            _npzs(), _file("a.npz", lambda path: read_cifar("cifar10", path))
        ),
        "CIFAR archive": Reader(
            _tars(), _file("a.tar", lambda path: read_cifar("cifar10", path))
        ),
        "CIFAR folder": Reader([_batch(0), *_pickles()], _read_cifar_folder),
        "image": Reader(_images(), _file("a.png", _read_image)),
        "image by its ending": Reader(_vague_images(), _read_vague),
        "opening": Reader(_openings(), _read_opening),
        "predictions": Reader(_csvs(), _file("a.csv", read_predictions)),
        "overrides": Reader(
            ["\n".join(_OVERRIDES).encode(), *(o.encode() for o in _OVERRIDES)],
            _read_overrides,
        ),
        "config.json": Reader(
            _configs(), _file("config.json", lambda path: load_trained(path.parent))
        ),
        "metrics.jsonl": Reader(_metrics(), _file("metrics.jsonl", _read_metrics)),
    }


# Running --------------------------------------------------------------------------


def check(reader: Reader, data: bytes) -> str | None:
    """Returns what is wrong with how a reader takes an input, or None."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        try:
            reader.read(data, pathlib.Path(folder))
        except (UserError, OSError) as error:
            if "\n" in str(error).strip():
                return f"a message of several lines: {error}"
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            return "".join(traceback.format_exception(error))
    seconds = time.monotonic() - start
    return f"took {seconds:.1f} s" if seconds > SLOW_S else None


def inputs(name: str, reader: Reader, seed: int) -> Iterator[bytes]:
    """Yields damaged inputs, the same for the same seed."""
    rng = random.Random(f"{name} {seed}")
    while True:
        yield mutate(rng, reader.seeds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="of all readers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", choices=readers(), action="append")
    args = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY_BYTES,) * 2)
    chosen = {k: v for k, v in readers().items() if k in (args.reader or readers())}
    crashers: dict[str, set[str]] = {}
    for name, reader in chosen.items():
        deadline = time.monotonic() + args.minutes * 60 / len(chosen)
        count = 0
        for data in inputs(name, reader, args.seed):
            if time.monotonic() >= deadline:
                break
            count += 1
            if wrong := check(reader, data):
                kind = wrong.strip().splitlines()[-1][:60]
                if kind in crashers.setdefault(name, set()):
                    continue
                crashers[name].add(kind)
                CRASHERS.mkdir(exist_ok=True)
                number = len(list(CRASHERS.iterdir()))
                path = CRASHERS / f"{name.replace(' ', '_')}-{number}"
                path.write_bytes(data)
                print(f"{name}: {path.name}: {wrong}", flush=True)  # noqa: T201
        kinds = len(crashers.get(name, ()))
        print(f"{name}: {count} inputs, {kinds} kinds of crash", flush=True)  # noqa: T201
    return int(bool(crashers))


if __name__ == "__main__":
    sys.exit(main())
