"""A whole epoch of CIFAR-10 in our loop, and in PyTorch's as projects write it.

    python benchmarks/epoch.py --data cifar-10-batches-py --num_train 5000
    python benchmarks/epoch.py --data cifar-10-batches-py --device gpu --out epoch.json

An epoch trains on every image, augmented and mixed as configs/canet.py says, and then
evaluates the test split. Ours reads uint8 images that lie on the device and augments
them inside the train step. PyTorch's reads Pillow images, which the workers of a
DataLoader augment one by one, and mixes batches on the device. PyTorch's keeps
its metrics there until the epoch ends, ours fetches them every second; neither saves.
PyTorch's side needs `pip install -e '.[torch]'`; the memory of its workers is not
counted.
"""
# pyright: reportMissingImports=false

import argparse
import dataclasses
import functools
import json
import multiprocessing
import pathlib
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from benchmarks import timing
from benchmarks.steps import Work, jax_peak
from configs import canet
from jaxattn import list_models
from jaxattn.data import load_data
from jaxattn.models.registry import model_keywords
from jaxattn.training.meter import Meter
from jaxattn.training.run import Run, build
from jaxattn.training.trainer import Trainer

_MODELS = {"cpu": "canet_tiny", "gpu": "canet"}
_VARIANTS = {"cpu": "channels_last", "gpu": "channels_last+compile"}


def main() -> None:
    """Prints a line of a table and writes the JSON."""
    args = _parse()
    work = make_work(args.model or _MODELS[args.device], args.batch_size, args.device)
    with tempfile.TemporaryDirectory() as folder:
        path = args.data
        if args.num_train or args.num_test:
            path = str(pathlib.Path(folder, "subset.npz"))
            write_subset(args.data, path, args.num_train, args.num_test)
        variant = args.torch or _VARIANTS[args.device]
        row = compare(work, path, variant, args.workers, args.blocks)
    if args.out:
        results = {"environment": timing.environment(args.device), **row}
        args.out.write_text(json.dumps(results, indent=1) + "\n")
    print(format_table([row]))


def make_work(model: str, batch_size: int, device: str) -> Work:
    """Returns a network for images of 32 pixels, in the dtype of the device."""
    stem = {"stem": "cifar"} if "stem" in model_keywords(model) else {}
    dtype = "bfloat16" if device == "gpu" else "float32"
    return Work(model, 32, batch_size, model_kwargs=stem, dtype=dtype, device=device)


def write_subset(
    data: str, path: str, num_train: int | None, num_test: int | None
) -> None:
    """Writes the first images of both splits as an npz that `data.path` accepts.

    Args:
        data: Any path that `data.path` accepts for CIFAR-10.
        path: Of the npz.
        num_train: Images of the training split; None: all.
        num_test: Images of the test split; None: all.
    """
    cifar: Any = load_data("cifar10", path=data, val_fraction=0.0)
    np.savez(
        path,
        x_train=cifar.train.images[:num_train],
        y_train=cifar.train.labels[:num_train],
        x_test=cifar.test.images[:num_test],
        y_test=cifar.test.labels[:num_test],
    )


def compare(
    work: Work, path: str, variant: str, workers: int, blocks: int
) -> dict[str, Any]:
    """Returns the timings of both loops, an epoch a block.

    Args:
        work: What is trained.
        path: Of the data, as `data.path`.
        variant: Of PyTorch, see `make_torch_side`.
        workers: Of PyTorch's DataLoaders.
        blocks: Epochs of either side, each after one that is not counted.
    """
    sides = {
        "jaxattn": functools.partial(make_jax_side, work, path),
        "PyTorch": functools.partial(make_torch_side, work, path, variant, workers),
    }
    timings = timing.time_in_turn(sides, blocks=blocks, seconds=0.0)
    ours, theirs = (timing.median(timings[name]) for name in sides)
    cifar = load_data("cifar10", path=path, val_fraction=0.0)
    return {
        "work": dataclasses.asdict(work),
        "num_train": len(cifar.train),
        "num_test": len(cifar.test),
        "variant": variant,
        "workers": workers,
        "timings": timings,
        "ratio": ours / theirs,
    }


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """Returns rows as a Markdown table, seconds an epoch and images per second."""
    lines = [
        "| network | batch | images | jaxattn | PyTorch | workers | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    return "\n".join(lines + [_format_row(row) for row in rows])


def _format_row(row: dict[str, Any]) -> str:
    ours, theirs = (_format_speed(row, name) for name in ("jaxattn", "PyTorch"))
    return (
        f"| `{row['work']['model']}` | {row['work']['batch_size']} |"
        f" {row['num_train']:,} + {row['num_test']:,} | {ours} |"
        f" {theirs} {row['variant']} | {row['workers']} | **{row['ratio']:.2f}** |"
    )


def _format_speed(row: dict[str, Any], name: str) -> str:
    timed = row["timings"][name]
    if "error" in timed:
        return timed["error"]
    speed = timing.median(timed)
    seconds = row["num_train"] / speed
    return f"{seconds:.3g} s, {speed:,.0f} images/s ({timing.spread(timed)})"


# Our loop --------------------------------------------------------------------------


def make_jax_side(work: Work, path: str) -> timing.Side:
    """Returns an epoch of our loop.

    Args:
        work: What is trained.
        path: Of the data, as `data.path`.
    """
    run = _make_run(work, path)
    trainer = Trainer(run)
    state, step = trainer.init_state(), 0

    def call() -> dict[str, Any] | None:
        nonlocal state, step
        meter, stop = Meter(run.log.every_steps, step), step + run.steps_per_epoch
        for update in trainer.train(state, step, stop):
            step, state = update.step, update.state
            meter.add(update.metrics)
            if meter.is_due:
                meter.fetch(everything=False)
        meter.fetch(everything=True)
        return trainer.evaluate(state, "test")

    return timing.Side(call, len(run.data.train), jax_peak(work.device))


def _make_run(work: Work, path: str) -> Run:
    config: Any = canet.get_config()
    config.batch_size = work.batch_size
    config.dtype = work.dtype
    config.model = {"name": work.model, **work.model_kwargs}
    config.data.path = path
    config.data.val_fraction = 0.0
    return build(config, devices=jax.devices(work.device)[:1])


# PyTorch's loop --------------------------------------------------------------------


def make_torch_side(work: Work, path: str, variant: str, workers: int) -> timing.Side:
    """Returns an epoch of PyTorch's loop.

    Args:
        work: What is trained.
        path: Of the data, as `data.path`.
        variant: "eager", or "channels_last" and "compile", joined by "+" if both.
        workers: Processes of either DataLoader; 0 loads in this one.
    """
    from benchmarks.pytorch.loop import make_side

    cifar = load_data("cifar10", path=path, val_fraction=0.0)
    return make_side(work, cifar, canet.get_config(), variant, workers)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="CIFAR-10, as --config.data.path")
    timing.add_arguments(parser, seconds=None)
    parser.add_argument(
        "--model",
        choices=list_models("classification"),
        help="canet_tiny on a CPU, canet on a GPU",
    )
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--num_train", type=int, help="first images; all by default")
    parser.add_argument("--num_test", type=int, help="as --num_train")
    parser.add_argument(
        "--workers",
        type=int,
        default=multiprocessing.cpu_count(),
        help="of PyTorch's DataLoaders; one a core by default",
    )
    parser.add_argument(
        "--torch",
        help="eager, channels_last (on a CPU), compile, channels_last+compile (GPU)",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
