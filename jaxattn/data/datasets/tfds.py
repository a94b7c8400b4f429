"""Data sets of TFDS, decoded on access. TFDS itself is imported where it is used."""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxattn import host
from jaxattn.data.crops import File, check_on_bad_image, make_crops, make_sources
from jaxattn.data.datasets import archives
from jaxattn.data.datasets.paths import existing
from jaxattn.data.source import Data, Example
from jaxattn.errors import UserError, reason, reraise_machine_fault
from jaxattn.packages import how_to_install
from jaxattn.web import unreachable


def load_tfds(
    name: str,
    *,
    path: str | None = None,
    image_size: int | None = None,
    resize_px: int | None = None,
    crop_scale: tuple[float, float] | None = None,
    crop_ratio: tuple[float, float] | None = None,
    on_bad_image: str | None = None,
) -> Data:
    """Loads an image classification data set by TFDS.

    Images of one size are kept as they are. Those of many sizes (ImageNet) are treated
    as an image folder's, and take the keywords of `load_imagefolder`.

    Args:
        name: "tfds:<name>", with version and config as TFDS writes them, or the name
            alone.
        path: A prepared TFDS directory. Without it TFDS reads its own
            (`TFDS_DATA_DIR`) and downloads what is not there.
        image_size: As of `load_imagefolder`; of images of many sizes only, like all
            below.
        resize_px: The same.
        crop_scale: The same.
        crop_ratio: The same.
        on_bad_image: The same.

    Raises:
        UserError: The data cannot be had, or a value is not accepted.
    """
    check_on_bad_image(on_bad_image)
    views: dict[str, Any] = {
        "image_size": image_size,
        "resize_px": resize_px,
        "crop_scale": crop_scale,
        "crop_ratio": crop_ratio,
    }
    crops = make_crops(**views)
    builder = _find_builder(name, path)
    image, label = _image_and_label(name, builder.info.features)
    is_fixed = None not in image.shape
    if is_fixed:
        _refuse_views(name, {**views, "on_bad_image": on_bad_image})
    with host.quiet_absl():  # of every folder that holds half of a data set
        is_prepared = builder.is_prepared()
    if not is_prepared:
        _prepare(builder, name, path)
    test_split = _test_split(name, builder)
    train, test = (
        _tfds_source(builder, split, label.num_classes)
        for split in ("train", test_split)
    )
    shape, resize_px = image.shape, None
    if not is_fixed:
        train, test = make_sources(
            _TfdsFiles(train, f"{name}, train"),
            _TfdsFiles(test, f"{name}, {test_split}"),
            crops,
            on_bad_image,
        )
        shape, resize_px = crops.frame.image_shape, crops.frame.resize_px
    return Data(
        name=name,
        train=train,
        val=None,
        test=test,
        class_names=tuple(label.names),
        image_shape=shape,
        resize_px=resize_px,
        files={
            split: f"{len(source)} examples of {builder.info.full_name}"
            for split, source in (("train", train), (test_split, test))
        },
    )


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

    def __getitem__(self, index: int) -> File:
        record = self.source.undecoded[index]
        label = self.source._label(record)
        return File(record["image"], label, f"{self.name}: image {index}")

    @property
    def labels(self) -> np.ndarray:
        """All labels, int32 `[N]`, without decoding an image."""
        return self.source.labels


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
    where = None if path is None else existing(path)
    key = f"data.name={name}" if path is None else f"data.path={path}"
    try:
        host.quiet_tensorflow()
        import tensorflow_datasets as tfds

        # Without the format TFDS prepares records that have no random access.
        with host.quiet_absl():
            if where is None or not (where / "features.json").is_file():
                return tfds.builder(dataset, data_dir=where, file_format="array_record")
            builder = tfds.builder_from_directory(where, file_format="array_record")
    except ImportError as error:
        advice = how_to_install(error)
        raise UserError(
            f"data.name={name}: needs a package that is not installed "
            f"({reason(error)})" + (f": {advice}" if advice else "")
        ) from error
    except Exception as error:  # TFDS raises its own, ValueError, AssertionError, ...
        reraise_machine_fault(error)
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
    advice = f"set data.path to {ways}"
    # TFDS itself takes more than three minutes to give up on a dead connection.
    for url in list(builder.url_infos or {})[:1]:
        if failure := unreachable(url):
            raise UserError(
                f"data.name={name}: cannot download {url} ({failure}); {advice}"
            )
    try:
        builder.download_and_prepare()
    except Exception as error:  # those of TFDS, of the network and of the disk
        reraise_machine_fault(error)
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
