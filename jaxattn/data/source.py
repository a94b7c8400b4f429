"""Where examples come from: one name in, a `Data` of indexable sources out.

Small data sets are arrays in memory (`ArraySource`); data sets of TFDS and image
folders stay on disk and are decoded on access. Libraries are imported where used.
"""

import functools
import inspect
import pathlib
import queue
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import (
    TYPE_CHECKING,
    Any,
    NotRequired,
    Protocol,
    TypedDict,
    runtime_checkable,
)

import numpy as np

from jaxattn.data import archives
from jaxattn.errors import UserError, choose, reason

if TYPE_CHECKING:
    from jaxattn.data.folder import Crops, File

# TFDS takes more than three minutes to give up on a dead connection.
_ANSWER_TIMEOUT_S = 6.0

_CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


class BadImageError(UserError):
    """An image whose content cannot be decoded."""


class Example(TypedDict):
    """One image, uint8 `[H, W, C]`, and its class.

    Where it stands in for another image that cannot be decoded, `error` says why.
    """

    image: np.ndarray
    label: int
    error: NotRequired[str]


class Source(Protocol):
    """An indexable collection of examples."""

    def __len__(self) -> int:
        """The number of examples."""
        ...

    def __getitem__(self, index: int) -> Example:
        """The example at a position in `[0, len)`."""
        ...


@runtime_checkable
class DrawingSource(Source, Protocol):
    """A source whose training examples are drawn anew at every use.

    Its `[index]` is the example as evaluation shows it.
    """

    def draw(self, index: int, rng: np.random.Generator) -> Example:
        """Draws a training example from what is at a position in `[0, len)`."""
        ...


@dataclass(frozen=True, eq=False)
class ArraySource:
    """Examples in memory.

    Attributes:
        images: uint8 `[N, H, W, C]`.
        labels: int32 `[N]`.

    Raises:
        UserError: A dtype or shape is another, or the lengths differ.
    """

    images: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        """Checks the arrays."""
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise UserError(
                f"images: {self.images.dtype} {list(self.images.shape)}, "
                "must be uint8 [N, H, W, C]"
            )
        if self.labels.dtype != np.int32 or self.labels.shape != self.images.shape[:1]:
            raise UserError(
                f"labels: {self.labels.dtype} {list(self.labels.shape)}, "
                f"must be int32 [{len(self.images)}]"
            )

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.images)

    def __getitem__(self, index: int) -> Example:
        """The example at a position."""
        return {"image": self.images[index], "label": int(self.labels[index])}


@dataclass(frozen=True, eq=False)
class Subset:
    """The examples of a source at some positions, read when asked for.

    Attributes:
        source: Where the examples are.
        indices: Positions in it, int `[N]`.
    """

    source: Source
    indices: np.ndarray

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        """The example at a position of the subset."""
        return self.source[int(self.indices[index])]

    @property
    def labels(self) -> np.ndarray:
        """All labels, int `[N]`."""
        return read_labels(self.source)[self.indices]


@dataclass(frozen=True, eq=False)
class DrawingSubset(Subset):
    """A subset whose training examples are drawn as those of its source.

    Attributes:
        source: Where the examples are.
        indices: Positions in it, int `[N]`.
    """

    source: DrawingSource

    def draw(self, index: int, rng: np.random.Generator) -> Example:
        """Draws a training example from what is at a position of the subset."""
        return self.source.draw(int(self.indices[index]), rng)


@dataclass(frozen=True, eq=False)
class SkippingSource:
    """A source in which the next image stands in for one that cannot be decoded.

    The first one is next to the last. A stand-in comes with its own label, and with the
    `error` of the image that was asked for.

    Attributes:
        source: Raises `BadImageError` where an image cannot be decoded.
    """

    source: Source

    def __len__(self) -> int:
        """The number of examples, those that cannot be decoded included."""
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        """The example at a position, or the one that stands in for it."""
        return self._read_next(index, self.source.__getitem__)

    @property
    def labels(self) -> np.ndarray:
        """All labels, int `[N]`, those of images that cannot be decoded included."""
        return read_labels(self.source)

    def _read_next(self, index: int, read: Callable[[int], Example]) -> Example:
        errors = []
        for i in range(len(self)):
            try:
                example = read((index + i) % len(self))
            except BadImageError as error:
                errors.append(str(error))
            else:
                return {**example, "error": errors[0]} if errors else example
        raise UserError(
            f"data.on_bad_image='skip': none of the {len(self)} images of a split can "
            f"be decoded; {errors[0]}"
        )


