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
import itertools
import json
import math
import multiprocessing
import pathlib
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
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
from jaxattn.training.evaluate import Evaluator
from jaxattn.training.meter import Meter
from jaxattn.training.run import Run, build

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
    evaluator = Evaluator(run, lambda: False)
    loader, store = run.loaders["train"], evaluator.stores["train"]
    dispatch = run.parallel.compile_train(run.train_step, loader.fetch)
    state, step = run.init_state(), 0

    def call() -> dict[str, Any] | None:
        nonlocal state, step
        meter, stop = Meter(run.log.every_steps, step), step + run.steps_per_epoch
        feeds = loader.train_feeds(run.order, step, stop)
        while chunk := list(itertools.islice(feeds, run.steps_per_dispatch)):
            stacked = run.parallel.place_stacked(chunk)
            state, metrics = dispatch(state, store, stacked)
            meter.add(metrics)
            if meter.is_due:
                meter.fetch(everything=False)
        meter.fetch(everything=True)
        step = stop
        return evaluator.evaluate(state.variables, "test")

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
    import torch

    torch.manual_seed(0)
    random.seed(0)
    recipe: Any = canet.get_config()
    loaders = _torch_loaders(work, path, recipe, workers)
    loop = _TorchLoop(work, loaders, recipe, variant)

    def call() -> tuple[list[float], list[float]]:
        return loop.train().tolist(), loop.evaluate().tolist()

    def peak() -> int:
        on_gpu = work.device == "gpu"
        return torch.cuda.max_memory_allocated() if on_gpu else timing.peak_rss()

    return timing.Side(call, len(loaders["train"].dataset), peak)


class _TorchLoop:
    """Trains and evaluates; each returns summed loss and hits `[2]` on the device."""

    def __init__(
        self, work: Work, loaders: dict[str, Any], recipe: Any, variant: str
    ) -> None:
        import torch

        options = set(variant.split("+"))
        is_last = "channels_last" in options
        self._layout = torch.channels_last if is_last else torch.contiguous_format
        self._device = torch.device("cuda" if work.device == "gpu" else "cpu")
        self._loaders, self._augment = loaders, recipe.augment
        self._network = _torch_network(work, self._device, self._layout)
        self._forward = self._network
        if "compile" in options:
            # Not dynamic: the last batch, which is smaller, must not slow the others.
            self._forward = torch.compile(self._network, dynamic=False)
        self._optimizer = torch.optim.AdamW(
            self._network.parameters(),
            recipe.schedule.learning_rate,
            weight_decay=recipe.optimizer.weight_decay,
        )
        self._scheduler = torch.optim.lr_scheduler.ExponentialLR(
            self._optimizer, recipe.schedule.decay_rate
        )
        self._criterion = torch.nn.CrossEntropyLoss(
            label_smoothing=recipe.loss.label_smoothing
        )
        self._autocast = torch.autocast(
            self._device.type, torch.bfloat16, enabled=work.dtype == "bfloat16"
        )

    def _batches(self, split: str) -> Iterator[tuple[Any, Any]]:
        for images, labels in self._loaders[split]:
            x = images.to(self._device, non_blocking=True, memory_format=self._layout)
            yield x, labels.to(self._device, non_blocking=True)

    def train(self) -> Any:
        import torch

        self._network.train()
        total = torch.zeros(2, device=self._device)
        for images, y in self._batches("train"):
            x, partner, weight = _torch_mix(images, y, self._augment)
            with self._autocast:
                logits = self._forward(x)
                loss = weight * self._criterion(logits, y)
                loss = loss + (1 - weight) * self._criterion(logits, partner)
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self._optimizer.step()
            hits, partner_hits = _torch_hits(logits, y), _torch_hits(logits, partner)
            hits = weight * hits + (1 - weight) * partner_hits
            total += torch.stack([len(y) * loss.detach(), hits])
        self._scheduler.step()
        return total

    def evaluate(self) -> Any:
        import torch

        self._network.eval()
        total = torch.zeros(2, device=self._device)
        with torch.no_grad():
            for x, y in self._batches("test"):
                with self._autocast:
                    logits = self._forward(x)
                    loss = self._criterion(logits, y)
                total += torch.stack([len(y) * loss, _torch_hits(logits, y)])
        return total


def _torch_network(work: Work, device: Any, layout: Any) -> Any:
    import torch

    from benchmarks.torch_models import create_torch_model

    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    network: Any = create_torch_model(work.model, work.num_classes, **work.model_kwargs)
    return network.to(device=device, memory_format=layout)


