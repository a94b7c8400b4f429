"""What predictions are made from: files of images or arrays."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxattn.data import formats
from jaxattn.data.crops import check_on_bad_image
from jaxattn.data.datasets.archives import read_pickle
from jaxattn.data.files import describe_left_out, is_image_file, require_images, scan
from jaxattn.data.preprocess import Frame, ImageFiles
from jaxattn.data.source import ArraySource, Source
from jaxattn.errors import UserError, first_repeated, reason, reraise_machine_fault
from jaxattn.paths import local_path

FilePath = str | os.PathLike[str]
Ids = tuple[int, ...] | tuple[str, ...]

_NPZ_KEYS = ("images", "data", "x_test")
_KINDS = "a pickle, an .npz, a folder of images or image files"


class Inputs(NamedTuple):
    """Images to classify.

    Attributes:
        source: The images, without targets.
        ids: What each is called in the predictions: numbers or names, all different.
        notes: What a person should know of how they were found, a line each.
    """

    source: Source
    ids: Ids
    notes: tuple[str, ...] = ()


def read_inputs(
    paths: Sequence[FilePath], frame: Frame, *, on_bad_image: str | None = None
) -> Inputs:
    """Reads images from one file of arrays, one folder, or image files.

    Args:
        paths: One `.npz` with an entry `images`, `data` or `x_test` (the first that is
            there); one folder of images; one or more image files; or one pickle, which
            is any other file, with an entry `data`. Arrays are uint8 `[N, H, W, C]`,
            `[N, C, H, W]` or `[N, C*H*W]` (planar, as in CIFAR), and their entry
            `ids`, integers `[N]`, may be absent. Image files are scaled and cropped as
            in the network's evaluation.
        frame: What the network is shown of an image.
        on_bad_image: What is done about an image file that cannot be decoded: "error"
            (the default) ends all, of "skip" the source has a black image with the
            `error`.

    Returns:
        The images and their ids: those of the file, or 0 to N-1; for a folder the paths
        in it, with `/`; for image files the paths as they are given.

    Raises:
        UserError: A path is not there, or does not hold what it should.
    """
    check_on_bad_image(on_bad_image)
    files = [local_path(path, "inputs") for path in paths]
    if not files:
        raise UserError(f"inputs: no path; must be {_KINDS}")
    for path in files:
        if not path.exists():
            raise UserError(f"{path}: no such file or folder; must be {_KINDS}")
        if not (os.path.isfile(path) or os.path.isdir(path)):
            raise UserError(f"{path}: is a pipe, socket or device; must be {_KINDS}")
    first, skips = files[0], on_bad_image == "skip"
    if len(files) == 1 and first.is_dir():
        found = scan(first)
        require_images(first, found)
        images = [first / path for path in found.paths]
        inputs = _from_images(images, found.paths, frame, skips)
        note = describe_left_out(found.left_out)
        return inputs._replace(notes=(f"{first}: {note}",) if note else ())
    if len(files) > 1 or _is_image(first):
        given = [os.fspath(path) for path in paths]
        return _from_images(files, given, frame, skips)
    return _from_arrays(first, frame.image_shape)


def _is_image(path: pathlib.Path) -> bool:
    """Whether a file is an image, by the ending of its name or by its content."""
    ending = formats.ending_of(path.name)
    # Of HEIC that is not read here, reading says how it would be.
    is_known = formats.has_image_ending(path.name) or formats.lacking(ending)
    return bool(is_known) or (ending != ".npz" and is_image_file(path))


def _from_images(
    files: Sequence[pathlib.Path],
    names: Sequence[str],
    frame: Frame,
    skips: bool,
) -> Inputs:
    image_shape = frame.image_shape
    if image_shape[-1] != 3:
        raise UserError(
            f"{files[0]}: image files have 3 channels, the network's images "
            f"{list(image_shape)}; give it arrays, in an .npz"
        )
    for file in files:
        if file.is_dir() or not _is_image(file):
            raise UserError(
                f"{file}: not an image; several paths must all be image files"
            )
    if (repeated := first_repeated(names)) is not None:
        raise UserError(f"{repeated}: is given twice, must be different files")
    return Inputs(ImageFiles(tuple(files), frame, skips), tuple(names))


def _from_arrays(path: pathlib.Path, image_shape: tuple[int, int, int]) -> Inputs:
    is_npz = path.suffix.lower() == ".npz"
    keys = _NPZ_KEYS if is_npz else ("data",)
    entries = (_read_npz if is_npz else _read_pickle)(path)
    key = next((key for key in keys if key in entries), None)
    if key is None:
        raise UserError(
            f"{path}: has no entry {' or '.join(map(repr, keys))}, "
            f"only {sorted(entries)}"
        )
    images = _to_nhwc(_as_array(entries[key]), image_shape, f"{path}: {key}")
    ids = tuple(range(len(images)))
    if entries.get("ids") is not None:
        ids = _checked_ids(_as_array(entries["ids"]), len(images), path)
    return Inputs(ArraySource(images, {}), ids)


def _read_npz(path: pathlib.Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            wanted = [key for key in _NPZ_KEYS if key in archive][:1]
            entries = dict.fromkeys(archive)  # the others are not read
            for key in [*wanted, *({"ids"} & set(archive))]:
                entries[key] = archive[key]
            return entries
    except Exception as error:  # zipfile, zlib and NumPy each raise their own
        reraise_machine_fault(error)
        raise UserError(f"{path}: not a readable npz ({reason(error)})") from error


def _read_pickle(path: pathlib.Path) -> dict[str, Any]:
    try:
        return read_pickle(path.read_bytes(), str(path))
    except OSError as error:
        reraise_machine_fault(error)
        raise UserError(f"{path}: not readable ({error.strerror})") from error
    except UserError as error:
        with open(path, "rb") as file:
            what = formats.explain(file)
        raise UserError(
            f"{path}: {what}; must be {_KINDS}"
            if what.startswith("it is")
            else f"{error}; must be {_KINDS}"
        ) from error


def _as_array(value: Any) -> np.ndarray:
    try:
        return np.asarray(value)
    except ValueError:  # a ragged list
        return np.asarray(None)


def _to_nhwc(
    array: np.ndarray, image_shape: tuple[int, int, int], origin: str
) -> np.ndarray:
    H, W, C = image_shape
    shapes = ((H, W, C), (C, H, W), (C * H * W,))
    if array.dtype != np.uint8 or array.shape[1:] not in shapes or len(array) == 0:
        accepted = " or ".join(str(["N", *shape]).replace("'", "") for shape in shapes)
        raise UserError(
            f"{origin}: {array.dtype} {list(array.shape)}, "
            f"must be uint8 {accepted} with N at least 1"
        )
    if array.shape[1:] == (H, W, C):
        return np.ascontiguousarray(array)
    return np.ascontiguousarray(array.reshape(-1, C, H, W).transpose(0, 2, 3, 1))


def _checked_ids(ids: np.ndarray, count: int, path: pathlib.Path) -> tuple[int, ...]:
    if ids.dtype.kind not in "iu" or ids.shape != (count,):
        raise UserError(
            f"{path}: ids: {ids.dtype} {list(ids.shape)}, "
            f"must be integers [{count}], as there are images"
        )
    numbers = tuple(ids.tolist())
    if (repeated := first_repeated(numbers)) is not None:
        raise UserError(f"{path}: ids: {repeated} is there twice, must be unique")
    return numbers
