"""Weights that others have published: in a file, on a hub, with torchvision.

What a file is called, an address, is one of

    a path of this machine          `.safetensors`, a file of PyTorch, or a folder that
                                    holds a repository's files
    hf:OWNER/NAME                   the weights of a repository on a hub
    hf:OWNER/NAME/FILE              one file of it
    torchvision:NAME                a network of torchvision, such as resnet50
    torchvision:CLASS.MEMBER        such as ResNet50_Weights.IMAGENET1K_V1

A hub's files come from the cache of huggingface_hub if they are there, else from the
hub: a cached file is not asked about again. torchvision's come from PyTorch's cache.
"""

import importlib
import json
import os
import pathlib
import re
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from jaxattn.errors import UserError, choose, reason, reraise_machine_fault, suggest
from jaxattn.models.registry import list_models
from jaxattn.models.safetensors_files import SUFFIX
from jaxattn.models.torch_weights import import_pytorch, read_state_dict
from jaxattn.paths import local_path
from jaxattn.web import unreachable

LIBRARY = "jaxattn"
CONFIG = "config.json"
WEIGHTS = "model.safetensors"

_HUB, _TORCHVISION = "hf:", "torchvision:"
_REPOSITORY = re.compile(r"hf:([\w.-]+/[\w.-]+)(?:/(.+))?")
# Of the files of a repository, the first that is there.
_WEIGHTS = (WEIGHTS, "pytorch_model.bin")
_ENDINGS = (SUFFIX, ".bin", ".pth", ".pt")
_ASK_TIMEOUT_S = 6.0

# Networks by timm's names, where they are not ours.
_TIMM_MODELS: dict[str, dict[str, Any]] = {
    "mobilenetv2_100": {"name": "mobilenet_v2"},
    "seresnet50": {
        "name": "resnet50",
        "attention": "se",
        "attention_kwargs": {"biases": True},
    },
}


class Published(NamedTuple):
    """Weights, and what is known of the network that they are for.

    Attributes:
        state: Arrays by PyTorch's names.
        config: In the form of a run's `config.json`, with the sections that are known
            of "model", "normalize" and "dataset".
    """

    state: dict[str, np.ndarray]
    config: dict[str, Any]


def is_address(origin: str) -> bool:
    """Whether a text is no path, but an address of a hub or of torchvision."""
    return origin.startswith((_HUB, _TORCHVISION))


def check_address(origin: str, key: str) -> None:
    """Checks how an address or a path is written; asks no one.

    Args:
        origin: The text.
        key: What the message calls it.

    Raises:
        UserError: If it is neither.
    """
    if not isinstance(origin, str) or not is_address(origin):
        local_path(origin, key)
    elif origin.startswith(_HUB) and not _REPOSITORY.fullmatch(origin):
        raise UserError(f"{key}={origin}: must be hf:OWNER/NAME or hf:OWNER/NAME/FILE")


def parse_repository(address: str, key: str) -> str:
    """Returns `OWNER/NAME` of `hf:OWNER/NAME`.

    Args:
        address: The text.
        key: What the message calls it.

    Raises:
        UserError: If it is not of that form.
    """
    match = _REPOSITORY.fullmatch(address)
    if match is None or match[2]:
        raise UserError(f"{key}={address}: must be hf:OWNER/NAME")
    return match[1]


def read_published(origin: str) -> Published:
    """Reads weights that stand in a file, on a hub, or that torchvision has.

    Args:
        origin: A path, or an address.

    Raises:
        UserError: If they cannot be had, or are none.
    """
    check_address(origin, "weights")
    if match := _REPOSITORY.fullmatch(origin):
        weights, config = fetch(match[1], match[2])
        return Published(read_state_dict(weights), _read_config(config))
    if origin.startswith(_TORCHVISION):
        return _read_torchvision(origin.removeprefix(_TORCHVISION))
    path = local_path(origin, "weights")
    if path.is_dir():
        path = path / WEIGHTS
    # What lies beside a file of PyTorch need not be about it.
    config = path.parent / CONFIG if path.suffix == SUFFIX else None
    return Published(read_state_dict(path), _read_config(config))


# Of a hub --------------------------------------------------------------------------


def import_hub() -> ModuleType:
    """Imports huggingface_hub.

    Raises:
        UserError: If it is not installed.
    """
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise UserError(
            "huggingface_hub is needed for a hub: pip install huggingface_hub"
        ) from error


