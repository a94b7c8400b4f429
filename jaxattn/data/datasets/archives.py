"""CIFAR-10 and CIFAR-100 from local files: archive, unpacked folder or npz.

The files may come from anywhere, so nothing in them is trusted: an archive is
read in place and never unpacked, an npz is read without pickles, and a pickle
is read by an unpickler that can only build the plain values a CIFAR batch holds.
"""

import io
import os
import pathlib
import pickle
import pickletools
import tarfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxattn.errors import UserError, reason, reraise_machine_fault

IMAGE_SHAPE = (32, 32, 3)


class Layout(NamedTuple):
    """How a CIFAR data set names its files and their entries."""

    archive: str
    folder: str
    train_files: tuple[str, ...]
    test_files: tuple[str, ...]
    meta_file: str
    label_key: str
    class_names_key: str
    num_classes: int


LAYOUTS = {
    "cifar10": Layout(
        archive="cifar-10-python.tar.gz",
        folder="cifar-10-batches-py",
        train_files=tuple(f"data_batch_{i}" for i in range(1, 6)),
        test_files=("test_batch",),
        meta_file="batches.meta",
        label_key="labels",
        class_names_key="label_names",
        num_classes=10,
    ),
    "cifar100": Layout(
        archive="cifar-100-python.tar.gz",
        folder="cifar-100-python",
        train_files=("train",),
        test_files=("test",),
        meta_file="meta",
        label_key="fine_labels",
        class_names_key="fine_label_names",
        num_classes=100,
    ),
}

Arrays = tuple[np.ndarray, np.ndarray]
"""Images, uint8 `[N, 32, 32, 3]`, and labels, int32 `[N]`."""


class Cifar(NamedTuple):
    """The arrays of both splits, and the class names if the files hold them."""

    train: Arrays
    test: Arrays
    class_names: tuple[str, ...] | None


def read_pickle(data: bytes, origin: str) -> dict[str, Any]:
    """The dictionary in a pickle of protocol 0 to 5, read without running code.

    Args:
        data: The pickle.
        origin: The file it came from, for the messages.

    Returns:
        The dictionary, its keys as `str` and Python 2 strings as `bytes`.

    Raises:
        UserError: The pickle is damaged, is not a dictionary, or names anything
            but the constructors of NumPy arrays.
    """
    try:
        _check_opcodes(data)
        value = _Unpickler(io.BytesIO(data), encoding="bytes").load()
        if not isinstance(value, dict):
            raise pickle.UnpicklingError(f"holds a {type(value).__name__}, not a dict")
        return {_text(key): _plain(entry) for key, entry in value.items()}
    except Exception as error:  # a damaged pickle can raise anything
        reraise_machine_fault(error)
        raise UserError(f"{origin}: not a readable pickle ({reason(error)})") from error


def _check_opcodes(data: bytes) -> None:
    """Refuses what would make a short pickle fill the memory.

    The unpickler makes room for as many remembered values as the largest number of
    one, and for as many bytes as a length says, before it looks for them.
    """
    for opcode, argument, _ in pickletools.genops(data):  # checks the lengths
        if opcode.name in ("PUT", "LONG_BINPUT") and (argument or 0) > len(data):
            raise pickle.UnpicklingError(f"remembers a value as number {argument}")


def find_files(name: str, path: pathlib.Path) -> pathlib.Path | None:
    """What a folder holds of the data set: its unpacked folder, or its archive.

    Args:
        name: `cifar10` or `cifar100`.
        path: The unpacked folder, or one that holds it or the archive.
    """
    layout = LAYOUTS[name]
    files = (*layout.train_files, *layout.test_files)
    for folder in (path, path / layout.folder):
        if any((folder / file).is_file() for file in files):
            return folder
    archive = path / layout.archive
    return archive if archive.is_file() else None


