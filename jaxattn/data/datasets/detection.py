"""Photos with boxes in a folder, as `jaxattn.data.datasets.box_folders` finds them.

Splits are those that are found. Without one for tests that of validation is tested,
and training images are held out for validation by `data.val_fraction`, as of other data
sets; without either every fifth image is a test image, always the same ones.
"""

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxattn.data.boxes import Annotated, BoxedImages, MovingBoxedImages
from jaxattn.data.crops import check_on_bad_image
from jaxattn.data.datasets.box_folders import LAYOUTS, read_folder
from jaxattn.data.datasets.paths import existing
from jaxattn.data.preprocess import Canvas
from jaxattn.data.source import Data, Source, skip_bad_images
from jaxattn.data.splits import stratified_split
from jaxattn.errors import UserError, require

_MAX_SIDE_PX = 10_000
_TEST_SHARE = 0.2


def load_detection_folder(
    name: str,
    *,
    path: str | None = None,
    canvas_size: int | Sequence[int] | None = None,
    max_boxes: int | None = None,
    scales_up: bool | None = None,
    scale_range: Sequence[float] | None = None,
    on_bad_image: str | None = None,
) -> Data:
    """Loads photos with boxes around their objects.

    Photos are decoded when asked for, and shown whole on a canvas, scaled to fit it.

    Args:
        name: What the data set is called.
        path: The folder, laid out as COCO's, Pascal VOC's or YOLO's.
        canvas_size: Height and width of the canvas, pixels; one number for both (640).
        max_boxes: The most objects of an image (100).
        scales_up: Scales photos up that are smaller than the canvas (True).
        scale_range: Smallest and largest factor that a training photo is scaled by
            beyond that; it is put, or cropped, at random then (1, 1).
        on_bad_image: What is done about a photo that cannot be decoded: "error" or
            "skip", as of `imagefolder` ("error").

    Raises:
        UserError: The data cannot be had, or a value is out of its range.
    """
    check_on_bad_image(on_bad_image)
    if path is None:
        raise UserError(f"data.path: needed with data.name={name}: {LAYOUTS}")
    up = True if scales_up is None else scales_up
    canvas = Canvas((*_size(canvas_size), 3), scales_up=up)
    jitter = _jitter(scale_range)
    most = 100 if max_boxes is None else max_boxes
    require("data.max_boxes", most, most >= 1, "at least 1")
    folder = read_folder(existing(path))
    _check_counts(folder.splits, most)
    splits, notes = _with_test(folder.splits)
    sources: dict[str, Source] = {
        split: BoxedImages(files, canvas, most) for split, files in splits.items()
    }
    if jitter != (1, 1):
        sources["train"] = MovingBoxedImages(splits["train"], canvas, most, jitter)
    if on_bad_image == "skip":
        sources = {split: skip_bad_images(source) for split, source in sources.items()}
    return Data(
        name=name,
        train=sources["train"],
        val=sources.get("val"),
        test=sources["test"],
        class_names=folder.class_names,
        image_shape=canvas.image_shape,
        is_canvas=True,
        scales_up=up,
        files={split: _fingerprint(path, own) for split, own in splits.items()},
        notes=(*folder.notes, *notes),
    )


def _size(canvas_size: int | Sequence[int] | None) -> tuple[int, int]:
    given: Any = 640 if canvas_size is None else canvas_size
    sides = (given, given) if isinstance(given, int) else tuple(given)
    holds = len(sides) == 2 and all(
        isinstance(side, int) and 32 <= side <= _MAX_SIDE_PX for side in sides
    )
    wanted = f"a height and a width from 32 to {_MAX_SIDE_PX:,}, or one number for both"
    require("data.canvas_size", given, holds, wanted)
    return sides[0], sides[1]


def _jitter(values: Sequence[float] | None) -> tuple[float, float]:
    given = (1.0, 1.0) if values is None else tuple(values)
    holds = len(given) == 2 and 0 < given[0] <= given[1] < math.inf
    wanted = "two numbers above 0, the smallest first"
    require("data.scale_range", given, holds, wanted)
    return given[0], given[1]


def _check_counts(splits: Mapping[str, Sequence[Annotated]], max_boxes: int) -> None:
    """Refuses images with more objects than there is room for."""
    every = [file for files in splits.values() for file in files]
    fullest = max(every, key=lambda file: len(file.objects.boxes))
    if (count := len(fullest.objects.boxes)) > max_boxes:
        raise UserError(
            f"data.max_boxes={max_boxes}: {fullest.path} has {count} boxes; must be at"
            f" least {count}"
        )


def _with_test(
    splits: dict[str, list[Annotated]],
) -> tuple[dict[str, list[Annotated]], list[str]]:
    """Returns splits one of which is tested, and what is to be said of that."""
    if "test" in splits:
        return splits, []
    if "val" in splits:
        return {"train": splits["train"], "test": splits["val"]}, []
    files = splits["train"]
    # Part of an experiment's definition, so its seed is constant.
    strata = np.zeros(len(files), np.int32)
    train, test = stratified_split(strata, _TEST_SHARE, seed=0)
    if not len(test):
        raise UserError(f"data.path: {len(files)} images are too few to test on some")
    note = f"no test split was found: {len(test):,} images, always these, are tested"
    parts = {"train": train, "test": test}
    return {k: [files[i] for i in indices] for k, indices in parts.items()}, [note]


def _fingerprint(root: str, files: Sequence[Annotated]) -> str:
    digest, total, count = hashlib.sha256(), 0, 0
    for file in files:
        size = os.stat(file.path).st_size
        name = os.path.relpath(file.path, root)
        digest.update(f"{name}\0{size}\n".encode(errors="surrogateescape"))
        for values in file.objects:
            digest.update(np.ascontiguousarray(values).data)
        total, count = total + size, count + len(file.objects.boxes)
    return (
        f"{len(files)} images of {total} bytes, {count} boxes, sha256"
        f" {digest.hexdigest()[:16]}"
    )