def fetch(
    repository: str, file: str | None = None
) -> tuple[pathlib.Path, pathlib.Path | None]:
    """Returns where a repository's weights and its `config.json` lie on this machine.

    Args:
        repository: `OWNER/NAME`.
        file: Of the weights; by default what the repository calls its weights.

    Returns:
        The two files; the second is None if there is none.

    Raises:
        UserError: If they are not in the cache and the hub does not have them or does
            not answer.
    """
    hub = import_hub()
    api = hub.HfApi(library_name=LIBRARY)
    names = (file,) if file else _WEIGHTS
    cached = (_cached(hub, repository, name) for name in names)
    if weights := next(filter(None, cached), None):
        return weights, _cached(hub, repository, CONFIG)
    listed = _list(hub, api, repository)
    if not (found := [name for name in names if name in listed]):
        choices = suggest(names[0], [n for n in listed if n.endswith(_ENDINGS)])
        raise UserError(f"holds no {' or '.join(names)}; {choices}")
    has_config = CONFIG in listed
    try:
        weights = pathlib.Path(api.hf_hub_download(repository, found[0]))
        config = api.hf_hub_download(repository, CONFIG) if has_config else None
    except Exception as error:  # of the network, of the hub and of the disk
        reraise_machine_fault(error)
        raise UserError(f"cannot be downloaded ({reason(error)})") from error
    return weights, pathlib.Path(config) if config else None


def _cached(hub: ModuleType, repository: str, name: str) -> pathlib.Path | None:
    found = hub.try_to_load_from_cache(repository, name)
    return pathlib.Path(found) if isinstance(found, str) else None


def _list(hub: ModuleType, api: Any, repository: str) -> list[str]:
    """Returns the names of a repository's files, as the hub has them."""
    # The client itself may wait for minutes.
    if failure := unreachable(api.endpoint):
        raise UserError(f"not in the cache, and the hub cannot be reached ({failure})")
    try:
        info = api.model_info(repository, timeout=_ASK_TIMEOUT_S)
    except hub.errors.RepositoryNotFoundError as error:
        raise UserError("the hub has no such repository, or hides it") from error
    except Exception as error:  # huggingface_hub's, and those of its HTTP library
        reraise_machine_fault(error)
        raise UserError(
            f"not in the cache, and the hub does not give it ({reason(error)})"
        ) from error
    return [file.rfilename for file in info.siblings or ()]


def _read_config(path: pathlib.Path | None) -> dict[str, Any]:
    """Returns what a file beside weights says of them, if it is one of ours or timm's.

    Raises:
        UserError: If it is one, and damaged.
    """
    if path is None or not path.exists():
        return {}
    try:
        content = json.loads(path.read_text())
        if content.get("library_name") == LIBRARY:
            return {
                k: dict(content["config"][k]) for k in ("model", "normalize", "dataset")
            }
        if "pretrained_cfg" in content:
            return _from_timm(content["architecture"], content["pretrained_cfg"])
    except OSError as error:
        reraise_machine_fault(error)
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: does not describe weights ({error!r})") from error
    return {}


def _from_timm(architecture: str, described: dict[str, Any]) -> dict[str, Any]:
    C, H, W = described["input_size"]
    resize_px = round(H / described.get("crop_pct", 0.875))
    return {
        "model": dict(_TIMM_MODELS.get(architecture, {"name": architecture})),
        "normalize": {key: list(described[key]) for key in ("mean", "std")},
        "dataset": {"image_shape": [H, W, C], "resize_px": resize_px},
    }


# Of torchvision --------------------------------------------------------------------


def _read_torchvision(name: str) -> Published:
    torch, models = import_pytorch(), _import_torchvision()
    if "." in name:
        weights = _member(models, name)
    else:
        ours = list_models()
        choose(
            "torchvision", name, [n for n in models.list_models(models) if n in ours]
        )
        weights = models.get_model_weights(name).DEFAULT
    file = pathlib.Path(
        torch.hub.get_dir(), "checkpoints", os.path.basename(weights.url)
    )
    if not file.exists() and (failure := unreachable(weights.url)):
        raise UserError(
            f"not in the cache, and {weights.url} cannot be reached ({failure})"
        )
    try:
        state = weights.get_state_dict(progress=False, check_hash=True)
    except Exception as error:  # of the network, of the disk, and of torch
        reraise_machine_fault(error)
        raise UserError(f"torchvision does not give it ({reason(error)})") from error
    shown = weights.transforms()
    (side,) = shown.crop_size
    (resize_px,) = shown.resize_size
    config = {
        "model": {"name": name.partition("_Weights.")[0].lower()},
        "normalize": {"mean": list(shown.mean), "std": list(shown.std)},
        "dataset": {"image_shape": [side, side, 3], "resize_px": resize_px},
    }
    return Published({k: v.numpy() for k, v in state.items()}, config)


def _member(models: ModuleType, name: str) -> Any:
    try:
        return models.get_weight(name)
    except (ValueError, KeyError) as error:  # of the class, and of the member
        raise UserError(f"torchvision has no such weights ({reason(error)})") from error


def _import_torchvision() -> ModuleType:
    try:
        return importlib.import_module("torchvision.models")
    except ImportError as error:
        raise UserError(
            "torchvision is needed for its weights: pip install torchvision"
        ) from error