@dataclass(frozen=True, eq=False)
class DrawingSkippingSource(SkippingSource):
    """A skipping source whose training examples are drawn as those of its source.

    Attributes:
        source: Raises `BadImageError` where an image cannot be decoded.
    """

    source: DrawingSource

    def draw(self, index: int, rng: np.random.Generator) -> Example:
        """Draws a training example; from a stand-in as if that had been asked for."""
        state = rng.bit_generator.state

        def draw(position: int) -> Example:
            rng.bit_generator.state = state  # a failed attempt may have drawn
            return self.source.draw(position, rng)

        return self._read_next(index, draw)


def skip_bad_images(source: Source) -> SkippingSource:
    """Returns a source with stand-ins for the images that cannot be decoded."""
    if isinstance(source, DrawingSource):
        return DrawingSkippingSource(source)
    return SkippingSource(source)


@dataclass(frozen=True, eq=False)
class Data:
    """A data set: its splits and what they have in common.

    Attributes:
        name: The name it was loaded by.
        train: Training examples.
        val: Examples held out of training, None if there are none.
        test: Test examples.
        class_names: The name of each label.
        image_shape: `(H, W, C)` of every image, as the source gives it.
    """

    name: str
    train: Source
    val: Source | None
    test: Source
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)


def load_data(
    name: str,
    path: str | None = None,
    *,
    val_fraction: float = 0.1,
    split_seed: int = 0,
    max_train_examples: int | None = None,
    image_size: int | None = None,
    resize_px: int | None = None,
    crop_scale: tuple[float, float] | None = None,
    crop_ratio: tuple[float, float] | None = None,
    on_bad_image: str | None = None,
    num_train: int | None = None,
    num_test: int | None = None,
    num_classes: int | None = None,
) -> Data:
    """Loads a data set by name.

    Images of many sizes (an image folder, ImageNet, such data sets of TFDS) are decoded
    when asked for, as RGB: in training a random crop (torchvision's
    `RandomResizedCrop`), in evaluation the centre of the scaled image.

    Args:
        name: `digits` (bundled with scikit-learn), `cifar10`, `cifar100`,
            `imagefolder` (image files in `train/<class>/` and `val/<class>/`, the last
            being the test split), `imagenet2012` (that of TFDS, tested on its
            validation split), `tfds:<name>` (an image classification data set of TFDS)
            or `synthetic` (random images that can be learned).
        path: Where the data are. For CIFAR the official Python archive, its
            unpacked folder, an npz with `x_train`, `y_train`, `x_test`, `y_test`, or a
            prepared TFDS directory; for `imagenet2012` and `tfds:<name>` the last.
            Without it TFDS reads its own directory (`TFDS_DATA_DIR`) and downloads what
            is not there. For `imagefolder` the folder of `train` and `val`.
        val_fraction: The share of the training split, in [0, 1), that is held out for
            validation, by class. 0 holds out nothing. Else TFDS's records are read
            once for their labels: minutes for ImageNet.
        split_seed: The seed of that choice.
        max_train_examples: The most training examples that are kept, beside those held
            out; a larger split is thinned by class, for every seed to the same ones.
        image_size: Height and width in pixels of `digits` and `synthetic` (32), and
            that images of many sizes are cropped to (224).
        resize_px: For images of many sizes: their shorter side in evaluation, before
            the crop; at least `image_size` (256/224 of it).
        crop_scale: For images of many sizes: smallest and largest share of the area
            that a random crop takes (0.08, 1). A smallest share of 1 turns random
            crops off: training images are then shown as in evaluation.
        crop_ratio: For images of many sizes: smallest and largest width / height of a
            random crop (3/4, 4/3).
        on_bad_image: For images of many sizes: what is done about an image that cannot
            be decoded. "error" ends the run, "skip" names it, trains on the next image
            of the split in its place, and leaves it out of evaluations ("error"). A
            file that cannot be opened is always an error.
        num_train: The number of training examples of `synthetic` (1024).
        num_test: The number of test examples of `synthetic` (256).
        num_classes: The number of classes of `synthetic` (10).

    Returns:
        The data set.

    Raises:
        UserError: An argument is not accepted, or the data cannot be had.
    """
    loader = _find_loader(name)
    if not 0 <= val_fraction < 1:
        raise UserError(f"data.val_fraction={val_fraction}: must be in [0, 1)")
    if max_train_examples is not None and max_train_examples < 1:
        raise UserError(
            f"data.max_train_examples={max_train_examples}: must be at least 1"
        )
    sizes = {
        "image_size": image_size,
        "resize_px": resize_px,
        "num_train": num_train,
        "num_test": num_test,
        "num_classes": num_classes,
    }
    if on_bad_image is not None:
        choose("data.on_bad_image", on_bad_image, ("error", "skip"))
    others = {
        "path": path,
        "crop_scale": crop_scale,
        "crop_ratio": crop_ratio,
        "on_bad_image": on_bad_image,
    }
    options: dict[str, Any] = {
        key: value for key, value in {**others, **sizes}.items() if value is not None
    }
    accepted = inspect.signature(loader).parameters
    for key, value in options.items():
        if key not in accepted:
            raise UserError(
                f"data.{key}={value}: not accepted with data.name={name}; leave it out"
            )
        if key in sizes and value < 1:
            raise UserError(f"data.{key}={value}: must be at least 1")
    data = _hold_out(loader(**options), val_fraction, split_seed)
    return _thin(data, max_train_examples)


