"""The same train step in our library and in PyTorch, as sides to be timed.

Both gather a batch by index from uint8 images that lie on the device, normalise it, and
do one step of SGD with momentum and weight decay on the cross entropy; both compute the
loss and accuracy. PyTorch's network is of `pytorch/`, in float32 or under autocast to
bfloat16.
"""
# pyright: reportMissingImports=false

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from benchmarks.timing import Side, peak_rss

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_RATE, _MOMENTUM, _DECAY = 1e-3, 0.9, 5e-4
# Of PyTorch's side: as many as our trainer makes one call.
_STEPS_PER_CALL = {"cpu": 4, "gpu": 25}


@dataclasses.dataclass(frozen=True)
class Work:
    """What is trained.

    Attributes:
        model: One of `jaxattn.list_models()`.
        image_size: Height and width in pixels.
        batch_size: Images of a step.
        num_classes: Of the images.
        model_kwargs: Further keywords of the network, in either library.
        dtype: "float32" or "bfloat16".
        device: "cpu" or "gpu".
    """

    model: str
    image_size: int
    batch_size: int
    num_classes: int = 10
    model_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    dtype: str = "float32"
    device: str = "cpu"


def make_run(work: Work, **overrides: Any) -> Any:
    """Returns the `Run` of a piece of work, on one device.

    Args:
        work: What is trained.
        **overrides: Sections and keys of the config that differ.
    """
    from jaxattn.training.run import build

    config = {
        "seed": 0,
        "num_epochs": 10**6,
        "batch_size": work.batch_size,
        "dtype": work.dtype,
        "model": {"name": work.model, **work.model_kwargs},
        "data": {
            "name": "synthetic",
            "image_size": work.image_size,
            "num_train": max(512, work.batch_size),
            "num_classes": work.num_classes,
        },
        "pipeline": {"loader": "resident"},
        "normalize": {"mean": _MEAN, "std": _STD},
        "schedule": {"name": "constant", "learning_rate": _RATE},
        "optimizer": {"name": "sgd", "momentum": _MOMENTUM, "weight_decay": _DECAY},
    }
    return build({**config, **overrides}, devices=jax.devices(work.device)[:1])


def make_jax_side(work: Work, **overrides: Any) -> Side:
    """Returns our train step; see `make_run`."""
    return side_of_run(make_run(work, **overrides), work.device)


def side_of_run(run: Any, device: str) -> Side:
    """Returns the train step of a run.

    Args:
        run: A `Run`.
        device: "cpu" or "gpu".
    """
    steps = run.steps_per_dispatch
    return Side(
        repeated_dispatch(run, steps), steps * run.options.batch_size, jax_peak(device)
    )


def repeated_dispatch(run: Any, steps: int) -> Callable[[], None]:
    """Returns a call that trains the first steps of a run, again and again.

    Args:
        run: A `Run`.
        steps: Of a call.
    """
    from jaxattn.training.trainer import Trainer

    trainer = Trainer(run)
    dispatch, state = trainer.compile(run.train_step), trainer.init_state()
    placed = trainer.place(list(trainer.feeds(0, steps)))

    def call() -> None:
        nonlocal state
        state, metrics = dispatch(state, placed)
        jax.block_until_ready((state, metrics))

    return call


def jax_peak(device: str) -> Callable[[], int]:
    """Returns what tells the largest memory that our side has needed, in bytes."""
    if device == "cpu":
        return peak_rss
    return lambda: jax.devices()[0].memory_stats()["peak_bytes_in_use"]


def make_torch_side(work: Work, variant: str) -> Side:
    """Returns PyTorch's train step.

    Args:
        work: What is trained.
        variant: "eager", or "channels_last" and "compile", joined by "+" if both.
    """
    import torch

    options = set(variant.split("+")) - {"eager"}
    device = torch.device("cuda" if work.device == "gpu" else "cpu")
    network, images, labels = _torch_parts(work, "channels_last" in options, device)
    optimizer = torch.optim.SGD(
        network.parameters(), _RATE, _MOMENTUM, weight_decay=_DECAY
    )
    forward = torch.compile(network) if "compile" in options else network
    layout = torch.channels_last if "channels_last" in options else None
    mean, std = (
        torch.tensor(v, device=device).reshape(1, 3, 1, 1) * 255 for v in (_MEAN, _STD)
    )
    order = np.random.default_rng(0).permutation(len(images))[: work.batch_size]
    index = torch.from_numpy(order).to(device)
    autocast = torch.autocast(
        device.type, torch.bfloat16, enabled=work.dtype == "bfloat16"
    )

    def step() -> Any:
        x = (images[index].permute(0, 3, 1, 2).float() - mean) / std
        x = x.contiguous(memory_format=layout or torch.contiguous_format)
        y = labels[index]
        with autocast:
            logits = forward(x)
            loss = torch.nn.functional.cross_entropy(logits, y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach(), (logits.argmax(1) == y).float().mean()

    steps = _STEPS_PER_CALL[work.device]

    def call() -> None:
        metrics: Any = None
        for _ in range(steps):
            metrics = step()
        float(metrics[0])  # waits for the device

    def peak() -> int:
        on_gpu = device.type == "cuda"
        return torch.cuda.max_memory_allocated() if on_gpu else peak_rss()

    return Side(call, steps * work.batch_size, peak)


def _torch_parts(work: Work, channels_last: bool, device: Any) -> tuple[Any, Any, Any]:
    """Returns network, uint8 images `[N, H, W, 3]` and labels `[N]` on the device."""
    import torch

    from benchmarks.pytorch.registry import create_torch_model
    from jaxattn.data import load_data

    torch.manual_seed(0)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    network: Any = create_torch_model(work.model, work.num_classes, **work.model_kwargs)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = network.to(device).to(memory_format=layout).train()
    source: Any = load_data(
        name="synthetic",
        image_size=work.image_size,
        num_train=max(512, work.batch_size),
        num_classes=work.num_classes,
    ).train
    images = torch.from_numpy(source.images).to(device)
    return network, images, torch.from_numpy(source.labels).long().to(device)
