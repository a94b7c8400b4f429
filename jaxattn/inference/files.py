"""What predictions are made from, and the CSV files they go into and come from."""

import contextlib
import csv
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TextIO

import numpy as np

from jaxattn.atomic import replacing
from jaxattn.data.datasets.archives import read_pickle
from jaxattn.data.images import SUFFIXES, ImageFiles, find_images, is_image
from jaxattn.data.source import Source, labelled
from jaxattn.errors import UserError, reason

HEADER = ("ID", "Labels")
"""The first columns of a file of predictions."""

FilePath = str | os.PathLike[str]
Ids = tuple[int, ...] | tuple[str, ...]

_NPZ_KEYS = ("images", "data", "x_test")
_KINDS = f"a pickle, an .npz, a folder or an image ({', '.join(SUFFIXES)})"
# As Python writes them, so that reading and writing changes none: "007" is a name.
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")
_LABEL = re.compile(r"[0-9]{1,9}")
_NUM_SHOWN = 3


class Inputs(NamedTuple):
    """Images to classify.

    Attributes:
        source: The images; their labels mean nothing.
        ids: What each is called in the predictions: numbers or names, all different.
    """

    source: Source
    ids: Ids


def read_inputs(paths: Sequence[FilePath], image_shape: tuple[int, int, int]) -> Inputs:
    """Reads images from one file of arrays, one folder, or image files.

    Args:
        paths: One `.npz` with an entry `images`, `data` or `x_test` (the first that is
            there); one folder of images; one or more image files; or one pickle, which
            is any other file, with an entry `data`. Arrays are uint8 `[N, H, W, C]`,
            `[N, C, H, W]` or `[N, C*H*W]` (planar, as in CIFAR), and their entry
            `ids`, integers `[N]`, may be absent. Image files are scaled and cropped.
        image_shape: `(H, W, C)` of the network's images.

    Returns:
        The images and their ids: those of the file, or 0 to N-1; for a folder the paths
        in it, with `/`; for image files the paths as they are given.

    Raises:
        UserError: A path is not there, or does not hold what it should.
    """
    files = [pathlib.Path(path) for path in paths]
    if not files:
        raise UserError(f"inputs: no path; must be {_KINDS}")
    for path in paths:
        if not os.path.exists(path):
            raise UserError(f"{path}: no such file or folder; must be {_KINDS}")
    first = files[0]
    if len(files) == 1 and first.is_dir():
        found = find_images(first)
        names = [file.relative_to(first).as_posix() for file in found]
        return _from_images(found, names, image_shape)
    if len(files) > 1 or is_image(first):
        return _from_images(files, [os.fspath(path) for path in paths], image_shape)
    return _from_arrays(first, image_shape)


def write_predictions(
    path: FilePath,
    ids: Sequence[int] | Sequence[str],
    labels: np.ndarray | Sequence[int],
    *,
    class_names: Sequence[str] | None = None,
    probabilities: np.ndarray | None = None,
    probability_columns: Sequence[str] | None = None,
) -> None:
    """Writes a CSV file `ID,Labels`, sorted by ID, whole or not at all.

    Args:
        path: The file; its folder is created.
        ids: What each image is called, all numbers or all names.
        labels: The class of each, integers `[N]`.
        class_names: What to write in place of the numbers of the classes.
        probabilities: `[N, C]` in [0, 1], written with 6 decimals, a column per class.
        probability_columns: The headers of these C columns; by default the names of
            the classes, or else their numbers.

    Raises:
        UserError: The arrays do not fit each other, or the file cannot be written.
    """
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu" or labels.shape != (len(ids),):
        raise UserError(
            f"labels: {labels.dtype} {list(labels.shape)}, "
            f"must be integers [{len(ids)}], as there are ids"
        )
    if (repeated := _repeated(ids)) is not None:
        raise UserError(f"ids: {repeated!r} is there twice, must be unique")
    named = _named(labels, class_names)
    headers: list[str] = []
    if probabilities is not None:
        headers = _headers(probabilities, len(ids), probability_columns or class_names)
    with _replacing_text(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*HEADER, *headers])
        for i in _order(ids):
            chances = [] if probabilities is None else probabilities[i]
            writer.writerow(
                [ids[i], named[i], *(f"{chance:.6f}" for chance in chances)]
            )