def _find_loader(name: str) -> Callable[..., Data]:
    """The function that loads a data set; its arguments are the keys it accepts."""
    if name.startswith("tfds:") and name != "tfds:":
        return functools.partial(_load_tfds, name)
    loaders = {
        "cifar10": functools.partial(_load_cifar, "cifar10"),
        "cifar100": functools.partial(_load_cifar, "cifar100"),
        "digits": _load_digits,
        "imagefolder": _load_imagefolder,
        "imagenet2012": functools.partial(_load_tfds, "imagenet2012"),
        "synthetic": _load_synthetic,
    }
    if name not in loaders:
        choices = ", ".join([*loaders, "tfds:<name>"])
        raise UserError(f"data.name={name}: unknown data set; choices: {choices}")
    return loaders[name]


def _hold_out(data: Data, fraction: float, seed: int) -> Data:
    if fraction == 0:
        return data
    train, val = _stratified_split(read_labels(data.train), fraction, seed)
    if len(train) == 0 or len(val) == 0:
        raise UserError(
            f"data.val_fraction={fraction}: splits the {len(data.train)} training "
            f"examples into {len(train)} and {len(val)}; use 0 to hold out none"
        )
    return replace(
        data, train=_take_train(data.train, train), val=_take(data.train, val)
    )


def _thin(data: Data, max_train_examples: int | None) -> Data:
    if max_train_examples is None or len(data.train) <= max_train_examples:
        return data
    # Part of an experiment's definition, so its seed is constant.
    share = max_train_examples / len(data.train)
    _, kept = _stratified_split(read_labels(data.train), share, seed=0)
    return replace(data, train=_take_train(data.train, kept))


