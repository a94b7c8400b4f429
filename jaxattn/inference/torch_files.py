"""Weights under PyTorch's names, in and out of workdirs.

`.pth` files need PyTorch; `.safetensors` files do not.
"""

import contextlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxattn.atomic import replacing, write_json
from jaxattn.data.crops import Crops
from jaxattn.data.datasets.cifar import CIFAR10_CLASSES
from jaxattn.data.preprocess import check_normalization
from jaxattn.errors import UserError, choose, reason, require, reraise_machine_fault
from jaxattn.models.classes import head_paths, with_classes_of
from jaxattn.models.published import (
    CONFIG,
    LIBRARY,
    Published,
    is_address,
    read_published,
)
from jaxattn.models.registry import create_model, task_of
from jaxattn.models.safetensors_files import SUFFIX, write_safetensors
from jaxattn.models.stems import find_stem, is_for_photos
from jaxattn.models.torch_layouts import torchvision_names
from jaxattn.models.torch_weights import from_torch, import_pytorch, to_torch
from jaxattn.text import shortened
from jaxattn.training.checkpoints.trained import Trained, require_no_run, write_trained
from jaxattn.training.records.report import versions
from jaxattn.weights import imagenet_classes, without_places

FORMATS = ("pth", "safetensors")

_RESERVED = {"name", "num_classes", "dtype", "axis_name"}
_OF_DENSE = (
    "is_canvas",
    "scales_up",
    "class_colors",
)  # keys of a config's section `dataset`
_SMALL_PX = 32  # of networks that are not for photos
_CANVAS_PX = 512  # of networks that see images whole
_VGG_A_MEAN_STD = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_CIFAR10_MEAN_STD = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_IMAGENET_MEAN_STD = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def published_normalization(
    model: str,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and std of the images that a network's authors trained it on.

    Args:
        model: One of `list_models()`.
    """
    if model in ("enhanced_efficient_resnet", "efficient_resnet"):
        return _CIFAR10_MEAN_STD
    return _VGG_A_MEAN_STD if model.startswith("vgg_a") else _IMAGENET_MEAN_STD


def import_torch(
    path: str | os.PathLike[str],
    workdir: str | os.PathLike[str],
    *,
    model: str | None = None,
    class_names: Sequence[str] | None = None,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
) -> int:
    """Makes a workdir of published weights, for prediction and evaluation.

    What is not given is what stands beside the weights; else it is guessed by their
    number of classes and by the network.

    Args:
        path: The file, or an address of a hub or of torchvision; see
            `jaxattn.models.published`.
        workdir: Folder to make; it must not hold a run.
        model: One of `list_models()`.
        class_names: The name of each logit. Guessed are ImageNet's names of 1,000
            classes, CIFAR-10's of 10, and numbers.
        image_size: Height and width of the network's images, pixels. Guessed are 224
            of a network for photos, and 32.
        mean: Of the normalisation it was trained with, per channel, in [0, 1]. Guessed
            as the network was published.
        std: As `mean`.
        model_kwargs: Further keywords of the network, such as `base_width`.

    Returns:
        The number of parameters.

    Raises:
        UserError: If the weights cannot be had, or they or a value do not fit.
    """
    given = {"mean": mean, "std": std}
    check_normalization(given, key="", channels=3)
    wanted = image_size is None or image_size >= 1
    require("image_size", image_size, wanted, "at least 1")
    is_unique = len(set(class_names or ())) == len(class_names or ())
    require("class_names", tuple(class_names or ()), is_unique, "all different")
    kwargs = dict(model_kwargs or {})
    for key in _RESERVED & kwargs.keys():
        raise UserError(f"model_kwargs.{key}: is set by other arguments; leave it out")
    if model is not None:  # a mistake is told before anything is read
        create_model(model, **kwargs)
    require_no_run(workdir)
    published = _read(path)
    config = _complete(path, published, model, kwargs, class_names, image_size, given)
    names, shape = config["dataset"]["class_names"], config["dataset"]["image_shape"]
    module = create_model(**config["model"], num_classes=len(names))
    try:
        example = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
        variables = from_torch(module, published.state, example)
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise UserError(f"{path}: {shortened(reason(error))}") from error
    write_trained(workdir, config, variables)
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def _read(path: str | os.PathLike[str]) -> Published:
    origin = os.fspath(path)
    try:
        return read_published(origin)
    except UserError as error:
        if not is_address(origin):
            raise
        raise UserError(f"{origin}: {error}") from error


def _complete(
    path: str | os.PathLike[str],
    published: Published,
    model: str | None,
    kwargs: dict[str, Any],
    class_names: Sequence[str] | None,
    image_size: int | None,
    normalize: dict[str, Any],
) -> dict[str, Any]:
    """Returns the config of a workdir: what is given, what is known, and guesses."""
    known = {
        key: value
        for key, value in published.config.get("model", {}).items()
        if value is not None and key not in _RESERVED - {"name"}
    }
    name = model or known.get("name")
    require("model", name, name is not None, "given: the weights do not name theirs")
    # Keywords that come with the weights are those of their own network.
    kwargs = {"name": name} | (known if known.get("name") == name else {}) | kwargs
    dataset = _frame(published, kwargs, image_size)
    names = class_names or published.config.get("dataset", {}).get("class_names")
    if names is None:
        names = _guess_names(_count_classes(published, kwargs, dataset["image_shape"]))
    defaults = zip(
        ("mean", "std"), published_normalization(kwargs["name"]), strict=True
    )
    section = {**dict(defaults), **published.config.get("normalize", {})}
    section |= {key: value for key, value in normalize.items() if value is not None}
    return {
        "task": task_of(kwargs["name"]),
        "model": kwargs,
        "normalize": {key: list(section[key]) for key in ("mean", "std")},
        "dataset": {"class_names": list(names), **dataset},
        "imported_from": os.fspath(path),
        "versions": versions(),
    }


def _frame(
    published: Published, kwargs: Mapping[str, Any], image_size: int | None
) -> dict[str, Any]:
    """Returns what is shown of images to a network, in the form of a config."""
    known = published.config.get("dataset", {})
    if image_size is None and "image_shape" in known:
        shape = tuple(known["image_shape"])
        further = {key: known[key] for key in _OF_DENSE if key in known}
        return {"image_shape": shape, "resize_px": known.get("resize_px"), **further}
    if task_of(kwargs["name"]) != "classification":  # sees images whole
        side = image_size or _CANVAS_PX
        return {"image_shape": (side, side, 3), "resize_px": None, "is_canvas": True}
    if is_for_photos(find_stem(create_model(**kwargs))):
        crops = Crops() if image_size is None else Crops(image_size=image_size)
        frame = crops.frame
        return {"image_shape": frame.image_shape, "resize_px": frame.resize_px}
    side = image_size or _SMALL_PX
    return {"image_shape": (side, side, 3), "resize_px": None}


def _count_classes(
    published: Published, kwargs: dict[str, Any], shape: tuple[int, int, int]
) -> int:
    module = create_model(**kwargs)
    renamed = torchvision_names(published.state)
    state = {renamed[name]: array for name, array in published.state.items()}
    return with_classes_of(module, state, head_paths(module, shape)).num_classes  # pyright: ignore


def _guess_names(num_classes: int) -> Sequence[str]:
    known = {len(names): names for names in (imagenet_classes(), CIFAR10_CLASSES)}
    return known.get(num_classes, tuple(map(str, range(num_classes))))


def export_torch(
    trained: Trained, path: str | os.PathLike[str], file_format: str | None = None
) -> None:
    """Writes the weights of a network as a state dict under PyTorch's names.

    Args:
        trained: The network.
        path: The file, whole or not written; its folder is made.
        file_format: "pth", PyTorch's own; or "safetensors", which needs no PyTorch,
            and a `config.json` beside it by which `import_torch` knows the network.
            By default as the file's name ends.

    Raises:
        UserError: If the format's package is not installed, the file cannot be
            written, or another `config.json` is in its place.
    """
    path = pathlib.Path(path)
    is_safe = path.suffix == SUFFIX
    file_format = file_format or ("safetensors" if is_safe else "pth")
    choose("file_format", file_format, FORMATS)
    if file_format == "safetensors":
        wanted = f"a name that ends in {SUFFIX}, by which it is known"
        require("path", str(path), is_safe, wanted)
        _require_own_config(path.parent)
    state = to_torch(trained.model, trained.variables)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if file_format == "safetensors":
            write_safetensors(path, state)
            write_json(path.parent / CONFIG, _describe(trained))
        else:
            _write_pth(path, state)
    except (OSError, RuntimeError) as error:  # torch raises the latter too
        reraise_machine_fault(error)
        raise UserError(f"{path}: cannot be written ({reason(error)})") from error


def _write_pth(path: pathlib.Path, state: Mapping[str, np.ndarray]) -> None:
    torch = import_pytorch()
    # Copies, for PyTorch warns of arrays that cannot be written to.
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in state.items()}
    with replacing(path) as temporary:
        torch.save(tensors, temporary)


def _describe(trained: Trained) -> dict[str, Any]:
    """Returns what `read_published` reads beside weights."""
    frame = trained.preprocess.frame
    dataset = {"class_names": trained.class_names, **frame.describe()}
    if trained.class_colors is not None:
        dataset["class_colors"] = trained.class_colors
    config = without_places(trained.config) | {"dataset": dataset}
    return {"library_name": LIBRARY, "step": trained.step, "config": config}


def _require_own_config(folder: pathlib.Path) -> None:
    """Checks that no run and no other program's file would be overwritten."""
    path = folder / CONFIG
    with contextlib.suppress(OSError, ValueError):
        content = json.loads(path.read_text())
        if isinstance(content, dict) and content.get("library_name") == LIBRARY:
            return
    if path.exists():
        raise UserError(
            f"{path}: is there already, and of another kind; another folder"
        )
