"""CSV files of predicted classes."""

import contextlib
import csv
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

import numpy as np

from jaxattn.atomic import replacing, require_writable
from jaxattn.errors import UserError, first_repeated, reason, reraise_machine_fault

HEADER = ("ID", "Labels")
"""The first columns of a file of predictions."""

FilePath = str | os.PathLike[str]

# As Python writes them, so that reading and writing changes none: "007" is a name.
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")
_LABEL = re.compile(r"0|[1-9][0-9]{0,8}")
_NUM_SHOWN = 3


def write_predictions(
    path: FilePath,
    ids: Sequence[int] | Sequence[str],
    labels: np.ndarray | Sequence[int],
    *,
    class_names: Sequence[str] | None = None,
    probabilities: np.ndarray | None = None,
    probability_columns: Sequence[str] | None = None,
    is_known: np.ndarray | None = None,
) -> None:
    """Writes a CSV file `ID,Labels`, sorted by ID, whole or not at all.

    Args:
        path: The file; its folder is created.
        ids: What each image is called, all numbers or all names.
        labels: The class of each, integers `[N]`.
        class_names: What to write in place of the numbers of the classes.
        probabilities: `[N, C]` in [0, 1], written with 6 decimals, a column per class.
        probability_columns: The headers of these C columns; by default the names of
            the classes, or else their numbers. A name of `HEADER` is written `p(name)`.
        is_known: bool `[N]`: False of images that could not be read, whose label and
            probabilities are left empty. By default all are known.

    Raises:
        UserError: The arrays do not fit each other, or the file cannot be written.
    """
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu" or labels.shape != (len(ids),):
        raise UserError(
            f"labels: {labels.dtype} {list(labels.shape)}, "
            f"must be integers [{len(ids)}], as there are ids"
        )
    if (repeated := first_repeated(ids)) is not None:
        raise UserError(f"ids: {repeated!r} is there twice, must be unique")
    named = _named(labels, class_names)
    known = np.ones(len(ids), bool) if is_known is None else is_known
    headers: list[str] = []
    if probabilities is not None:
        headers = _headers(probabilities, len(ids), probability_columns or class_names)
    with _replacing_text(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*HEADER, *headers])
        for i in _order(ids):
            chances = [] if probabilities is None else probabilities[i]
            row = [named[i], *(f"{chance:.6f}" for chance in chances)]
            writer.writerow([ids[i], *(row if known[i] else [""] * len(row))])


def read_predictions(path: FilePath) -> tuple[list[int] | list[str], np.ndarray]:
    """Reads the IDs and classes of a file of predictions.

    Args:
        path: A CSV file whose header starts with `ID,Labels`; the columns after these
            are ignored.

    Returns:
        The IDs, as numbers if all are, and the classes in the order of the file:
        int64 `[N]` from 0 on if all are numbers, else their names, as text `[N]`.

    Raises:
        UserError: The file cannot be read, or a line is wrong; with its number.
    """
    labels: dict[str, str] = {}
    for line, row in _rows(path):
        name, label = row[:2]
        if not label:
            raise UserError(
                f"{path}: line {line}: no label, as of an image that could not be read;"
                " ensembles need one of every image"
            )
        if name in labels:
            raise UserError(f"{path}: line {line}: the ID {name!r} is there before")
        labels[name] = label
    if not labels:
        raise UserError(f"{path}: line 2: no predictions, must be at least one")
    names, classes = list(labels), np.array(list(labels.values()))
    if all(_LABEL.fullmatch(label) for label in labels.values()):
        classes = classes.astype(np.int64)
    if all(_INTEGER.fullmatch(name) for name in names):
        return [int(name) for name in names], classes
    return names, classes


def align_predictions(
    paths: Sequence[FilePath],
) -> tuple[list[Any], np.ndarray, list[str] | None]:
    """Reads several files of predictions for the same images.

    Args:
        paths: At least two files, with the same IDs in any order.

    Returns:
        The IDs, sorted; the classes, int64 `[K, N]` with a row per file; and if the
        files hold names, those that they hold, sorted, to which the classes point.

    Raises:
        UserError: A file is wrong, or the IDs differ, or some hold names of classes and
            others numbers.
    """
    if len(paths) < 2:
        raise UserError(
            f"predictions: {len(paths)} file(s), must be at least 2 to combine"
        )
    read = [read_predictions(path) for path in paths]
    for path, (ids, labels) in zip(paths[1:], read[1:], strict=True):
        _check_same(paths[0], read[0][0], path, ids)
        if labels.dtype.kind != read[0][1].dtype.kind:
            raise UserError(
                f"{path}: must hold names of classes, or numbers, as {paths[0]} does"
            )
    labels = np.stack([label[_order(ids)] for ids, label in read])
    if labels.dtype.kind == "i":
        return sorted(read[0][0]), labels, None
    names, codes = np.unique(labels, return_inverse=True)
    return sorted(read[0][0]), codes.reshape(labels.shape), names.tolist()


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
    # A table has no two columns of one name.
    headers = [f"p({name})" if name in HEADER else name for name in headers]
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
        reraise_machine_fault(error)
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
        reraise_machine_fault(error)
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
