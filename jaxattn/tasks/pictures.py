"""Pictures of predictions as files, called as the images are."""

import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from jaxattn.atomic import replacing, require_writable
from jaxattn.data.source import Source
from jaxattn.errors import UserError, first_repeated, reraise_machine_fault


def file_names(ids: Sequence[int] | Sequence[str]) -> list[pathlib.PurePath]:
    """Returns the file of each image's picture, below a folder.

    The image's own name and folders, with the ending `.png`; absolute ones and those
    that lead upwards lose what leads out of the folder.

    Args:
        ids: What each image is called.

    Raises:
        UserError: If two images would have one file.
    """
    names = []
    for own in map(str, ids):
        path = pathlib.PurePath(own)
        inside = [part for part in path.parts if part not in (path.anchor, "..")]
        names.append(pathlib.PurePath(*inside[:-1], f"{path.stem}.png"))
    if (repeated := first_repeated(names)) is not None:
        raise UserError(
            f"{repeated}: is the picture of two images, whose names differ in their"
            " endings alone; predict them apart"
        )
    return names


def keep_photos(paths: Iterable[pathlib.Path], source: Source) -> None:
    """Refuses files of which one would replace a photo that was predicted.

    Args:
        paths: Of the pictures that are to be written.
        source: The images; those of arrays have no files.

    Raises:
        UserError: If there is one.
    """
    photos = {os.path.realpath(path) for path in getattr(source, "paths", ())}
    for path in paths:
        if os.path.realpath(path) in photos:
            raise UserError(f"{path}: is one of the photos; write to another folder")


def write_png(path: pathlib.Path, image: Any) -> None:
    """Writes a PNG, whole or not at all.

    Args:
        path: The file; its folder is made.
        image: Of Pillow.

    Raises:
        UserError: If it cannot be written.
    """
    require_writable(path)
    try:
        with replacing(path) as temporary:
            image.save(temporary, format="png")
    except OSError as error:
        reraise_machine_fault(error)
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
