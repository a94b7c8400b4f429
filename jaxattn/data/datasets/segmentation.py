"""Images in a folder, and for each a label map: the class of every pixel.

Which folders it may be, `jaxattn.data.datasets.layouts` says.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaxattn.data.crops import check_on_bad_image
from jaxattn.data.datasets.classes import parse_classes, read_classes
from jaxattn.data.datasets.layouts import LAYOUTS, find_layout
from jaxattn.data.datasets.paths import existing
from jaxattn.data.images import decode, read_size
from jaxattn.data.label_maps import LabelMapReader
from jaxattn.data.labelled_images import (
    LabelledImage,
    LabelledImages,
    RandomlyScaledImages,
    ScaledCrops,
    require_same_size,
)
from jaxattn.data.preprocess import Canvas
from jaxattn.data.source import BadImageError, Data, Source, skip_bad_images
from jaxattn.errors import UserError, require

if TYPE_CHECKING:
    from PIL import Image

_MAX_SIDE_PX = 10_000
_FEW = 3  # examples of each split that are read at once, for mistakes of the whole


def load_segmentation_folder(
    name: str,
    *,
    path: str | None = None,
    classes: Sequence[str] | None = None,
    reduce_zero_label: bool | None = None,
    canvas_size: int | Sequence[int] | None = None,
    crop_size: int | Sequence[int] | None = None,
    scale_range: Sequence[float] | None = None,
    cat_max_ratio: float | None = None,
    on_bad_image: str | None = None,
) -> Data:
    """Loads `images/<split>/*` and their label maps `annotations/<split>/*.png`.

    Splits are `train`, `val` and `test`; one of the last two may be missing, and `val`
    is the test split where there is no `test`. A label map is called as its image is,
    but for the ending, and is of the same size; the values of its pixels are classes,
    255 is ignored. The folders of ADE20K (`objectInfo150.txt`) and Pascal VOC
    (`SegmentationClass`) are known, their classes too.

    Evaluation shows an image whole, in the upper left of a canvas of `canvas_size`:
    scaled down where it is larger, padded where it is smaller. Training shows a random
    crop of the image scaled at random.

    Args:
        name: What the data set is called.
        path: The folder.
        classes: A line for each class in the order of their numbers: a name, and if
            wanted the red, green and blue in which pictures show it (0 to 255), as in
            `road 128 64 128`. By default the lines of `classes.txt` in the folder;
            empty ones and those that begin with # do not count.
        reduce_zero_label: 0 in a file is ignored, and 1 is the first class, as ADE20K
            has it (False; of ADE20K True).
        canvas_size: Height and width of the canvas in pixels, or one number for both;
            by default those of the images, if all are of one size.
        crop_size: Height and width of a training example in pixels, or one number for
            both (`canvas_size`).
        scale_range: Smallest and largest factor of the random scale, of the size at
            which evaluation shows an image (0.5, 2). (1, 1) without a `crop_size`
            leaves nothing to draw: training images are then shown as in evaluation,
            and live on the device if they are few.
        cat_max_ratio: The largest share of one class in a crop; another crop is tried,
            up to ten times (0.75).
        on_bad_image: What is done about an image or label map that cannot be decoded,
            "error" (the default) or "skip", as of an image folder.

    Raises:
        UserError: The data cannot be had, or a value is out of its range.
    """
    check_on_bad_image(on_bad_image)
    if path is None:
        raise UserError(f"data.path: needed with data.name={name}: {LAYOUTS}")
    crop = None if crop_size is None else _size("data.crop_size", crop_size)
    canvas = None if canvas_size is None else _size("data.canvas_size", canvas_size)
    given = {"scale_range": scale_range, "cat_max_ratio": cat_max_ratio}
    given = {key: value for key, value in given.items() if value is not None}
    ScaledCrops((1, 1), **given)  # checks the values before the files
    layout = find_layout(existing(path))
    known = parse_classes(classes, "data.classes") if classes else layout.classes
    known = known or read_classes(layout.root)
    reduces = (
        layout.reduce_zero_label if reduce_zero_label is None else reduce_zero_label
    )
    reader = LabelMapReader(len(known.names), reduces)
    frame = Canvas((*(canvas or _common_size(layout.splits)), 3))
    crops = ScaledCrops(crop or frame.size, **given)
    is_drawn = crop is not None or tuple(crops.scale_range) != (1, 1)

    def make_source(split: str) -> Source:
        files = layout.splits[split]
        source: Source = LabelledImages(files, reader, frame)
        if split == "train" and is_drawn:
            source = RandomlyScaledImages(files, reader, frame, crops)
        if on_bad_image == "skip":
            source = skip_bad_images(source)
        for i in range(min(_FEW, len(source))):
            _ = source[i]
        return source

    sources = {split: make_source(split) for split in layout.splits}
    return Data(
        name=name,
        train=sources["train"],
        val=sources.get("val") if "test" in sources else None,
        test=sources["test" if "test" in sources else "val"],
        class_names=known.names,
        image_shape=frame.image_shape,
        is_canvas=True,
        class_colors=known.colors,
        files=layout.fingerprint,
        notes=layout.notes,
    )


def _size(key: str, value: int | Sequence[int]) -> tuple[int, int]:
    """Returns height and width."""
    pair: Any = tuple(value) if isinstance(value, tuple | list) else (value,)
    pair *= 2 // len(pair) if pair else 1  # (512,) is what a command line makes of 512
    holds = len(pair) == 2 and all(
        type(side) is int and 1 <= side <= _MAX_SIDE_PX for side in pair
    )
    wanted = f"a number or (height, width) from 1 to {_MAX_SIDE_PX:,}"
    require(key, value, holds, wanted)
    return pair[0], pair[1]


def _common_size(
    splits: Mapping[str, Sequence[LabelledImage]],
) -> tuple[int, int]:
    """Returns the one size of all images, by the heads of their label maps."""
    first: tuple[LabelledImage, tuple[int, int]] | None = None
    for files in (files for split in splits.values() for files in split):
        path = files.label_map
        try:
            width, height = decode(path, path, _width_and_height)
        except BadImageError:  # told, or skipped, when it is used
            continue
        own = files, (height, width)
        first = first or own
        if own[1] != first[1]:
            for each, size in (first, own):
                require_same_size(each, read_size(each.image), size)
            one = " x ".join(map(str, first[1]))
            raise UserError(
                f"data.canvas_size: needed, for images are of several sizes: {one}"
                f" ({first[0].label_map}), {height} x {width} ({path}), ..."
            )
    if first is None:
        raise UserError("data.path: no label map can be decoded")
    return first[1]


def _width_and_height(image: "Image.Image") -> tuple[int, int]:
    return image.size
