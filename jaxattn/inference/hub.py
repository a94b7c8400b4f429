"""A trained network as a repository of a hub: weights, config and model card.

The weights are `model.safetensors` under PyTorch's names, `config.json` is what
`import_torch` and `init_from` read beside them, and `README.md` is the card.
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

import jaxattn
from jaxattn.atomic import write_atomically
from jaxattn.errors import UserError, reason, reraise_machine_fault
from jaxattn.inference.torch_files import export_torch
from jaxattn.models.published import (
    CONFIG,
    LIBRARY,
    WEIGHTS,
    import_hub,
    parse_repository,
)
from jaxattn.text import in_words, printable
from jaxattn.training.checkpoints.trained import Trained
from jaxattn.web import unreachable

CARD = "README.md"
_HUB_TASKS = {"detection": "object-detection"}  # others as here, of images
_MOST_CLASSES = 20  # that a card names


def write_repository(
    trained: Trained,
    folder: str | os.PathLike[str],
    address: str,
    results: Mapping[str, Any] | None = None,
) -> None:
    """Writes what a hub needs of a network into a folder.

    Args:
        trained: The network.
        folder: Made if missing.
        address: `hf:OWNER/NAME`, which the card tells how to use.
        results: Content of the run's `results.json`, for the card.

    Raises:
        UserError: If the folder cannot be written, or holds another `config.json`.
    """
    folder = pathlib.Path(folder)
    export_torch(trained, folder / WEIGHTS)
    try:
        write_atomically(folder / CARD, _make_card(trained, address, results or {}))
    except OSError as error:
        reraise_machine_fault(error)
        raise UserError(f"{folder}: cannot be written ({reason(error)})") from error


def push(folder: str | os.PathLike[str], address: str, *, private: bool = False) -> str:
    """Uploads a folder of `write_repository` to a hub.

    The repository is made if it is not there. Who is uploading, huggingface_hub knows
    (`hf auth login`, or `HF_TOKEN` in the environment).

    Args:
        folder: Of which the three files are uploaded, and no others.
        address: `hf:OWNER/NAME`.
        private: Makes a new repository that others cannot see.

    Returns:
        Where the upload can be seen.

    Raises:
        UserError: If the hub does not answer, or refuses.
    """
    repository = parse_repository(address, "to")
    api = import_hub().HfApi(library_name=LIBRARY)
    if failure := unreachable(api.endpoint):
        raise UserError(f"to={address}: the hub cannot be reached ({failure})")
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=[WEIGHTS, CONFIG, CARD],
            commit_message=f"Weights by jaxattn {jaxattn.__version__}",
        )
    except Exception as error:  # of the network, of the hub and of the disk
        reraise_machine_fault(error)
        raise UserError(
            f"to={address}: the hub refuses it ({reason(error)}); `hf auth login` says"
            " who you are"
        ) from error
    return str(commit.commit_url)


def read_results(workdir: str | os.PathLike[str] | None) -> dict[str, Any]:
    """Returns the content of a finished run's `results.json`, else nothing."""
    path = pathlib.Path(workdir or "", "results.json")
    try:
        content = json.loads(path.read_text()) if workdir is not None else {}
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _make_card(trained: Trained, address: str, results: Mapping[str, Any]) -> str:
    H, W, _ = trained.image_shape
    config, names = trained.config, [printable(name) for name in trained.class_names]
    model, count = config["model"]["name"], _count(trained)
    name = address.rpartition("/")[2]
    more = ", ..." if len(names) > _MOST_CLASSES else ""
    task, metric = config.get("task", "classification"), trained.task.metric
    # As hubs call the tasks, and what `predict` writes.
    kind = _HUB_TASKS.get(task, f"image-{task}")
    out = "classes.csv" if task == "classification" else "predicted"
    mean, std = (tuple(v) for v in (trained.preprocess.mean, trained.preprocess.std))
    lines = [
        "---",
        "library_name: jaxattn",
        f"pipeline_tag: {kind}",
        "tags:",
        *(f"- {tag}" for tag in (kind, "jax", "flax")),
        "---",
        "",
        f"# {name}",
        "",
        f"`{model}` of jaxattn, {count:,} parameters, for images of {H} x {W} pixels.",
        "",
        "## Use",
        "",
        "```sh",
        f"jaxattn import-torch {address} --workdir workdir/{name}",
        f"jaxattn predict --workdir workdir/{name} --data one.png --out {out}",
        "```",
        "",
        f"A training starts from it with `--config.init_from={address}`.",
        "",
        "## Data",
        "",
        f"{len(names)} classes: {', '.join(names[:_MOST_CLASSES])}{more}. Pixels are"
        f" divided by 255 and normalised by mean {mean} and std {std}.",
        "",
        f"## Training and {in_words(metric)}",
        "",
        *_tell_training(config, trained.step, results, metric),
        "",
        "## Files",
        "",
        f"`{WEIGHTS}`: parameters and batch statistics under PyTorch's names and axes."
        f" `{CONFIG}`: the network, the images, the classes and the training's values.",
        "",
    ]
    return "\n".join(lines)


def _tell_training(
    config: Mapping[str, Any], step: int, results: Mapping[str, Any], metric: str
) -> list[str]:
    data = config.get("data", {}).get("name")
    if not data:
        return ["Imported weights, not trained by jaxattn."]
    told = [f"Data set `{data}`, {step:,} steps, seed {config.get('seed')}."]
    figure, name = results.get(f"test_{metric}"), in_words(metric)
    if isinstance(figure, float):
        told.append(f"Test {name} {100 * figure:.2f} %, of the run's best weights.")
    return told


def _count(trained: Trained) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(trained.variables["params"]))
