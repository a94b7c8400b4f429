"""From a config to a run: everything checked and built, nothing compiled."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxattn.config.bind import DTYPES, bind
from jaxattn.data.augment import Augment
from jaxattn.data.datasets.registry import load_data
from jaxattn.data.pipeline import Loader, TrainOrder, check_loader, make_loader
from jaxattn.data.preprocess import Preprocess, check_normalization, make_frame
from jaxattn.data.source import Data
from jaxattn.errors import UserError, require, require_type
from jaxattn.models.cost import Cost, measure_cost
from jaxattn.ops import cpu_kernels
from jaxattn.ops.conv import is_fast_in_loops
from jaxattn.tasks.registry import make_task
from jaxattn.tasks.task import Task, refuse_transforms, require_task
from jaxattn.training import optim, own_objects
from jaxattn.training.checkpoints.pretrained import Pretrained
from jaxattn.training.devices.mesh import Devices, Parallel, compile_quickly
from jaxattn.training.devices.registry import make_parallel
from jaxattn.training.finetuning import (
    Finetuning,
    LayeredNetwork,
    Optimizers,
    make_finetuning,
    make_optimizers,
)
from jaxattn.training.guards.early_stopping import EarlyStopping
from jaxattn.training.options import Log, Options, choose_dtype
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


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """Everything that a run is made of, checked and not yet compiled."""

    config: dict[str, Any]
    own: dict[str, Any]  # what stands in the record for a user's own objects
    options: Options
    log: Log
    early_stopping: EarlyStopping
    task: Task
    data: Data
    loaders: dict[str, Loader]  # of the splits "train", "val" and "test"
    order: TrainOrder
    parallel: Parallel
    model: nn.Module
    preprocess: Preprocess
    augment: Augment
    schedule: optim.Schedule
    finetuning: Finetuning
    ema: Ema
    create_state: Callable[..., TrainState]
    pretrained: Pretrained | None

    @property
    def record(self) -> dict[str, Any]:
        """What `config.json` keeps: the config, and what the data turned out to be."""
        dataset = {
            "class_names": list(self.data.class_names),
            **self.preprocess.frame.describe(),
            "files": dict(self.data.files),
        }
        if self.data.class_colors is not None:
            dataset["class_colors"] = [list(rgb) for rgb in self.data.class_colors]
        return {**self.config, "dataset": dataset, **self.own}

    @functools.cached_property
    def train_step(self) -> TrainStep:
        """One step of training; with `unfreeze_epochs`, before the first of them."""
        return self.step_of(0)

    def phase_at(self, step: int) -> int:
        """Returns the phase of fine-tuning after so many steps; else always 0."""
        return self.finetuning.phase(step // self.steps_per_epoch)

    def step_of(self, phase: int) -> TrainStep:
        """Returns one step of training in a phase of fine-tuning."""
        options = self.options
        return make_train_step(
            self.model,
            self.task,
            self.finetuning.optimizer(phase),
            schedule=self.schedule,
            augment=self.augment,
            normalize=self.preprocess.normalize,
            ema=self.ema,
            frozen=self.finetuning.frozen(phase),
            skips=options.max_skipped_steps > 0,
            accumulate_steps=options.accumulate_steps,
            unroll=not is_fast_in_loops(DTYPES[options.dtype]),
            axis_name=self.parallel.axis_name,
        )

    @functools.cached_property
    def eval_step(self) -> EvalStep:
        """The evaluation of one batch."""
        return make_eval_step(
            self.model,
            self.task,
            normalize=self.preprocess.normalize,
            axis_name=self.parallel.axis_name,
        )

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
        # Each call takes its memory anew. A shorter last one would be compiled apart.
        most = (4, 3) if is_fast_in_loops(DTYPES[self.options.dtype]) else (1,)
        return next((k for k in most if self.steps_per_epoch % k == 0), most[0])

    def init_state(self, say: Callable[[str], None] = lambda _: None) -> TrainState:
        """Returns the state at step 0, where the steps want it.

        Args:
            say: Told what the state starts from, if that is not chance.

        Raises:
            UserError: If the weights to start from cannot be had or do not fit.
        """
        weights = self.pretrained.read(say) if self.pretrained else {}
        create = compile_quickly(self.create_state, self.parallel.state_sharding)
        return self.parallel.replicate(create(weights) if weights else create())

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


def build(
    config: Any,
    data: Data | Mapping[str, Any] | None = None,
    model: nn.Module | None = None,
    task: Task | None = None,
    devices: Devices | None = None,
    *,
    tell: Callable[[str], None] = lambda _: None,
) -> Run:
    """Checks a config and builds the run it describes; no program is compiled.

    An object that is given takes the place of the config's section of that name. A run
    records what it was given, and is resumed only with the same: arrays by a digest of
    their content, a network by how it prints.

    Args:
        config: An `ml_collections.ConfigDict`, or a mapping with its content.
        data: A `Data`, or a mapping from "train" and, if wanted, "val" and "test" to
            images uint8 `[N, H, W, C]` and what is to be learnt of them (labels, int
            `[N]`, in classification). Without "test" the validation or else the
            training images are tested. By default the config's section `data`.
        model: A network, called as `model.apply(variables, x, train=False)`, which
            computes in the dtype it says itself. By default the config's section
            `model`.
        task: What is learnt. By default the config's key `task`, with its section
            `loss`.
        devices: To train on; all of them by default.
        tell: Called with what goes on, where it may take long.

    Raises:
        UserError: If a key or value is wrong, or the data cannot be had.
    """
    values, sections = _split(config)
    if model is not None:
        require_type("model", model, nn.Module)
    if task is not None:
        require_task(task)
    options = choose_dtype(bind(Options, values, "config")(), tell)
    # What was chosen is recorded, and compared when the run is resumed.
    values |= {"dtype": options.dtype} if "dtype" in values else {}
    parallel = make_parallel(options, devices or jax.devices())
    # All that can be checked without the data comes before the data.
    parts = _bind_parts(sections)
    as_loader = bind(make_loader, sections["pipeline"], "pipeline")
    check_loader(**as_loader.keywords)
    given = {"data": data, "model": model, "task": task}
    given = {name: value for name, value in given.items() if value is not None}
    stands_for = {"data": "data", "model": "model", "task": "loss"}
    sections |= {stands_for[name]: {} for name in given}
    task = task or make_task(options.task, sections["loss"])
    how: dict[str, Any] = {
        "dtype": DTYPES[options.dtype],
        "axis_name": parallel.axis_name,
    }
    if model is None:
        task.make_model(sections["model"], ("",), **how)
    _make_optimizers(sections, optim.RunLength(options.num_epochs, 1))
    check_normalization(sections["normalize"])

    if data is None:
        tell(f"reading the data set {sections['data'].get('name')}")
        data = bind(load_data, sections["data"], "data")()
    elif not isinstance(data, Data):
        data = given["data"] = own_objects.make_data(data, task)
    own = own_objects.describe(given)
    if model is None:
        model = task.make_model(sections["model"], data.class_names, **how)
    else:
        data = own_objects.name_outputs(data, model, task)
        model = own_objects.for_devices(model, parallel)
    frame = make_frame(data.image_shape, data.resize_px, is_canvas=data.is_canvas)
    preprocess = bind(Preprocess, sections["normalize"], "normalize", frame=frame)()
    loaders = {}
    for split, source in data.splits.items():
        tell(f"reading {len(source):,} {split} images")
        loaders[split] = as_loader(source)
    order = TrainOrder(len(data.train), options.batch_size, options.seed)
    length = optim.RunLength(options.num_epochs, order.steps_per_epoch)
    schedule, optimizers = _make_optimizers(sections, length)
    shape, origin = data.image_shape, options.init_from
    finetuning = make_finetuning(options, LayeredNetwork(model, shape), optimizers)
    optimizer = finetuning.optimizer()
    run = Run(
        config={**values, **sections},
        own=own,
        options=options,
        task=task,
        data=data,
        loaders=loaders,
        order=order,
        parallel=parallel,
        model=model,
        preprocess=preprocess,
        schedule=schedule,
        finetuning=finetuning,
        create_state=functools.partial(
            create_state, model, optimizer, parts["ema"], options.seed, shape
        ),
        pretrained=Pretrained(origin, model, data, preprocess) if origin else None,
        **parts,
    )
    _check_run(run)
    cpu_kernels.prepare()  # a mistake in the config was told before
    return run


def _bind_parts(sections: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what sections describe that needs neither data nor network."""
    kinds = {"log": Log, "augment": Augment, "ema": Ema}
    kinds |= {"early_stopping": EarlyStopping}
    return {name: bind(kind, sections[name], name)() for name, kind in kinds.items()}


