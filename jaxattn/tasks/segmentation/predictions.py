"""Label maps as files: palette PNGs, and photos in the colours of their classes."""

import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from jaxattn import viz
from jaxattn.data.preprocess import ImageFiles
from jaxattn.data.source import Source
from jaxattn.tasks.pictures import file_names, keep_photos, write_png
from jaxattn.viz.palette import Colors

OVERLAYS = "overlays"
"""The folder of the photos in colours, below that of the label maps."""


def restored(
    label_maps: np.ndarray, source: Source
) -> Iterator[tuple[np.ndarray, np.ndarray] | None]:
    """Yields each image whole, and its label map of the same size.

    One at a time, for whole photos are large. None for one that could not be read.

    Args:
        label_maps: uint8 `[N, H, W]`, of what the network is shown.
        source: The images.
    """
    for i, label_map in enumerate(label_maps):
        if not isinstance(source, ImageFiles):
            yield source[i]["image"], label_map
        elif i in source.unread:
            yield None
        else:
            photo = source.photo(i)
            whole = source.frame.restore_label_map(label_map, *photo.shape[:2])
            yield photo, whole


def write_predictions(
    folder: pathlib.Path,
    ids: Sequence[int] | Sequence[str],
    label_maps: np.ndarray,
    source: Source,
    class_colors: Colors | None = None,
) -> None:
    """Writes the label map of each image, and the photo in its colours.

    Args:
        folder: Where to; made if missing.
        ids: What each image is called.
        label_maps: uint8 `[N, H, W]`, of what the network is shown.
        source: The images.
        class_colors: Of each class; None chooses.

    Raises:
        UserError: If two images would have one file, or a file cannot be written.
    """
    palette, names = viz.make_palette(class_colors), file_names(ids)
    tops = (folder, folder / OVERLAYS)
    keep_photos([top / name for top in tops for name in names], source)
    pairs = zip(names, restored(label_maps, source), strict=True)
    for name, known in pairs:
        if known is not None:
            photo, label_map = known
            write_label_map(folder / name, label_map, palette)
            write_overlay(folder / OVERLAYS / name, photo, label_map, palette)


def write_label_map(
    path: pathlib.Path, label_map: np.ndarray, palette: np.ndarray
) -> None:
    """Writes a label map as a palette PNG: its bytes are the classes.

    Args:
        path: The file; its folder is made.
        label_map: uint8 `[H, W]`.
        palette: uint8 `[256, 3]`.

    Raises:
        UserError: If it cannot be written.
    """
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(label_map))
    image.putpalette(palette.tobytes())
    write_png(path, image)


def write_overlay(
    path: pathlib.Path, photo: np.ndarray, label_map: np.ndarray, palette: np.ndarray
) -> None:
    """Writes a photo in the colours of its classes.

    Args:
        path: The file; its folder is made.
        photo: uint8 `[H, W, C]`.
        label_map: uint8 `[H, W]`.
        palette: uint8 `[256, 3]`.

    Raises:
        UserError: If it cannot be written.
    """
    from PIL import Image

    write_png(path, Image.fromarray(viz.overlay(photo, label_map, palette)))
