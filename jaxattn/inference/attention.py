"""Pages of what a trained network attends to, for the command `attention-maps`."""

import logging
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxattn.data.files import find_images
from jaxattn.data.source import Example, spread
from jaxattn.errors import UserError
from jaxattn.inference.evaluation import load_data_of
from jaxattn.inference.inputs import FilePath, read_inputs
from jaxattn.paths import local_path
from jaxattn.text import printable
from jaxattn.training.checkpoints.trained import Trained
from jaxattn.viz.attention_maps import sows_gates
from jaxattn.viz.figure import save_figure

_logger = logging.getLogger(__name__)

_BATCH_SIZE = 8  # bounds the memory for gates of large images


class Examples(NamedTuple):
    """Images to look at.

    Attributes:
        images: uint8 `[N, H, W, C]`.
        names: What each is called.
        targets: What is known of each: an example, or a part of one.
        total: Images that there were to choose from.
    """

    images: np.ndarray
    names: list[str]
    targets: list[Example]
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
        examples = {i: source[i] for i in chosen}
        targets = list(examples.values())
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
        targets = [_targets(files and files[i], trained.class_names) for i in chosen]
    images = np.stack([examples[i]["image"] for i in chosen])
    return Examples(images, names, targets, len(source))


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
    *,
    of_class: str | None = None,
) -> tuple[list[pathlib.Path], bool]:
    """Writes a page for each image.

    Args:
        trained: The network.
        examples: The images.
        folder: Where to; made if it is missing.
        pattern: Of layers; see `jaxattn.viz.attention_maps.select_blocks`.
        of_class: Whose Grad-CAM is drawn; see `Task.make_pages`.

    Returns:
        The files, and whether the network has attention layers: without any a page has
        Grad-CAM alone.

    Raises:
        UserError: If the pattern fits no layer, or too many, or the class none.
    """
    folder = local_path(folder, "out")
    task, class_names = trained.task, trained.class_names
    plot_pages = task.make_pages(trained.model, class_names, of_class=of_class)
    written = []
    for start in range(0, len(examples.names), _BATCH_SIZE):
        part = slice(start, start + _BATCH_SIZE)
        images, names = examples.images[part], examples.names[part]
        x = trained.preprocess.normalize(jnp.asarray(images))
        targets = examples.targets[part]
        pages = plot_pages(trained.variables, x, images, names, targets, pattern)
        folder.mkdir(parents=True, exist_ok=True)
        for number, (page, name) in enumerate(zip(pages, names, strict=True), start):
            # The number keeps names apart that differ in their folders alone.
            path = folder / f"{number:02d}_{_short(pathlib.Path(name).stem)}.png"
            save_figure(page, path)
            written.append(path)
    return written, sows_gates(trained.model, trained.variables, trained.image_shape)


def _expanded(paths: Sequence[FilePath]) -> list[FilePath]:
    """Puts the images of folders in their place, where there are several paths."""
    if len(paths) == 1:
        return list(paths)
    expanded: list[FilePath] = []
    for path in paths:
        expanded += find_images(path) if os.path.isdir(path) else [path]
    return expanded


def _targets(file: pathlib.Path | None, class_names: Sequence[str]) -> Example:
    """Returns the class of a file whose folder has the name of one."""
    if file is None:
        return {}
    folder = file.absolute().parent.name  # where a link is, not where it leads
    folder = printable(folder)
    return {"label": class_names.index(folder)} if folder in class_names else {}


def _short(name: str) -> str:
    """A part of a file's name that leaves room for more; names are bounded in bytes."""
    return printable(os.fsdecode(os.fsencode(name)[:200]))[:200]