def require_writable(path: FilePath) -> None:
    """Makes the folder of a file, and raises a `UserError` if none can be written."""
    if os.path.exists(path) and not os.path.isfile(path):
        kind = "a folder" if os.path.isdir(path) else "not a regular file"
        raise UserError(f"{path}: cannot be written (is {kind})")
    parent = pathlib.Path(path).resolve().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
    if not os.access(parent, os.W_OK):
        raise UserError(f"{path}: cannot be written (its folder is read-only)")


def read_predictions(path: FilePath) -> tuple[list[int] | list[str], np.ndarray]:
    """Reads the IDs and classes of a file of predictions.

    Args:
        path: A CSV file whose header starts with `ID,Labels`; the columns after these
            are ignored.

    Returns:
        The IDs, as numbers if all are, and the classes, int64 `[N]` from 0 on, in the
        order of the file.

    Raises:
        UserError: The file cannot be read, or a line is wrong; with its number.
    """
    labels: dict[str, int] = {}
    for line, row in _rows(path):
        name, label = row[:2]
        if not _LABEL.fullmatch(label):
            raise UserError(
                f"{path}: line {line}: label {label!r} must be an integer from 0 on; "
                "ensembles need class numbers, not a file written with class names"
            )
        if name in labels:
            raise UserError(f"{path}: line {line}: the ID {name!r} is there before")
        labels[name] = int(label)
    if not labels:
        raise UserError(f"{path}: line 2: no predictions, must be at least one")
    names, numbers = list(labels), np.array(list(labels.values()), np.int64)
    if all(_INTEGER.fullmatch(name) for name in names):
        return [int(name) for name in names], numbers
    return names, numbers


def align_predictions(paths: Sequence[FilePath]) -> tuple[list[Any], np.ndarray]:
    """Reads several files of predictions for the same images.

    Args:
        paths: At least two files, with the same IDs in any order.

    Returns:
        The IDs, sorted, and the classes, int64 `[K, N]` with a row per file.

    Raises:
        UserError: A file is wrong, or the IDs differ.
    """
    if len(paths) < 2:
        raise UserError(
            f"predictions: {len(paths)} file(s), must be at least 2 to combine"
        )
    read = [read_predictions(path) for path in paths]
    for path, (ids, _) in zip(paths[1:], read[1:], strict=True):
        _check_same(paths[0], read[0][0], path, ids)
    labels = [label[_order(ids)] for ids, label in read]
    return sorted(read[0][0]), np.stack(labels)


def _from_images(
    files: Sequence[pathlib.Path],
    names: Sequence[str],
    image_shape: tuple[int, int, int],
) -> Inputs:
    height, width, channels = image_shape
    if channels != 3:
        raise UserError(
            f"{files[0]}: image files have 3 channels, the network's images "
            f"{list(image_shape)}; give it arrays, in an .npz"
        )
    for file in files:
        if file.is_dir() or not is_image(file):
            raise UserError(
                f"{file}: not an image; several paths must all be image files "
                f"({', '.join(SUFFIXES)})"
            )
    if (repeated := _repeated(names)) is not None:
        raise UserError(f"{repeated}: is given twice, must be different files")
    return Inputs(ImageFiles(tuple(files), (height, width)), tuple(names))


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
    return Inputs(labelled(images, np.zeros(len(images), np.int32)), ids)


