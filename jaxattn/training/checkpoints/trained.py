"""A trained network, as a workdir or the package holds it."""

import contextlib
import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxattn.atomic import write_json
from jaxattn.config.bind import DTYPES, bind
from jaxattn.config.record import read_record
from jaxattn.data.crops import Crops
from jaxattn.data.preprocess import Frame, Preprocess, make_frame
from jaxattn.errors import UserError, choose, reason, require, reraise_machine_fault
from jaxattn.models.classes import abstract_variables
from jaxattn.paths import local_path
from jaxattn.tasks.registry import make_task
from jaxattn.tasks.task import Task
from jaxattn.text import printable
from jaxattn.training.checkpoints.checkpoint import BEST_PREFIX, Checkpoints
from jaxattn.training.guards.lock import workdir_lock
from jaxattn.training.own_objects import describe
from jaxattn.weights import list_weights, read_weights

SPLITS = ("test", "val", "train")
# Keys of the section `data` that are not accepted with images of one size.
_OF_PHOTOS = ("image_size", "resize_px", "crop_scale", "crop_ratio", "on_bad_image")
WEIGHTS = {
    "best": ("raw", True),
    "best_ema": ("ema", True),
    "last": ("raw", False),
    "last_ema": ("ema", False),
}
"""Names of weights: what to restore, and whether the best by validation or the last."""


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """A network with its weights and all that is needed to feed it.

    Attributes:
        model: The network.
        variables: Its parameters and batch statistics, NumPy arrays.
        task: What it has learnt.
        preprocess: From images of any size to the network's input.
        class_names: The name of each class.
        config: Of its run, by section.
        step: Training steps done; 0 for imported weights.
    """

    model: nn.Module
    variables: Any
    task: Task
    preprocess: Preprocess
    class_names: tuple[str, ...]
    config: dict[str, Any]
    step: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(H, W, C)` of the images it was trained on."""
        return self.preprocess.frame.image_shape

    @property
    def class_colors(self) -> tuple[tuple[int, int, int], ...] | None:
        """Red, green and blue of each class, where its data said them."""
        colors = self.config["dataset"].get("class_colors")
        return None if colors is None else tuple((r, g, b) for r, g, b in colors)


def load_trained(
    workdir: str | os.PathLike[str] | None = None,
    *,
    weights: str = "best",
    model: nn.Module | None = None,
    task: Task | None = None,
) -> Trained:
    """Loads the network of a workdir, finished or not, or one of the package's own.

    Args:
        workdir: Folder of a run, or of imported weights.
        weights: "best" (on the validation split; the last ones of a run without
            validation), "last", or the moving averages "best_ema" and "last_ema";
            or, without a workdir, one of `jaxattn.weights.list_weights()`.
        model: The network of a run that `build` was given one for.
        task: The task, likewise.

    Raises:
        UserError: If the folder holds no run, no checkpoint, or no such weights; if
            both are given, or neither.
    """
    own = list_weights()
    choose("weights", weights, (*WEIGHTS, *own))
    if weights in own:
        wanted = f"left out: {weights} is no run's"
        require("workdir", workdir, workdir is None, wanted)
        return _load_own(weights)
    if workdir is None:
        raise UserError(
            f"workdir=None: must be given, or weights one of {', '.join(own)}"
        )
    return _load_run(local_path(workdir, "workdir").resolve(), weights, model, task)


def _check_own(key: str, given: str, recorded: str) -> None:
    """Checks that an object is the one that a run was built with, by how it prints."""
    if given == recorded:
        return
    pairs = enumerate(zip(given, recorded, strict=False))
    first = next((i for i, (a, b) in pairs if a != b), min(len(given), len(recorded)))
    here, there = (t[max(first - 20, 0) : first + 40] for t in (given, recorded))
    raise UserError(
        f"{key}: another object than the run's: it prints as ...{here}..., the run's as"
        f" ...{there}..."
    )


def _has_own_network(config: dict[str, Any]) -> bool:
    return bool({"model", "task"} & set(config.get("own", {})))


def _load_own(name: str) -> Trained:
    """Loads weights that come with the package."""
    config, variables, step = read_weights(name)
    return _make_untrained(config)(variables=variables, step=step)


def _load_run(
    workdir: pathlib.Path, weights: str, model: nn.Module | None, task: Task | None
) -> Trained:
    config = read_config(workdir)
    kind, is_best = WEIGHTS[weights]
    if kind == "ema" and not config.get("ema", {}).get("decay"):
        raise UserError(f"weights={weights!r}: the run in {workdir} kept no average")
    own = config.get("own", {})
    for key, value in (("model", model), ("task", task)):
        wanted = "given, since the run was built with an object of its own"
        require(key, value, value is not None or key not in own, wanted)
        if key in own:
            _check_own(key, describe({key: value})["own"][key], own[key])
    with _naming(workdir):
        untrained = _make_untrained(config, model, task)
        given = untrained.keywords
        target = _target(given["model"], given["preprocess"], kind, config)
        sources = _sources(kind, config)
    metric = best_metric(given["task"], kind) if is_best else None
    restored = _restore(workdir, target, metric)
    if restored is None:
        raise UserError(f"workdir {workdir}: holds no checkpoint yet")
    state, step = jax.device_get(restored)
    variables = {name: state[source] for name, source in sources.items()}
    return untrained(variables=variables, step=step)


class Weights(NamedTuple):
    """What a run has learnt, without a network to put it into.

    Attributes:
        variables: Parameters and batch statistics, NumPy arrays.
        class_names: The name of each class.
        config: Of the run, by section.
    """

    variables: Any
    class_names: tuple[str, ...]
    config: dict[str, Any]


def load_weights(workdir: str | os.PathLike[str]) -> Weights:
    """Loads the best weights of a run, whose network may be a user's own.

    Args:
        workdir: Folder of the run.

    Raises:
        UserError: As `load_trained`.
    """
    workdir = local_path(workdir, "workdir").resolve()
    config = read_config(workdir)
    class_names = tuple(config["dataset"]["class_names"])
    if not _has_own_network(config):
        return Weights(load_trained(workdir).variables, class_names, config)
    checkpoints = Checkpoints(workdir, read_only=True)
    try:
        target = checkpoints.saved_shapes(_sources("raw", {}).values())
        steps = checkpoints.all_steps()
        # What an own task calls its figure, only the checkpoints know.
        known = checkpoints.metrics(steps[-1]) if steps else {}
    finally:
        checkpoints.close()
    metrics = (k for k in known if k.startswith(BEST_PREFIX) and not k.endswith("_ema"))
    restored = _restore(workdir, target, next(metrics, None))
    if restored is None:
        raise UserError(f"workdir {workdir}: holds no checkpoint yet")
    return Weights(jax.device_get(restored[0]), class_names, config)


def best_metric(task: Task, kind: str) -> str:
    """Returns what checkpoints call the figure by which weights are best.

    Args:
        task: What is learnt.
        kind: "raw", or "ema" (the moving average).
    """
    return f"val_{task.metric}" + ("_ema" if kind == "ema" else "")


def require_no_run(workdir: str | os.PathLike[str]) -> None:
    """Checks that a folder, which need not exist, holds no run.

    Raises:
        UserError: If it does.
    """
    workdir = local_path(workdir, "workdir").resolve()
    if (workdir / "config.json").exists():
        raise UserError(f"workdir {workdir}: holds a run already; name another one")


def write_trained(
    workdir: str | os.PathLike[str], config: Any, variables: Any, step: int = 0
) -> None:
    """Makes a workdir of weights, which `load_trained` loads and nothing resumes.

    Args:
        workdir: The folder, made if missing; it must not hold a run.
        config: Content of its `config.json`.
        variables: `params` and, if there are any, `batch_stats`.
        step: Training steps done.

    Raises:
        UserError: If the folder holds a run, or cannot be written.
    """
    require_no_run(workdir)
    workdir = local_path(workdir, "workdir").resolve()
    with workdir_lock(workdir):
        checkpoints = Checkpoints(workdir)
        state = {"batch_stats": {}, **jax.tree.map(jnp.asarray, variables)}
        checkpoints.save(step, state, None)
        checkpoints.close()
        write_json(workdir / "config.json", config)


def network_target(workdir: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Returns shapes of the weights that every checkpoint of a workdir holds.

    None if they are those of a user's own network, which no config can make.

    Raises:
        UserError: If the folder's `config.json` does not say.
    """
    workdir = local_path(workdir, "workdir").resolve()
    config = read_config(workdir)
    if _has_own_network(config):
        return None
    with _naming(workdir):
        given = _make_untrained(config).keywords
        return _target(given["model"], given["preprocess"], "raw", config)


def _make_untrained(
    config: dict[str, Any], model: nn.Module | None = None, task: Task | None = None
) -> functools.partial[Trained]:
    """Returns all of a `Trained` but its variables and its step."""
    class_names = tuple(map(printable, config["dataset"]["class_names"]))
    dtype = config.get("dtype", "float32")
    choose("dtype", dtype, DTYPES)
    if task is None:
        task = make_task(config.get("task", "classification"), config.get("loss", {}))
    if model is None:
        model = task.make_model(config["model"], class_names, dtype=DTYPES[dtype])
    as_preprocess = bind(
        Preprocess, config["normalize"], "normalize", frame=_frame(config)
    )
    return functools.partial(
        Trained,
        model=model,
        task=task,
        preprocess=as_preprocess(),
        class_names=class_names,
        config=config,
    )


def _frame(config: dict[str, Any]) -> Frame:
    """The part of an image that the network of a config was trained to see."""
    dataset, section = config["dataset"], config.get("data", {})
    image_shape: Any = tuple(dataset["image_shape"])
    if "resize_px" in dataset:
        is_canvas = dataset.get("is_canvas", False)
        return make_frame(image_shape, dataset["resize_px"], is_canvas=is_canvas)
    # Of version 0.1.0, where the section tells whether images were of many sizes.
    name = section.get("name", "")
    is_given = any(section.get(key) for key in _OF_PHOTOS)
    is_photos = name in ("imagefolder", "imagenet2012")
    if is_photos or (name.startswith("tfds:") and is_given):
        resize_px = section.get("resize_px")
        return Crops(image_size=image_shape[0], resize_px=resize_px).frame
    return Frame(image_shape)


def read_config(workdir: pathlib.Path) -> dict[str, Any]:
    """Returns the content of a run's `config.json`.

    Raises:
        UserError: If there is none, or it is not a run's.
    """
    path = workdir / "config.json"
    try:
        config = read_record(path)
        for key in ("model", "normalize"):
            dict(config[key])
        config.get("ema", {}).get("decay")
    except FileNotFoundError:
        raise UserError(f"workdir {workdir}: holds no run (no config.json)") from None
    except OSError as error:
        reraise_machine_fault(error)
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a run's config ({error!r})") from error
    if "dataset" not in config:
        raise UserError(f"{path}: of an earlier version; resume the run once")
    return config


@contextlib.contextmanager
def _naming(workdir: pathlib.Path) -> Iterator[None]:
    """Turns whatever a damaged config leads to into one line."""
    try:
        yield
    except Exception as error:  # Flax, JAX and our own, on values of any type
        reraise_machine_fault(error)
        raise UserError(
            f"{workdir / 'config.json'}: not a run's config ({reason(error)})"
        ) from error


def _sources(kind: str, config: dict[str, Any]) -> dict[str, str]:
    """Where in the train state each collection of variables is."""
    if kind == "raw":
        return {"params": "params", "batch_stats": "batch_stats"}
    averaged = config["ema"].get("batch_stats") == "average"
    stats = "ema_batch_stats" if averaged else "batch_stats"
    return {"params": "ema_params", "batch_stats": stats}


def _target(
    model: nn.Module, preprocess: Preprocess, kind: str, config: dict[str, Any]
) -> dict[str, Any]:
    """The part of the train state to restore."""
    variables = abstract_variables(model, preprocess.frame.image_shape)
    sources = _sources(kind, config)
    return {sources[name]: variables.get(name, {}) for name in sources}


def _restore(
    workdir: pathlib.Path, target: Any, metric: str | None
) -> tuple[Any, int] | None:
    checkpoints = Checkpoints(workdir, read_only=True)
    try:
        best = metric and checkpoints.restore_best(target, metric, partial=True)
        # Without a validation split the last weights are a run's result.
        return best or checkpoints.restore_latest(target, partial=True)
    finally:
        checkpoints.close()
