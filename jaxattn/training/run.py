"""From a config to a run: everything checked and built, nothing compiled."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxattn.data.augment import Augment, normalize
from jaxattn.data.pipeline import Loader, TrainOrder, make_loader
from jaxattn.data.source import Data, load_data
from jaxattn.errors import UserError
from jaxattn.models.registry import create_model
from jaxattn.training import optim
from jaxattn.training.config import bind
from jaxattn.training.parallel import Devices, MeshParallel, Parallel
from jaxattn.training.pmap import PmapParallel
from jaxattn.training.state import Ema, TrainState, create_state
from jaxattn.training.steps import EvalStep, TrainStep, make_eval_step, make_train_step

# In the order in which a config states them.
_SECTIONS = (
    "model",
    "data",
    "pipeline",
    "normalize",
    "augment",
    "loss",
    "schedule",
    "optimizer",
    "ema",
    "log",
)
_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
_PARALLEL: dict[str, Callable[..., Parallel]] = {
    "jit": MeshParallel,
    "pmap": PmapParallel,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The keys of a config that belong to no section.

    Attributes:
        seed: Of initial weights, order, augmentation and every other draw.
        num_epochs: Passes over the training split.
        batch_size: Images of the global batch, divisible by the devices.
        dtype: Computation dtype, "float32" or "bfloat16".
        data_parallel: "jit" (a mesh) or "pmap".
        steps_per_dispatch: Train steps per call of the device; by default 1 on a CPU
            and 25 elsewhere.
    """

    seed: int
    num_epochs: int
    batch_size: int
    dtype: str = "float32"
    data_parallel: str = "jit"
    steps_per_dispatch: int | None = None

    def __post_init__(self) -> None:
        for key in ("num_epochs", "batch_size", "steps_per_dispatch"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise UserError(f"{key}={value}: must be at least 1")
        if self.seed < 0:
            raise UserError(f"seed={self.seed}: must be at least 0")
        for key, choices in (("dtype", _DTYPES), ("data_parallel", _PARALLEL)):
            if getattr(self, key) not in choices:
                raise UserError(
                    f"{key}={getattr(self, key)!r}: must be one of {', '.join(choices)}"
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Log:
    """What a run writes beside its metrics of every epoch.

    Attributes:
        every_steps: Training steps per line of `metrics.jsonl`, each a mean since the
            line before.
        tensorboard: Writes TensorBoard events.
        histograms: With TensorBoard: histograms of all parameters at every epoch.
        images: With TensorBoard: a grid of augmented inputs at the start.
    """

    every_steps: int = 10
    tensorboard: bool = True
    histograms: bool = True
    images: bool = True

    def __post_init__(self) -> None:
        if self.every_steps < 1:
            raise UserError(f"log.every_steps={self.every_steps}: must be at least 1")


class Loss(NamedTuple):
    """Config section of the loss."""

    label_smoothing: float = 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """Everything that a run is made of, checked and not yet compiled."""

    config: dict[str, Any]
    options: Options
    log: Log
    data: Data
    loaders: dict[str, Loader]  # of the splits "train", "val" and "test"
    order: TrainOrder
    parallel: Parallel
    model: nn.Module
    augment: Augment
    create_state: Callable[[], TrainState]
    train_step: TrainStep
    eval_step: EvalStep

    @property
    def steps_per_epoch(self) -> int:
        """Training steps an epoch."""
        return self.order.steps_per_epoch

    @property
    def steps_per_dispatch(self) -> int:
        """Training steps per call of the device."""
        if self.options.steps_per_dispatch is not None:
            return self.options.steps_per_dispatch
        # In a loop XLA's CPU backend computes convolutions' gradients slowly.
        return 1 if jax.default_backend() == "cpu" else 25

    @property
    def abstract_state(self) -> TrainState:
        """Shapes and shardings of the state in a checkpoint."""
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=self.parallel.state_sharding
            ),
            jax.eval_shape(self.create_state),
        )

    @property
    def total_steps(self) -> int:
        """Training steps of the run."""
        return self.options.num_epochs * self.steps_per_epoch