def read_cifar(name: str, path: pathlib.Path) -> Cifar:
    """Reads a CIFAR data set from an archive, its unpacked folder, or an npz.

    Args:
        name: `cifar10` or `cifar100`.
        path: The official Python archive, the folder that holds its batches, or an
            npz file with `x_train`, `y_train`, `x_test` and `y_test`.

    Returns:
        The arrays of both splits.

    Raises:
        UserError: A file is missing, damaged, or does not hold what it should.
    """
    layout = LAYOUTS[name]
    if path.suffix == ".npz":
        return _read_npz(path, layout)
    _refuse_others(name, path)
    files = _read_folder(path, layout) if path.is_dir() else _read_tar(path, layout)

    def split(names: tuple[str, ...]) -> Arrays:
        batches = [_read_batch(files, file, path, layout) for file in names]
        images, labels = zip(*batches, strict=True)
        return np.concatenate(images), np.concatenate(labels)

    return Cifar(
        train=split(layout.train_files),
        test=split(layout.test_files),
        class_names=_read_class_names(files, path, layout),
    )


def _refuse_others(name: str, path: pathlib.Path) -> None:
    """Names what people take for a data set, where a file is not what is read."""
    layout, others = LAYOUTS[name], LAYOUTS.keys() - {name}
    for other in others:
        if path.name in (LAYOUTS[other].archive, LAYOUTS[other].folder):
            raise UserError(f"data.path={path}: is data.name={other}, not {name}")
    if path.is_dir():
        return
    batches = {name for other in LAYOUTS.values() for name in _wanted(other)}
    head = _head(path)
    ways = f"the official {layout.archive}, the folder {layout.folder}, or an npz"
    if path.name in batches or head[:1] == b"\x80":
        what = f"one file of the data set; give its folder, {path.parent}"
    elif not path.is_file():
        what = f"neither a file nor a folder; give {ways}"
    elif head.startswith(b"PK\3\4"):
        what = f"a ZIP archive; unpack it and give the folder, or give {ways}"
    elif head.startswith(b"\x93NUMPY"):
        what = "one array; give an npz with x_train, y_train, x_test and y_test"
    elif path.suffix in (".bin", ".mat"):
        what = f"of another version of the data set; give the Python version, {ways}"
    else:
        return
    raise UserError(f"data.path={path}: is {what}")


def _head(path: pathlib.Path) -> bytes:
    """The first bytes of a file; none of what is no file or cannot be opened."""
    if not path.is_file() or not os.access(path, os.R_OK):
        return b""
    with path.open("rb") as file:
        return file.read(16)


def _wanted(layout: Layout) -> tuple[str, ...]:
    return (*layout.train_files, *layout.test_files, layout.meta_file)


def _read_folder(path: pathlib.Path, layout: Layout) -> dict[str, bytes]:
    files = [path / name for name in _wanted(layout)]
    return {file.name: file.read_bytes() for file in files if file.is_file()}


def _read_tar(path: pathlib.Path, layout: Layout) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = pathlib.PurePosixPath(member.name).name
                if name in _wanted(layout) and (file := archive.extractfile(member)):
                    files[name] = file.read()
            # Only at the end of the stream does gzip compare its checksum.
            while archive.fileobj and archive.fileobj.read(1 << 20):
                pass
    except Exception as error:  # gzip, zlib, lzma and tarfile each raise their own
        reraise_machine_fault(error)
        raise UserError(
            f"data.path={path}: not a complete tar archive ({reason(error)})"
        ) from error
    return files


def _read_batch(
    files: Mapping[str, bytes], name: str, path: pathlib.Path, layout: Layout
) -> Arrays:
    if name not in files:
        raise UserError(
            f"data.path={path}: holds no {name}: not a complete {layout.folder}"
        )
    origin = f"data.path={path}: {name}"
    batch = read_pickle(files[name], origin)
    for key in ("data", layout.label_key):
        if key not in batch:
            raise UserError(f"{origin}: has no entry {key!r}, only {sorted(batch)}")
    rows = np.asarray(batch["data"])
    if rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != 3072:
        raise UserError(
            f"{origin}: data is {rows.dtype} {list(rows.shape)}, "
            "must be uint8 [N, 3072]"
        )
    images = rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return _checked(images, batch[layout.label_key], layout.num_classes, origin)


def _read_class_names(
    files: Mapping[str, bytes], path: pathlib.Path, layout: Layout
) -> tuple[str, ...] | None:
    if layout.meta_file not in files:
        return None
    origin = f"data.path={path}: {layout.meta_file}"
    names = read_pickle(files[layout.meta_file], origin).get(layout.class_names_key)
    if (
        not isinstance(names, list)
        or len(names) != layout.num_classes
        or not all(isinstance(name, bytes | str) for name in names)
    ):
        raise UserError(
            f"{origin}: {layout.class_names_key} must be {layout.num_classes} names"
        )
    return tuple(_text(name) for name in names)