def _read_npz(path: pathlib.Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            wanted = [key for key in _NPZ_KEYS if key in archive][:1]
            entries = dict.fromkeys(archive)  # the others are not read
            for key in [*wanted, *({"ids"} & set(archive))]:
                entries[key] = archive[key]
            return entries
    except Exception as error:  # zipfile, zlib and NumPy each raise their own
        raise UserError(f"{path}: not a readable npz ({reason(error)})") from error


def _read_pickle(path: pathlib.Path) -> dict[str, Any]:
    try:
        return read_pickle(path.read_bytes(), str(path))
    except OSError as error:
        raise UserError(f"{path}: not readable ({error.strerror})") from error
    except UserError as error:
        raise UserError(f"{error}; must be {_KINDS}") from error


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
    if (repeated := _repeated(numbers)) is not None:
        raise UserError(f"{path}: ids: {repeated} is there twice, must be unique")
    return numbers


def _repeated(values: Sequence[Any]) -> Any | None:
    """The first value that is there before, None if all are different."""
    seen = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None


def _named(labels: np.ndarray, class_names: Sequence[str] | None) -> list[Any]:
    """The labels as they are written."""
    if class_names is None:
        return labels.tolist()
    if len(labels) and (labels.min() < 0 or labels.max() >= len(class_names)):
        raise UserError(
            f"labels: in [{labels.min()}, {labels.max()}], must be in "
            f"[0, {len(class_names) - 1}], as there are class_names"
        )
    return [class_names[label] for label in labels]


def _headers(
    probabilities: np.ndarray, count: int, columns: Sequence[str] | None
) -> list[str]:
    if probabilities.ndim != 2 or len(probabilities) != count:
        raise UserError(
            f"probabilities: {list(probabilities.shape)}, must be [{count}, C]"
        )
    num_classes = probabilities.shape[1]
    headers = [str(i) for i in range(num_classes)] if columns is None else list(columns)
    if len(headers) != num_classes:
        raise UserError(
            f"probability_columns: {len(headers)} names, must be {num_classes}"
        )
    return headers


@contextlib.contextmanager
def _replacing_text(path: FilePath) -> Iterator[TextIO]:
    """A text file that takes the place of another once it is whole."""
    require_writable(path)
    try:
        # Names of files need not be UTF-8; one that is not costs no predictions.
        options: Any = {"errors": "backslashreplace", "newline": ""}
        with (
            replacing(path) as temporary,
            open(temporary, "w", encoding="utf-8", **options) as file,
        ):
            yield file
    except OSError as error:
        why = error.strerror or reason(error)
        raise UserError(f"{path}: cannot be written ({why})") from error


def _rows(path: FilePath) -> Iterator[tuple[int, list[str]]]:
    """Yields the line number and the fields of each row after the header."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            if tuple(header[:2]) != HEADER:
                raise UserError(
                    f"{path}: line 1: header {','.join(header)[:40]!r} must start "
                    f"with {','.join(HEADER)}"
                )
            for row in filter(None, reader):
                if len(row) != len(header):
                    raise UserError(
                        f"{path}: line {reader.line_num}: {len(row)} fields, must be "
                        f"{len(header)} as in the header"
                    )
                yield reader.line_num, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = error.strerror if isinstance(error, OSError) else reason(error)
        raise UserError(f"{path}: not a readable CSV file ({why})") from error


def _order(ids: Sequence[Any]) -> list[int]:
    return sorted(range(len(ids)), key=ids.__getitem__)


def _check_same(
    path: FilePath, ids: Sequence[Any], other_path: FilePath, other_ids: Sequence[Any]
) -> None:
    # As text: one name among numbers makes names of them all.
    names, other_names = [str(i) for i in ids], [str(i) for i in other_ids]
    missing = _shown(names, set(other_names))
    extra = _shown(other_names, set(names))
    if missing or extra:
        parts = [f"lacks {missing}"] * bool(missing) + [f"adds {extra}"] * bool(extra)
        raise UserError(
            f"{other_path}: must have the same IDs as {path}, but {', '.join(parts)}"
        )


def _shown(names: Sequence[str], known: set[str]) -> str:
    """The first few names that are not known."""
    unknown = [name for name in names if name not in known]
    more = len(unknown) - _NUM_SHOWN
    shown = ", ".join(map(repr, unknown[:_NUM_SHOWN]))
    return f"{shown} and {more} more" if more > 0 else shown