def _split(config: Any) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Separates a config into its own values and its sections, as plain dicts."""
    values = config.to_dict() if hasattr(config, "to_dict") else config
    require_type("config", values, Mapping)
    plain = dict(values)
    sections = {key: plain.pop(key, {}) for key in _SECTIONS}
    for key, section in sections.items():
        require_type(f"config.{key}", section, Mapping)
    return plain, sections


def _make_optimizers(
    sections: Mapping[str, Any], length: optim.RunLength
) -> tuple[optim.Schedule, Optimizers]:
    make = bind(optim.make_schedule, sections["schedule"], "schedule", length=length)
    schedule, rate = make(), make.keywords["learning_rate"]
    of = {"schedule": schedule, "length": length, "learning_rate": rate}
    return schedule, bind(make_optimizers, sections["optimizer"], "optimizer", **of)()


def _check_run(run: Run) -> None:
    """Says before compilation what does not fit."""
    patience = run.early_stopping.patience
    wanted = "0 without a validation split (data.val_fraction)"
    holds = patience == 0 or run.data.val is not None
    require("early_stopping.patience", patience, holds, wanted)
    steps, total = run.log.profile_steps, run.total_steps
    holds = total < 2**31
    require("num_epochs", run.options.num_epochs, holds, "below 2**31 steps in all")
    wanted = f"within the {total} steps of the run"
    require("log.profile_steps", steps, max(steps, default=0) <= total, wanted)
    refuse_transforms(run.task, run.augment)
    _check_shapes(run)


def _check_shapes(run: Run) -> None:
    """Traces what is cheap to trace."""
    H, W, C = run.data.image_shape
    image = jax.ShapeDtypeStruct((2, H, W, C), jnp.uint8)

    def inputs(image: jax.Array) -> jax.Array:
        drawn = run.augment.draw(jax.random.key(0), 2, H, W)
        return run.preprocess.normalize(run.augment.apply(image, drawn.images))

    try:
        jax.eval_shape(run.create_state)
        jax.eval_shape(inputs, image)
    except (ValueError, TypeError) as error:
        raise UserError(
            f"images of {H} x {W} x {C} do not fit the config: {error}"
        ) from error