def _stratified_split(
    labels: np.ndarray, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Splits `[0, N)` into what is kept and what is held out, by class.

    Of the N shuffled positions, sorted by class, every 1/fraction-th is held out:
    round(fraction * N) in all, and of each class its share to within one.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    num_held = round(fraction * len(labels))
    held = np.diff(np.arange(len(labels) + 1) * num_held // max(len(labels), 1)) > 0
    return np.sort(order[~held]), np.sort(order[held])


def read_labels(source: Source) -> np.ndarray:
    """Returns the labels of all examples, int `[N]`."""
    labels = getattr(source, "labels", None)  # where the images need not be read
    if labels is not None:
        return labels
    return np.array([source[i]["label"] for i in range(len(source))])


def _take(source: Source, indices: np.ndarray) -> Source:
    if isinstance(source, ArraySource):
        return ArraySource(source.images[indices], source.labels[indices])
    if isinstance(source, SkippingSource):  # stand-ins come from the same part
        return SkippingSource(_take(source.source, indices))
    return Subset(source, indices)


def _take_train(source: Source, indices: np.ndarray) -> Source:
    if isinstance(source, SkippingSource):
        return skip_bad_images(_take_train(source.source, indices))
    if isinstance(source, DrawingSource):
        return DrawingSubset(source, indices)
    return _take(source, indices)


def _load_digits(image_size: int = 32) -> Data:
    from PIL import Image
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    grey = np.round(bunch.images * (255 / 16)).astype(np.uint8)

    def resize(image: np.ndarray) -> np.ndarray:
        size = (image_size, image_size)
        return np.asarray(
            Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)
        )

    images = np.stack([resize(image) for image in grey])
    images = np.repeat(images[..., None], 3, axis=-1)
    digits = ArraySource(images, bunch.target.astype(np.int32))
    # The test set is part of the data set's definition, so its seed is constant.
    train, test = _stratified_split(digits.labels, 0.2, seed=0)
    return Data(
        name="digits",
        train=_take(digits, train),
        val=None,
        test=_take(digits, test),
        class_names=tuple("0123456789"),
        image_shape=(image_size, image_size, 3),
    )


def _load_synthetic(
    image_size: int = 32,
    num_train: int = 1024,
    num_test: int = 256,
    num_classes: int = 10,
) -> Data:
    rng = np.random.default_rng(0)
    # A class is a coarse 4x4 pattern of colours; noise of 48 cannot wrap around.
    patterns = rng.integers(64, 192, (num_classes, 4, 4, 3), dtype=np.int16)
    cell = np.arange(image_size) * 4 // image_size
    patterns = patterns[:, cell][:, :, cell]

    def split(num_examples: int) -> ArraySource:
        labels = rng.permutation(num_examples).astype(np.int32) % num_classes
        shape = (num_examples, image_size, image_size, 3)
        noise = rng.integers(-48, 49, shape, dtype=np.int16)
        return ArraySource((patterns[labels] + noise).astype(np.uint8), labels)

    return Data(
        name="synthetic",
        train=split(num_train),
        val=None,
        test=split(num_test),
        class_names=tuple(str(i) for i in range(num_classes)),
        image_shape=(image_size, image_size, 3),
    )


def _load_cifar(name: str, /, path: str | None = None) -> Data:
    if path is None:
        return _load_tfds(name)
    where = _existing(path)
    if where.is_dir():
        folder = archives.find_folder(name, where)
        if folder is None:
            return _load_tfds(name, path)
        where = folder
    cifar = archives.read_cifar(name, where)
    num_classes = archives.LAYOUTS[name].num_classes
    numbers = tuple(str(i) for i in range(num_classes))
    known = _CIFAR10_CLASSES if name == "cifar10" else numbers
    return Data(
        name=name,
        train=ArraySource(*cifar.train),
        val=None,
        test=ArraySource(*cifar.test),
        class_names=cifar.class_names or known,
        image_shape=archives.IMAGE_SHAPE,
    )


def _load_imagefolder(
    path: str | None = None,
    image_size: int | None = None,
    resize_px: int | None = None,
    crop_scale: tuple[float, float] | None = None,
    crop_ratio: tuple[float, float] | None = None,
    on_bad_image: str | None = None,
) -> Data:
    from jaxattn.data import folder

    if path is None:
        raise UserError(
            "data.path: needed with data.name=imagefolder: a folder with "
            "train/<class>/ and val/<class>/"
        )
    crops = _make_crops(image_size, resize_px, crop_scale, crop_ratio)
    found = folder.read_folder(_existing(path))
    train, test = folder.make_sources(found.train, found.test, crops, on_bad_image)
    return Data(
        name="imagefolder",
        train=train,
        val=None,
        test=test,
        class_names=found.class_names,
        image_shape=(crops.image_size, crops.image_size, 3),
    )


def _existing(path: str) -> pathlib.Path:
    where = pathlib.Path(path).expanduser()
    if not where.exists():
        raise UserError(f"data.path={path}: no such file or folder")
    return where


@dataclass(frozen=True, eq=False)
class _TfdsSource:
    """A split of a prepared TFDS data set, decoded on access.

    Attributes:
        records: The split.
        undecoded: The same split with its images left as encoded.
        num_classes: What bounds a label.
    """

    records: Any
    undecoded: Any
    num_classes: int

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        record = self.records[index]
        return {"image": record["image"], "label": self._label(record)}

    @property
    def labels(self) -> np.ndarray:
        """All labels, int32 `[N]`, without decoding an image."""
        records = (self.undecoded[i] for i in range(len(self)))
        return np.fromiter((self._label(record) for record in records), np.int32)

    def _label(self, record: dict[str, Any]) -> int:
        label = int(record["label"])
        if not 0 <= label < self.num_classes:  # TFDS marks unlabelled examples by -1
            raise UserError(
                f"{self.records}: has a label {label}, "
                f"must be in [0, {self.num_classes - 1}]"
            )
        return label


@dataclass(frozen=True, eq=False)
class _TfdsFiles:
    """A split of a prepared TFDS data set whose images are left as encoded.

    Attributes:
        source: The split.
        name: What errors call it.
    """

    source: _TfdsSource
    name: str

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> "File":
        from jaxattn.data.folder import File

        record = self.source.undecoded[index]
        label = self.source._label(record)
        return File(record["image"], label, f"{self.name}: image {index}")

    @property
    def labels(self) -> np.ndarray:
        """All labels, int32 `[N]`, without decoding an image."""
        return self.source.labels


def _load_tfds(
    name: str,
    /,
    path: str | None = None,
    image_size: int | None = None,
    resize_px: int | None = None,
    crop_scale: tuple[float, float] | None = None,
    crop_ratio: tuple[float, float] | None = None,
    on_bad_image: str | None = None,
) -> Data:
    views = {
        "image_size": image_size,
        "resize_px": resize_px,
        "crop_scale": crop_scale,
        "crop_ratio": crop_ratio,
    }
    crops = _make_crops(**views)
    builder = _find_builder(name, path)
    image, label = _image_and_label(name, builder.info.features)
    is_fixed = None not in image.shape
    if is_fixed:
        _refuse_views(name, {**views, "on_bad_image": on_bad_image})
    if not builder.is_prepared():
        _prepare(builder, name, path)
    test_split = _test_split(name, builder)
    train, test = (
        _tfds_source(builder, split, label.num_classes)
        for split in ("train", test_split)
    )
    shape = image.shape
    if not is_fixed:
        from jaxattn.data.folder import make_sources

        train, test = make_sources(
            _TfdsFiles(train, f"{name}, train"),
            _TfdsFiles(test, f"{name}, {test_split}"),
            crops,
            on_bad_image,
        )
        shape = (crops.image_size, crops.image_size, 3)
    return Data(
        name=name,
        train=train,
        val=None,
        test=test,
        class_names=tuple(label.names),
        image_shape=shape,
    )


def _make_crops(
    image_size: int | None,
    resize_px: int | None,
    crop_scale: tuple[float, float] | None,
    crop_ratio: tuple[float, float] | None,
) -> "Crops":
    from jaxattn.data.folder import Crops

    values = {
        "image_size": image_size,
        "resize_px": resize_px,
        "scale": crop_scale,
        "ratio": crop_ratio,
    }
    given: dict[str, Any] = {k: v for k, v in values.items() if v is not None}
    return Crops(**given)


def _refuse_views(name: str, views: dict[str, Any]) -> None:
    """Refuses the keys of images of many sizes."""
    for key, value in views.items():
        if value is not None:
            raise UserError(
                f"data.{key}={value}: not accepted with data.name={name}, whose images "
                "are of one size; leave it out"
            )


def _test_split(name: str, builder: Any) -> str:
    """The split to test on."""
    splits = builder.info.splits
    # The test images of ImageNet have no labels.
    has_test = "test" in splits and builder.name != "imagenet2012"
    test = "test" if has_test else "validation"
    if "train" not in splits or test not in splits:
        raise UserError(
            f"data.name={name}: needs the splits train and test (or validation), "
            f"has {', '.join(splits) or 'none'}"
        )
    return test


def _tfds_source(builder: Any, split: str, num_classes: int) -> _TfdsSource:
    from tensorflow_datasets import decode

    skip_images = {"image": decode.SkipDecoding()}
    return _TfdsSource(
        records=builder.as_data_source(split),
        undecoded=builder.as_data_source(split, decoders=skip_images),
        num_classes=num_classes,
    )


def _find_builder(name: str, path: str | None) -> Any:
    """The TFDS builder of a data set, whether or not it is prepared."""
    dataset = name.removeprefix("tfds:")
    # After the colon of a version comes a number; that of others' data sets, which
    # bring code that TFDS would run, comes after their namespace.
    if re.search(r":[^\d*]", dataset):
        raise UserError(
            f"data.name={name}: data sets of a namespace are not accepted, since TFDS"
            " runs code that comes with them"
        )
    where = None if path is None else _existing(path)
    key = f"data.name={name}" if path is None else f"data.path={path}"
    try:
        import tensorflow_datasets as tfds

        # Without the format TFDS prepares records that have no random access.
        if where is None or not (where / "features.json").is_file():
            return tfds.builder(dataset, data_dir=where, file_format="array_record")
        builder = tfds.builder_from_directory(where, file_format="array_record")
    except ImportError as error:
        raise UserError(
            f"data.name={name}: needs a package that is not installed "
            f"({reason(error)}): pip install 'jaxattn[train]'"
        ) from error
    except Exception as error:  # TFDS raises its own, ValueError, AssertionError, ...
        raise UserError(f"{key}: {reason(error)}") from error
    if builder.name != dataset.partition(":")[0].partition("/")[0]:
        raise UserError(f"{key}: holds {builder.name}, not {dataset}")
    return builder


def _prepare(builder: Any, name: str, path: str | None) -> None:
    """Downloads a data set, unless a path says that it should be there already."""
    ways = "a prepared TFDS directory (array_record)"
    if name in archives.LAYOUTS:
        layout = archives.LAYOUTS[name]
        ways = f"the official {layout.archive}, its folder {layout.folder}, an npz "
        ways += "with x_train, y_train, x_test, y_test, or a prepared TFDS directory"
    if path is not None:
        raise UserError(f"data.path={path}: holds no {name}; must be {ways}")
    advice = f"set --config.data.path= to {ways}"
    for url in list(builder.url_infos or {})[:1]:
        if failure := _unreachable(url):
            raise UserError(
                f"data.name={name}: cannot download {url} ({failure}); {advice}"
            )
    try:
        builder.download_and_prepare()
    except Exception as error:  # those of TFDS, of the network and of the disk
        raise UserError(
            f"data.name={name}: TFDS could not prepare it ({reason(error)}); {advice}"
        ) from error


def _image_and_label(name: str, features: Any) -> tuple[Any, Any]:
    """The two features of an image classification data set, checked."""
    for key, kind in (("image", "Image"), ("label", "ClassLabel")):
        found = type(features[key]).__name__ if key in features else "missing"
        if found != kind:
            raise UserError(
                f"data.name={name}: not a data set for image classification: "
                f"its feature {key!r} is {found}, must be {kind}"
            )
    image, label = features["image"], features["label"]
    if len(image.shape) != 3:
        raise UserError(
            f"data.name={name}: images are {image.shape}, must be [H, W, C]"
        )
    if image.np_dtype != np.uint8:
        raise UserError(f"data.name={name}: images are {image.np_dtype}, must be uint8")
    return image, label


def _unreachable(url: str) -> str | None:
    """Why a server does not answer, None if it does."""
    request = urllib.request.Request(url, method="HEAD")
    outcome: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def ask() -> None:
        try:
            urllib.request.urlopen(request, timeout=_ANSWER_TIMEOUT_S).close()
        except urllib.error.HTTPError as error:
            error.close()
            # Some servers refuse HEAD; TFDS retries on 5xx only.
            outcome.put(str(error) if error.code >= 500 else None)
        except Exception as error:
            outcome.put(str(error))
        else:
            outcome.put(None)

    # In a thread, since the timeout of urlopen does not cover the name lookup.
    threading.Thread(target=ask, daemon=True).start()
    try:
        return outcome.get(timeout=_ANSWER_TIMEOUT_S + 1)
    except queue.Empty:
        return f"no answer in {_ANSWER_TIMEOUT_S + 1:.0f} s"