def _read_npz(path: pathlib.Path, layout: Layout) -> Cifar:
    keys = ("x_train", "y_train", "x_test", "y_test")
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in keys if key in archive}
    except Exception as error:  # zipfile, zlib and NumPy each raise their own
        reraise_machine_fault(error)
        raise UserError(
            f"data.path={path}: not a readable npz ({reason(error)})"
        ) from error
    if missing := [key for key in keys if key not in arrays]:
        raise UserError(f"data.path={path}: has no {', '.join(missing)}; needs {keys}")

    def split(name: str) -> Arrays:
        images, labels = arrays[f"x_{name}"], arrays[f"y_{name}"]
        if labels.ndim == 2 and labels.shape[1] == 1:  # as Keras stores them
            labels = labels[:, 0]
        origin = f"data.path={path}: x_{name}, y_{name}"
        return _checked(images, labels, layout.num_classes, origin)

    return Cifar(train=split("train"), test=split("test"), class_names=None)


def _checked(images: np.ndarray, labels: Any, num_classes: int, origin: str) -> Arrays:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != IMAGE_SHAPE:
        raise UserError(
            f"{origin}: images are {images.dtype} {list(images.shape)}, "
            "must be uint8 [N, 32, 32, 3]"
        )
    try:
        labels = np.asarray(labels)
    except ValueError as error:  # a ragged list
        raise UserError(f"{origin}: labels must be integers [N]") from error
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise UserError(
            f"{origin}: labels are {labels.dtype} {list(labels.shape)}, "
            f"must be integers [{len(images)}]"
        )
    if len(labels) == 0:
        raise UserError(f"{origin}: holds no examples")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise UserError(
            f"{origin}: labels are in [{labels.min()}, {labels.max()}], "
            f"must be in [0, {num_classes - 1}]"
        )
    return np.ascontiguousarray(images), labels.astype(np.int32)


def _text(value: str | bytes) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="surrogateescape")
    return str(value)


# What a pickle may name, and what we build instead. NumPy's own constructors are
# not called at all: fed with a crafted dtype, they can be made to read raw bytes
# as object pointers.


class _Dtype:
    """Stands for `numpy.dtype`: a plain number type."""

    def __init__(self, code: str | bytes, *_: Any) -> None:
        self.dtype = np.dtype(_text(code))
        if self.dtype.kind not in "biuf":
            raise pickle.UnpicklingError(f"array of {self.dtype}, not of numbers")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        byte_order: Any = _text(state[1])
        self.dtype = self.dtype.newbyteorder(byte_order)


class _Array:
    """Stands for `numpy.ndarray` and the function that pickles create it by."""

    array: np.ndarray

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, buffer = state
        self.array = _frombuffer(buffer, dtype, shape, "F" if is_fortran else "C").array


def _frombuffer(
    buffer: bytes | bytearray,
    dtype: _Dtype,
    shape: tuple[int, ...],
    order: str | bytes,
) -> _Array:
    """Stands for the function that creates arrays in protocol 5."""
    built = _Array()
    flat = np.frombuffer(buffer, dtype.dtype)
    built.array = np.reshape(flat, shape, order="F" if _text(order) == "F" else "C")
    return built


def _scalar(dtype: _Dtype, buffer: bytes) -> np.generic:
    return np.frombuffer(buffer, dtype.dtype)[0]


def _encode(text: str, _: str) -> bytes:
    """Stands for `_codecs.encode`: how protocols 0 to 2 of Python 3 write bytes."""
    return text.encode("latin-1")


def _plain(value: Any) -> Any:
    return value.array if isinstance(value, _Array) else value


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}
for _core in ("numpy.core", "numpy._core"):  # before NumPy 2, and since
    _ALLOWED[f"{_core}.multiarray", "_reconstruct"] = _Array
    _ALLOWED[f"{_core}.multiarray", "scalar"] = _scalar
    _ALLOWED[f"{_core}.numeric", "_frombuffer"] = _frombuffer


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        try:
            return _ALLOWED[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it names {module_name}.{global_name}, which is not allowed"
            ) from None