def build(config: Any, devices: Devices | None = None) -> Run:
    """Checks a config and builds the run it describes; nothing is compiled.

    Args:
        config: An `ml_collections.ConfigDict`, or a mapping with its content.
        devices: To train on; all of them by default.

    Raises:
        UserError: If a key or value is wrong, or the data cannot be had.
    """
    values, sections = _split(config)
    options = bind(Options, values, "config")()
    parallel = _make_parallel(options, devices or jax.devices())
    # All that can be checked without the data comes before the data.
    log = bind(Log, sections["log"], "log")()
    augment = bind(Augment, sections["augment"], "augment")()
    ema = bind(Ema, sections["ema"], "ema")()
    loss = bind(Loss, sections["loss"], "loss")()
    if not 0 <= loss.label_smoothing < 1:
        raise UserError(
            f"loss.label_smoothing={loss.label_smoothing}: must be in [0, 1)"
        )
    make_model = functools.partial(
        bind(create_model, sections["model"], "model"),
        dtype=_DTYPES[options.dtype],
        axis_name=parallel.axis_name,
    )
    make_model(num_classes=1)
    probe = optim.RunLength(options.num_epochs, 1)
    _make_optimizer(sections, probe)

    data = bind(load_data, sections["data"], "data")()
    as_loader = bind(make_loader, sections["pipeline"], "pipeline")
    splits = {"train": data.train, "val": data.val, "test": data.test}
    loaders = {k: as_loader(v) for k, v in splits.items() if v is not None}
    order = TrainOrder(len(data.train), options.batch_size, options.seed)
    length = optim.RunLength(options.num_epochs, order.steps_per_epoch)
    schedule, optimizer = _make_optimizer(sections, length)
    model = make_model(num_classes=data.num_classes)
    normalize_fn = bind(normalize, sections["normalize"], "normalize")
    shared: dict[str, Any] = {
        "model": model,
        "normalize": normalize_fn,
        "label_smoothing": loss.label_smoothing,
        "axis_name": parallel.axis_name,
    }
    run = Run(
        config={**values, **sections},
        options=options,
        log=log,
        data=data,
        loaders=loaders,
        order=order,
        parallel=parallel,
        model=model,
        augment=augment,
        create_state=functools.partial(
            create_state, model, optimizer, ema, options.seed, data.image_shape
        ),
        train_step=make_train_step(
            optimizer=optimizer, schedule=schedule, augment=augment, ema=ema, **shared
        ),
        eval_step=make_eval_step(**shared),
    )
    _check_shapes(run)
    return run


def _split(config: Any) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Separates a config into its own values and its sections, as plain dicts."""
    plain = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    sections = {key: plain.pop(key, {}) for key in _SECTIONS}
    return plain, sections


def _make_parallel(options: Options, devices: Devices) -> Parallel:
    if options.batch_size % len(devices):
        raise UserError(
            f"batch_size={options.batch_size}: must be divisible by the"
            f" {len(devices)} devices"
        )
    if options.data_parallel == "pmap" and jax.process_count() > 1:
        raise UserError("data_parallel='pmap': runs in one process only; use 'jit'")
    return _PARALLEL[options.data_parallel](devices)


def _make_optimizer(sections: Mapping[str, Any], length: optim.RunLength) -> Any:
    schedule = bind(
        optim.make_schedule, sections["schedule"], "schedule", length=length
    )()
    optimizer = bind(
        optim.make_optimizer,
        sections["optimizer"],
        "optimizer",
        schedule=schedule,
        length=length,
    )()
    return schedule, optimizer


def _check_shapes(run: Run) -> None:
    """Traces the network once: what does not fit is said before compilation."""
    H, W, C = run.data.image_shape
    image = jax.ShapeDtypeStruct((1, H, W, C), jnp.uint8)
    try:
        jax.eval_shape(run.create_state)
        jax.eval_shape(bind(normalize, run.config["normalize"], "normalize"), image)
    except (ValueError, TypeError) as error:
        raise UserError(
            f"images of {H} x {W} x {C} do not fit the config: {error}"
        ) from error
