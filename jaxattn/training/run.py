"""From a config to a run: everything checked and built, nothing compiled."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxattn.config.bind import DTYPES, bind
from jaxattn.config.changes import harmless_changes
from jaxattn.data.augment import Augment, normalize
from jaxattn.data.datasets.registry import load_data
from jaxattn.data.pipeline import Loader, TrainOrder, make_loader
from jaxattn.data.source import Data
from jaxattn.errors import UserError, require
from jaxattn.models.cost import Cost, measure_cost
from jaxattn.models.registry import create_model
from jaxattn.ops.conv import is_fast_in_loops
from jaxattn.training import optim
from jaxattn.training.checkpoints.pretrained import Pretrained, head_paths
from jaxattn.training.devices.mesh import Devices, MeshParallel, Parallel
from jaxattn.training.devices.pmap import PmapParallel
from jaxattn.training.guards.early_stopping import EarlyStopping
from jaxattn.training.options import Log, Options
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
    "early_stopping",
    "log",
)
_PARALLEL: dict[str, Callable[..., Parallel]] = {
    "jit": MeshParallel,
    "pmap": PmapParallel,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
    """Cross entropy of training and evaluation.

    Attributes:
        label_smoothing: Share of the uniform distribution in the target, in [0, 1).
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        share = self.label_smoothing
        require("loss.label_smoothing", share, 0 <= share < 1, "in [0, 1)")


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """Everything that a run is made of, checked and not yet compiled."""

    config: dict[str, Any]
    options: Options
    log: Log
    early_stopping: EarlyStopping
    data: Data
    loaders: dict[str, Loader]  # of the splits "train", "val" and "test"
    order: TrainOrder
    parallel: Parallel
    model: nn.Module
    augment: Augment
    create_state: Callable[..., TrainState]
    pretrained: Pretrained | None
    train_step: TrainStep
    eval_step: EvalStep

    @property
    def record(self) -> dict[str, Any]:
        """What `config.json` keeps: the config, and what the data turned out to be."""
        dataset = {
            "class_names": list(self.data.class_names),
            "image_shape": list(self.data.image_shape),
        }
        return {**self.config, "dataset": dataset}

    @property
    def steps_per_epoch(self) -> int:
        """Training steps an epoch."""
        return self.order.steps_per_epoch

    @property
    def steps_per_dispatch(self) -> int:
        """Training steps per call of the device."""
        if self.options.steps_per_dispatch is not None:
            return self.options.steps_per_dispatch
        if jax.default_backend() != "cpu":
            return 25
        # A call takes its memory from the system and gives it back, hundreds of
        # megabytes; a loop keeps it from step to step.
        return 4 if is_fast_in_loops(DTYPES[self.options.dtype]) else 1

    def init_state(self) -> TrainState:
        """Returns the state at step 0, where the steps want it.

        Raises:
            UserError: If the weights to start from cannot be had or do not fit.
        """
        weights = self.pretrained.read() if self.pretrained else {}
        create = jax.jit(self.create_state, out_shardings=self.parallel.state_sharding)
        return self.parallel.replicate(create(weights))

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """Shapes and shardings of the state in a checkpoint."""
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=self.parallel.state_sharding
            ),
            jax.eval_shape(self.create_state),
        )

    @functools.cached_property
    def cost(self) -> Cost:
        """What the network costs at the size of the images."""
        return measure_cost(self.model, self.data.image_shape)

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
    early_stopping = bind(EarlyStopping, sections["early_stopping"], "early_stopping")()
    loss = bind(Loss, sections["loss"], "loss")()
    make_model = functools.partial(
        bind(create_model, sections["model"], "model"),
        dtype=DTYPES[options.dtype],
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
    pretrained, trainable = None, None
    if options.init_from:
        pretrained = Pretrained(
            options.init_from, make_model, data.num_classes, data.image_shape
        )
    if options.trainable == "head":
        trainable = head_paths(make_model, data.image_shape)
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
        early_stopping=early_stopping,
        data=data,
        loaders=loaders,
        order=order,
        parallel=parallel,
        model=model,
        augment=augment,
        create_state=functools.partial(
            create_state, model, optimizer, ema, options.seed, data.image_shape
        ),
        pretrained=pretrained,
        train_step=make_train_step(
            optimizer=optimizer,
            schedule=schedule,
            augment=augment,
            ema=ema,
            trainable=trainable,
            skips=options.max_skipped_steps > 0,
            accumulate_steps=options.accumulate_steps,
            unroll=not is_fast_in_loops(DTYPES[options.dtype]),
            **shared,
        ),
        eval_step=make_eval_step(**shared),
    )
    patience = early_stopping.patience
    wanted = "0 without a validation split (data.val_fraction)"
    holds = patience == 0 or data.val is not None
    require("early_stopping.patience", patience, holds, wanted)
    steps, total = log.profile_steps, run.total_steps
    wanted = f"within the {total} steps of the run"
    require("log.profile_steps", steps, max(steps, default=0) <= total, wanted)
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
    per_device, count = options.batch_size // len(devices), options.accumulate_steps
    if per_device % count:
        divisors = [n for n in range(1, per_device + 1) if per_device % n == 0]
        raise UserError(
            f"accumulate_steps={count}: must divide the {per_device} images of a batch"
            f" on each device; choices: {', '.join(map(str, divisors))}"
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
    """Traces what is cheap to trace: what does not fit is said before compilation."""
    H, W, C = run.data.image_shape
    image = jax.ShapeDtypeStruct((2, H, W, C), jnp.uint8)
    std = run.config["normalize"].get("std", ())
    require("normalize.std", std, all(value > 0 for value in std), "above 0")

    def inputs(image: jax.Array) -> jax.Array:
        drawn = run.augment.draw(jax.random.key(0), 2, H, W)
        image = run.augment.apply(image, drawn.images)
        return bind(normalize, run.config["normalize"], "normalize")(image)

    try:
        jax.eval_shape(run.create_state)
        jax.eval_shape(inputs, image)
    except (ValueError, TypeError) as error:
        raise UserError(
            f"images of {H} x {W} x {C} do not fit the config: {error}"
        ) from error


def changed_since(run: Run, saved: Mapping[str, Any]) -> list[str]:
    """Compares a run with the config that its workdir was begun with.

    Args:
        run: The run as it is now.
        saved: Content of `config.json`.

    Returns:
        The changes that do no harm, as "key: before -> now".

    Raises:
        UserError: If another change would make the resumed run neither one thing nor
            the other.
    """
    # A workdir of an earlier version does not say what its data were.
    record = run.record if "dataset" in saved else run.config
    return harmless_changes(saved, record, "the workdir")
