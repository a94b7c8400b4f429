"""An epoch of PyTorch's loop, as projects write it. Needs PyTorch."""
# pyright: reportMissingImports=false

import math
import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import timing
from benchmarks.pytorch.images import make_loaders
from benchmarks.pytorch.registry import create_torch_model
from benchmarks.steps import Work


def make_side(
    work: Work, data: Any, recipe: Any, variant: str, workers: int
) -> timing.Side:
    """Returns an epoch of PyTorch's loop.

    Args:
        work: What is trained.
        data: Has the splits `train` and `test`, in memory.
        recipe: Config of the training.
        variant: "eager", or "channels_last" and "compile", joined by "+" if both.
        workers: Processes of either DataLoader; 0 loads in this one.
    """
    torch.manual_seed(0)
    random.seed(0)
    loaders = make_loaders(work, data, recipe, workers)
    loop = _Loop(work, loaders, recipe, variant)

    def call() -> tuple[list[float], list[float]]:
        return loop.train().tolist(), loop.evaluate().tolist()

    def peak() -> int:
        on_gpu = work.device == "gpu"
        return torch.cuda.max_memory_allocated() if on_gpu else timing.peak_rss()

    return timing.Side(call, len(loaders["train"].dataset), peak)


class _Loop:
    """Trains and evaluates; each returns summed loss and hits `[2]` on the device."""

    def __init__(
        self, work: Work, loaders: dict[str, Any], recipe: Any, variant: str
    ) -> None:
        options = set(variant.split("+"))
        is_last = "channels_last" in options
        self._layout = torch.channels_last if is_last else torch.contiguous_format
        self._device = torch.device("cuda" if work.device == "gpu" else "cpu")
        self._loaders, self._augment = loaders, recipe.augment
        self._network = _make_network(work, self._device, self._layout)
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
        self._criterion = nn.CrossEntropyLoss(
            label_smoothing=recipe.loss.label_smoothing
        )
        self._autocast = torch.autocast(
            self._device.type, torch.bfloat16, enabled=work.dtype == "bfloat16"
        )

    def _batches(self, split: str) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self._loaders[split]:
            x = images.to(self._device, non_blocking=True, memory_format=self._layout)
            yield x, labels.to(self._device, non_blocking=True)

    def train(self) -> Tensor:
        """Trains an epoch."""
        self._network.train()
        total = torch.zeros(2, device=self._device)
        for images, y in self._batches("train"):
            x, partner, weight = mix(images, y, self._augment)
            with self._autocast:
                logits = self._forward(x)
                loss = weight * self._criterion(logits, y)
                loss = loss + (1 - weight) * self._criterion(logits, partner)
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self._optimizer.step()
            hits, partner_hits = _hits(logits, y), _hits(logits, partner)
            hits = weight * hits + (1 - weight) * partner_hits
            total += torch.stack([len(y) * loss.detach(), hits])
        self._scheduler.step()
        return total

    def evaluate(self) -> Tensor:
        """Evaluates the test split."""
        self._network.eval()
        total = torch.zeros(2, device=self._device)
        with torch.no_grad():
            for x, y in self._batches("test"):
                with self._autocast:
                    logits = self._forward(x)
                    loss = self._criterion(logits, y)
                total += torch.stack([len(y) * loss, _hits(logits, y)])
        return total


def _make_network(
    work: Work, device: torch.device, layout: torch.memory_format
) -> nn.Module:
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    network: Any = create_torch_model(work.model, work.num_classes, **work.model_kwargs)
    return network.to(device=device, memory_format=layout)


def mix(x: Tensor, y: Tensor, augment: Any) -> tuple[Tensor, Tensor, float]:
    """Mixes a batch by mixup, CutMix or neither.

    Args:
        x: Images `[N, 3, H, W]`, which CutMix overwrites.
        y: Labels `[N]`.
        augment: The section `augment` of a config.

    Returns:
        Images, the partners' labels and the weight of the own ones.
    """
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


def _hits(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the number of right predictions, on the device."""
    return (logits.argmax(1) == labels).float().sum()