def _torch_loaders(work: Work, path: str, recipe: Any, workers: int) -> dict[str, Any]:
    from torch.utils.data import DataLoader

    cifar = load_data("cifar10", path=path, val_fraction=0.0)
    make: Any = functools.partial(
        DataLoader,
        batch_size=work.batch_size,
        num_workers=workers,
        pin_memory=work.device == "gpu",
        persistent_workers=workers > 0,
    )
    return {
        "train": make(TorchImages(cifar.train, recipe, train=True), shuffle=True),
        "test": make(TorchImages(cifar.test, recipe, train=False)),
    }


class TorchImages:
    """A split as torchvision has it: Pillow images, transformed one by one.

    Args:
        source: The split, in memory.
        recipe: Config with the sections `augment` and `normalize`.
        train: Augments the images.
    """

    def __init__(self, source: Any, recipe: Any, *, train: bool) -> None:
        import torch

        self._images, self._labels = source.images, source.labels.tolist()
        self._augment = recipe.augment if train else None
        self._mean, self._std = (
            torch.tensor(values).reshape(3, 1, 1)
            for values in (recipe.normalize.mean, recipe.normalize.std)
        )

    def __len__(self) -> int:
        """The number of images."""
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Returns a normalised image, float32 `[3, H, W]`, and its label."""
        import torch
        from PIL import Image

        image = Image.fromarray(self._images[index])
        if self._augment:
            image = _flip_and_crop(image, self._augment)
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        x = x.float().div_(255)
        if self._augment:
            _erase(x, self._augment)
        return x.sub_(self._mean).div_(self._std), self._labels[index]


def _flip_and_crop(image: Any, augment: Any) -> Any:
    """Transforms a Pillow image."""
    from PIL import Image, ImageOps

    if random.random() < augment.flip_probability:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    padding, (width, height) = augment.crop_padding_px, image.size
    left, top = (random.randint(0, 2 * padding) for _ in range(2))
    padded = ImageOps.expand(image, padding, fill=0)
    return padded.crop((left, top, left + width, top + height))


def _erase(x: Any, augment: Any) -> None:
    """Makes a rectangle of `[3, H, W]` black, as torchvision's RandomErasing does."""
    if random.random() >= augment.erase_probability:
        return
    _, H, W = x.shape
    low, high = (math.log(aspect) for aspect in augment.erase_aspect)
    for _ in range(10):
        area = H * W * random.uniform(*augment.erase_area)
        aspect = math.exp(random.uniform(low, high))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < H and w < W:
            row, column = random.randint(0, H - h), random.randint(0, W - w)
            x[:, row : row + h, column : column + w] = 0
            return


def _torch_mix(x: Any, y: Any, augment: Any) -> tuple[Any, Any, float]:
    """Mixes a batch by mixup, CutMix or neither.

    Returns:
        Images, the partners' labels and the weight of the own ones.
    """
    import torch

    choice = random.random() - augment.mixup_probability
    if choice >= augment.cutmix_probability:
        return x, y, 1.0
    partner = torch.randperm(len(x), device=x.device)
    if choice < 0:
        weight = random.betavariate(augment.mixup_alpha, augment.mixup_alpha)
        return weight * x + (1 - weight) * x[partner], y[partner], weight
    share = random.betavariate(augment.cutmix_alpha, augment.cutmix_alpha)
    H, W = x.shape[2:]
    (top, bottom), (left, right) = _cut(H, share), _cut(W, share)
    x[:, :, top:bottom, left:right] = x[partner, :, top:bottom, left:right]
    area = (bottom - top) * (right - left)
    return x, y[partner], 1 - area / (H * W)


def _cut(size: int, share: float) -> tuple[int, int]:
    """Draws the start and end of CutMix's rectangle along an axis."""
    half, centre = int(size * math.sqrt(1 - share)) // 2, random.randrange(size)
    return max(centre - half, 0), min(centre + half, size)


def _torch_hits(logits: Any, labels: Any) -> Any:
    """Returns the number of right predictions, on the device."""
    return (logits.argmax(1) == labels).float().sum()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="CIFAR-10, as --config.data.path")
    timing.add_arguments(parser, seconds=None)
    parser.add_argument(
        "--model", choices=list_models(), help="canet_tiny on a CPU, canet on a GPU"
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
