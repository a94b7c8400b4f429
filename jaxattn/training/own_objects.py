"""A user's own arrays and network in place of what a config names."""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxattn.data.source import ArraySource, Data, Source, digest
from jaxattn.errors import UserError
from jaxattn.tasks.task import Task, moved_targets
from jaxattn.training.devices.mesh import Parallel

_SPLITS = ("train", "val", "test")


def describe(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a run's record says of its user's objects; empty without any.

    Two objects that train alike are described alike in every process: arrays by a
    digest, a network and a task by how they print.

    Args:
        given: Objects by the name of the section that they stand for.
    """
    described = {name: _describe(value) for name, value in given.items()}
    return {"own": described} if described else {}


def make_data(given: Mapping[str, Any], task: Task) -> Data:
    """Returns a data set of a user's own arrays.

    Args:
        given: From "train" and, if wanted, "val" and "test" to images uint8
            `[N, H, W, C]` and their targets.
        task: What is learnt of them.

    Raises:
        UserError: If a split is unknown or missing, or arrays do not fit.
    """
    wanted = "train and, if wanted, val and test"
    if not isinstance(given, Mapping):
        raise UserError(f"data: {type(given).__name__}; must be a mapping of {wanted}")
    if (unknown := sorted(set(given) - set(_SPLITS))) or "train" not in given:
        found = ", ".join(map(str, unknown)) or "no train"
        raise UserError(f"data: has {found}; must be {wanted}")
    sources = {split: _make_source(given[split], split, task) for split in given}
    shapes = {split: source.images.shape[1:] for split, source in sources.items()}
    for split, shape in shapes.items():
        if shape != shapes["train"]:
            raise UserError(
                f"data[{split!r}]: images of {list(shape)}, must be of"
                f" {list(shapes['train'])} as in train"
            )
    names = [task.find_class_names(source) for source in sources.values()]
    val = sources.get("val")
    return Data(
        name="own arrays",
        train=sources["train"],
        val=val,
        test=sources.get("test", val or sources["train"]),
        class_names=max(names, key=len),
        image_shape=shapes["train"],
        is_canvas=bool(moved_targets(task)),  # none of which a crop may cut off
    )


def name_outputs(data: Data, model: nn.Module, task: Task) -> Data:
    """Returns data whose classes are those that a user's network tells apart.

    Raises:
        UserError: If the network does not take the images, or does not fit the classes.
    """
    image = jax.ShapeDtypeStruct((2, *data.image_shape), jnp.float32)
    call = functools.partial(model.init_with_output, jax.random.key(0), train=False)
    try:
        outputs, _ = jax.eval_shape(call, image)
    except (ValueError, TypeError) as error:
        raise UserError(
            f"model={type(model).__name__}: does not take images"
            f" [N, {', '.join(map(str, data.image_shape))}]: {error}"
        ) from error
    names = task.name_outputs(outputs, data.class_names)
    return dataclasses.replace(data, class_names=names)


def for_devices(model: nn.Module, parallel: Parallel) -> nn.Module:
    """Returns a user's network as a way to run it over devices needs it.

    Raises:
        UserError: If it cannot be had so.
    """
    if parallel.axis_name is None:
        return model
    if not hasattr(model, "axis_name"):
        raise UserError(
            f"data_parallel='pmap': model={type(model).__name__} has no attribute"
            " axis_name, over which its BatchNorm would average; use 'jit'"
        )
    return model.clone(axis_name=parallel.axis_name)


def _make_source(given: Any, split: str, task: Task) -> ArraySource:
    key = f"data[{split!r}]"
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise UserError(f"{key}: must be a pair of images and targets")
    images = np.asarray(given[0])
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) == 0:
        raise UserError(
            f"{key}: images are {images.dtype} {list(images.shape)}, must be uint8"
            " [N, H, W, C] with N at least 1"
        )
    source: Any = task.make_source(images, given[1], key)
    return source


def _describe(value: Any) -> Any:
    if isinstance(value, Data):
        # By source, for one that serves two splits is described once.
        own = {id(v): (k, v) for k, v in reversed(value.splits.items())}
        return {split: _describe_source(source) for split, source in own.values()}
    # Two processes put one function in two places; and a message is one line.
    return " ".join(re.sub(r" at 0x[0-9a-f]+", "", repr(value)).split())


def _describe_source(source: Source) -> str:
    if isinstance(source, ArraySource):
        return digest(source.images, *source.targets.values())
    return f"{len(source)} examples of {type(source).__name__}"
