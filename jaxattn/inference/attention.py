"""Pages of what a trained network attends to, for the command `attention-maps`."""

import logging
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxattn.data.files import find_images
from jaxattn.data.source import Example
from jaxattn.data.splits import read_labels
from jaxattn.errors import UserError
from jaxattn.inference.evaluation import load_data_of
from jaxattn.inference.inputs import FilePath, read_inputs
from jaxattn.paths import local_path
from jaxattn.tasks.classification.figures import spread
from jaxattn.text import printable
from jaxattn.training.checkpoints.trained import Trained
from jaxattn.viz.attention_maps import make_attend
from jaxattn.viz.figure import save_figure
from jaxattn.viz.pages import plot_pages

_logger = logging.getLogger(__name__)

_BATCH_SIZE = 8  # bounds the memory for gates of large images


class Examples(NamedTuple):
    """Images to look at.

    Attributes:
        images: uint8 `[N, H, W, C]`.
        names: What each is called.
        labels: The class of each; None if it is not known.
        total: Images that there were to choose from.
    """

    images: np.ndarray
    names: list[str]
    labels: list[int | None]
    total: int


def read_examples(
    trained: Trained,
    paths: Sequence[FilePath] | None,
    max_images: int,
    on_bad_image: str | None = None,
) -> Examples:
    """Reads images from paths, or without any from the test split of the run's data.

    Args:
        trained: The network.
        paths: As of `read_inputs`; folders and image files may also be mixed. The class
            of an image is known if its folder has the name of one.
        max_images: Images at most; of more some from all over.
        on_bad_image: Of the paths, as of `read_inputs`: "skip" leaves out what cannot
            be read.

    Raises:
        UserError: A path is not there, or does not hold what it should.
    """
    if paths is None:
        source = load_data_of(trained, {}).test
        chosen = spread(len(source), max_images)
        names = [f"test_{i}" for i in chosen]
        labels = [int(label) for label in read_labels(source)[chosen]]
        images = [source[i]["image"] for i in chosen]
    else:
        frame = trained.preprocess.frame
        inputs = read_inputs(_expanded(paths), frame, on_bad_image=on_bad_image)
        source, ids = inputs.source, inputs.ids
        examples = {i: source[i] for i in spread(len(source), max_images)}
        chosen = [i for i, example in examples.items() if _was_read(example)]
        if not chosen:
            raise UserError("--images: none of the images can be read")
        names = [str(ids[i]) for i in chosen]
        files = getattr(source, "paths", None)
        labels = [files and _label(files[i], trained.class_names) for i in chosen]
        images = [examples[i]["image"] for i in chosen]
    return Examples(np.stack(images), names, labels, len(source))


def _was_read(example: Example) -> bool:
    """Whether an image is its file's; one that stands in for it is named."""
    if (error := example.get("error")) is not None:
        _logger.warning("%s; skipped", error)
    return error is None


def write_pages(
    trained: Trained,
    examples: Examples,
    folder: FilePath,
    pattern: str | None = None,
) -> tuple[list[pathlib.Path], bool]:
    """Writes a page for each image.

    Args:
        trained: The network.
        examples: The images.
        folder: Where to; made if it is missing.
        pattern: Of layers; see `jaxattn.viz.attention_maps.select_blocks`.

    Returns:
        The files, and whether the network has attention layers: without any a page has
        Grad-CAM alone.

    Raises:
        UserError: If the pattern fits no layer, or too many.
    """
    folder = local_path(folder, "out")
    attend, written, has_gates = make_attend(trained.model), [], False
    for start in range(0, len(examples.names), _BATCH_SIZE):
        part = slice(start, start + _BATCH_SIZE)
        images, names = examples.images[part], examples.names[part]
        attention = attend(
            trained.variables, trained.preprocess.normalize(jnp.asarray(images))
        )
        has_gates = bool(attention.gates)
        pages = plot_pages(
            attention,
            images,
            names,
            examples.labels[part],
            trained.class_names,
            pattern,
        )
        folder.mkdir(parents=True, exist_ok=True)
        for number, (page, name) in enumerate(zip(pages, names, strict=True), start):
            # The number keeps names apart that differ in their folders alone.
            path = folder / f"{number:02d}_{_short(pathlib.Path(name).stem)}.png"
            save_figure(page, path)
            written.append(path)
    return written, has_gates


def _expanded(paths: Sequence[FilePath]) -> list[FilePath]:
    """Puts the images of folders in their place, where there are several paths."""
    if len(paths) == 1:
        return list(paths)
    expanded: list[FilePath] = []
    for path in paths:
        expanded += find_images(path) if os.path.isdir(path) else [path]
    return expanded


def _label(file: pathlib.Path, class_names: Sequence[str]) -> int | None:
    folder = file.absolute().parent.name  # where a link is, not where it leads
    folder = printable(folder)
    return class_names.index(folder) if folder in class_names else None


def _short(name: str) -> str:
    """A part of a file's name that leaves room for more; names are bounded in bytes."""
    return printable(os.fsdecode(os.fsencode(name)[:200]))[:200]
