"""Images with boxes around their objects, shown on a canvas when asked for.

A box is (x1, y1, x2, y2) in pixels, continuous: its width is x2 - x1. Evaluation shows
an image whole. Training may scale it by a factor that is drawn, and show it, or what
the canvas has room for, at a place that is drawn; boxes move along.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxattn.data.images import Box, read_crop
from jaxattn.data.label_maps import pad
from jaxattn.data.preprocess import PADDING, Canvas
from jaxattn.data.source import Data, Example, SkippingSource, Source, Subset
from jaxattn.errors import UserError

Size = tuple[int, int]


class Objects(NamedTuple):
    """The objects of an image, G of them.

    Attributes:
        boxes: float64 `[G, 4]`, pixels of the upright image.
        classes: int32 `[G]`.
        ignored: bool `[G]`: crowds and what is difficult, which training leaves out and
            metrics ask for neither way.
        areas: float64 `[G]`, pixels, by which metrics tell small objects from large
            ones; NaN where it is the box's.
    """

    boxes: np.ndarray
    classes: np.ndarray
    ignored: np.ndarray
    areas: np.ndarray

    def take(self, chosen: np.ndarray) -> "Objects":
        """Returns some of the objects."""
        return Objects(*(values[chosen] for values in self))


class Annotated(NamedTuple):
    """An image file and its objects.

    Attributes:
        path: The file.
        objects: In it; boxes in shares of the image where its size is not known.
        size: Height and width in pixels that the annotations say; None if they do not.
    """

    path: str
    objects: Objects
    size: Size | None


class Placement(NamedTuple):
    """Where an image lies on a canvas; it may reach over its edges.

    Attributes:
        size: Height and width of the scaled image, pixels of the canvas.
        corner: Row and column of its upper left corner.
    """

    size: Size
    corner: tuple[int, int]

    def visible(self, canvas: Size) -> tuple[int, int, int, int]:
        """Returns top, left, bottom and right of what is on a canvas of a size."""
        (h, w), (y, x) = self.size, self.corner
        return max(y, 0), max(x, 0), min(y + h, canvas[0]), min(x + w, canvas[1])

    def box(self, canvas: Size, height: int, width: int) -> Box:
        """Returns the part of the image, of this height and width, that is visible."""
        top, left, bottom, right = self.visible(canvas)
        (h, w), (y, x) = self.size, self.corner
        return (
            (left - x) * width / w,
            (top - y) * height / h,
            (right - x) * width / w,
            (bottom - y) * height / h,
        )

    def move(self, boxes: np.ndarray, height: int, width: int) -> np.ndarray:
        """Returns boxes of the image, of this height and width, on the canvas."""
        (h, w), (y, x) = self.size, self.corner
        return boxes * np.array([w / width, h / height] * 2) + np.array([x, y] * 2)


@dataclasses.dataclass(frozen=True, eq=False)
class BoxedImages:
    """Image files with boxes as a source, each shown whole.

    The targets of an example are `boxes` float32 `[M, 4]`, pixels of the canvas,
    `classes` int32 `[M]`, `ignored` bool `[M]`, `areas` float32 `[M]`, pixels of the
    photo, and `valid` bool `[M]`, False where there is no object; and height and width
    of the photo, `image_size`, and of what the canvas shows of it, `shown_size`, int32
    `[2]`.

    Attributes:
        files: The images and their objects.
        canvas: What is shown of each.
        max_boxes: M.
    """

    files: Sequence[Annotated]
    canvas: Canvas
    max_boxes: int

    def __len__(self) -> int:
        """The number of images."""
        return len(self.files)

    def __getitem__(self, index: int) -> Example:
        """The image at a position, uint8 `[H, W, 3]`, and its targets."""
        return self._show(self.files[index], self._place)

    def _place(self, height: int, width: int, objects: Objects) -> Placement:
        del objects
        return Placement(self.canvas.fit(height, width), (0, 0))

    def _show(
        self,
        file: Annotated,
        place: Callable[[int, int, Objects], Placement],
        *,
        reduce: bool = False,
    ) -> Example:
        size, seen = self.canvas.size, []

        def choose_size(height: int, width: int) -> Size:
            objects = in_pixels(file, height, width)
            # Boxes of an image of another size may lie anywhere. It is refused below:
            # whatever is raised in here counts as damage to the file.
            is_own = file.size in (None, (height, width))
            placement = (place if is_own else self._place)(height, width, objects)
            seen.append((height, width, objects, placement))
            top, left, bottom, right = seen[-1][-1].visible(size)
            return bottom - top, right - left

        def choose_box(height: int, width: int) -> Box:
            return seen[-1][-1].box(size, height, width)

        image = read_crop(file.path, choose_box, choose_size, reduce=reduce)
        height, width, objects, placement = seen[-1]
        _check_size(file, height, width)
        top, left, bottom, right = placement.visible(size)
        if (top, left) != (0, 0):
            whole = np.empty((*size, 3), np.uint8)
            whole[...] = PADDING
            whole[top:bottom, left:right] = image
            image = whole
        boxes = placement.move(objects.boxes, height, width)
        kept = objects._replace(boxes=boxes).take(_is_centred(boxes, size))
        H, W = size
        kept = kept._replace(boxes=np.clip(kept.boxes, 0, [W, H, W, H]))
        return {
            "image": pad(image, size, PADDING),
            **pack(kept, self.max_boxes),
            "image_size": np.array((height, width), np.int32),
            "shown_size": np.array((bottom - top, right - left), np.int32),
        }


@dataclasses.dataclass(frozen=True, eq=False)
class MovingBoxedImages(BoxedImages):
    """Image files with boxes as a source of training examples.

    Attributes:
        files: The images and their objects.
        canvas: What evaluation shows of each.
        max_boxes: M.
        scale_range: Smallest and largest factor that images are scaled by, beyond what
            fits the canvas. It is put anywhere on the canvas, or one that is larger
            cropped, so that the centre of a box, one that is drawn, is seen. Boxes are
            cut to the canvas, and those whose centre is not on it left out.
    """

    scale_range: tuple[float, float] = (1.0, 1.0)

    def draw(self, index: int, rng: np.random.Generator) -> Example:
        """The image at a position, at a size and a place that are drawn."""

        def place(height: int, width: int, objects: Objects) -> Placement:
            scale = math.exp(rng.uniform(*np.log(self.scale_range)))
            h, w = self.canvas.fit(height, width)
            size = max(1, round(h * scale)), max(1, round(w * scale))
            return self._draw_place(size, height, width, objects, rng)

        return self._show(self.files[index], place, reduce=True)

    def _draw_place(
        self,
        size: Size,
        height: int,
        width: int,
        objects: Objects,
        rng: np.random.Generator,
    ) -> Placement:
        canvas = self.canvas.size
        ranges = [
            sorted((0, room - side)) for room, side in zip(canvas, size, strict=True)
        ]
        if len(objects.boxes):
            box = objects.boxes[rng.integers(len(objects.boxes))]
            x, y = (box[:2] + box[2:]) / 2 * [size[1] / width, size[0] / height]
            ranges = [
                [max(low, math.ceil(-centre)), min(high, math.floor(room - centre))]
                for (low, high), centre, room in zip(
                    ranges, (y, x), canvas, strict=True
                )
            ]
        row, column = (int(rng.integers(low, high + 1)) for low, high in ranges)
        return Placement(size, (row, column))


def _is_centred(boxes: np.ndarray, size: Size) -> np.ndarray:
    """Whether the centre of each box is on a canvas of a height and width."""
    x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    return (x >= 0) & (x <= size[1]) & (y >= 0) & (y <= size[0])


def in_pixels(file: Annotated, height: int, width: int) -> Objects:
    """Returns the objects of an image of this height and width, their areas known."""
    objects = file.objects
    if file.size is None:
        boxes = objects.boxes * np.array([width, height] * 2)
        objects = objects._replace(boxes=boxes)
    w, h = (objects.boxes[:, 2:] - objects.boxes[:, :2]).T
    areas = np.where(np.isnan(objects.areas), w * h, objects.areas)
    return objects._replace(areas=areas)


def _check_size(file: Annotated, height: int, width: int) -> None:
    """Refuses annotations that were made for an image of another size."""
    if file.size not in (None, (height, width)):
        said = f"{file.size[1]} x {file.size[0]}"
        turned = ", upright," if file.size == (width, height) else ""
        raise UserError(
            f"{file.path}: its annotations are of an image of {said} pixels, but it"
            f" has{turned} {width} x {height}; annotate the image as it is"
        )


def require_boxes(data: Data) -> None:
    """Refuses a split of photos with boxes none of which has one; others are passed.

    Raises:
        UserError: If there is one.
    """
    for split, source in data.splits.items():
        files = _files(source)
        if files is not None and not any(len(file.objects.boxes) for file in files):
            raise UserError(
                f"data: none of the {len(files)} images that are left for {split} has a"
                " box; must hold at least one: split the folder yourself, or change"
                " data.val_fraction or data.split_seed"
            )


def _files(source: Source) -> Sequence[Annotated] | None:
    """What a source of photos with boxes, or of parts of one, is made of."""
    if isinstance(source, BoxedImages):
        return source.files
    if not isinstance(source, Subset | SkippingSource):
        return None
    files = _files(source.source)
    if files is None or isinstance(source, SkippingSource):
        return files
    return [files[i] for i in source.indices]


def pack(objects: Objects, max_boxes: int) -> dict[str, np.ndarray]:
    """Returns objects as targets: `boxes`, `classes`, `ignored`, `areas`, `valid`.

    Args:
        objects: Of an image, at most `max_boxes`; their areas are known.
        max_boxes: Rows of each target; those behind the objects are 0.
    """
    count = len(objects.boxes)
    targets = {
        "boxes": np.zeros((max_boxes, 4), np.float32),
        "classes": np.zeros(max_boxes, np.int32),
        "ignored": np.zeros(max_boxes, bool),
        "areas": np.zeros(max_boxes, np.float32),
        "valid": np.arange(max_boxes) < count,
    }
    for key, values in objects._asdict().items():
        targets[key][:count] = values
    return targets
