"""Photos with boxes: three kinds of annotations, and boxes that move with pixels."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxattn.data.augment import Augment
from jaxattn.data.boxes import (
    Annotated,
    BoxedImages,
    MovingBoxedImages,
    Objects,
    Placement,
)
from jaxattn.data.datasets.annotations import parse_xml
from jaxattn.data.datasets.registry import load_data
from jaxattn.data.pipeline import make_loader
from jaxattn.data.preprocess import Canvas
from jaxattn.errors import UserError

# Pixels count from 1 in it, the last one included; `filename` names another image.
VOC = """<annotation><filename>other.jpg</filename>
<size><width>{width}</width><height>30</height><depth>3</depth></size>
{objects}</annotation>"""
OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>
<xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox></object>"""


def save_image(path, width=40, height=30):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (90, 90, 90)).save(path)


def voc_object(*box, name="cat", difficult=0):
    return OBJECT.format(*box, name=name, difficult=difficult)


def write_voc(root, objects, width=40):
    """A folder of Pascal VOC's kind; `objects` by split, of each image."""
    for split, images in objects.items():
        stems = []
        for i, own in enumerate(images):
            stems.append(f"{split}{i}")
            save_image(root / f"JPEGImages/{stems[-1]}.png")
            file = root / f"Annotations/{stems[-1]}.xml"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(VOC.format(width=width, objects="".join(own)))
        lists = root / f"ImageSets/Main/{split}.txt"
        lists.parent.mkdir(parents=True, exist_ok=True)
        lists.write_text("\n".join(stems))
    return root


def write_coco(root, split, boxes, categories=((7, "dog"), (3, "cat")), **changes):
    """A split of COCO's kind with one image; `boxes` are x, y, w, h with an id."""
    save_image(root / f"{split}2017/a.png")
    content = {
        "images": [{"id": 5, "file_name": "a.png", "height": 30, "width": 40}],
        "categories": [{"id": i, "name": name} for i, name in categories],
        "annotations": [
            {"id": i, "image_id": 5, "bbox": box, "category_id": category, **more}
            for i, (box, category, more) in enumerate(boxes, 1)
        ],
    }
    file = root / f"annotations/instances_{split}2017.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content | changes))


def load(root, **kwargs):
    kwargs = {"canvas_size": (60, 80), "val_fraction": 0.0, "max_boxes": 3, **kwargs}
    return load_data("detection_folder", path=str(root), **kwargs)


def boxes_of(example):
    return example["boxes"][example["valid"]].tolist()


def test_voc_counts_pixels_from_1_and_marks_what_is_difficult(tmp_path):
    first = [
        voc_object(1, 1, 40, 30, name="dog"),
        voc_object(11, 6, 20, 15, difficult=1),
        voc_object(7, 7, 7, 7),  # a click
    ]
    data = load(
        write_voc(tmp_path, {"train": [first], "test": [first], "val": [first]})
    )
    example = data.train[0]
    # On a canvas of twice the size.
    assert boxes_of(example) == [[0, 0, 80, 60], [20, 10, 40, 30]]
    assert example["classes"].tolist() == [1, 0, 0]
    assert example["ignored"].tolist() == [False, True, False]
    assert data.class_names == ("cat", "dog")
    assert "train: 1 boxes of no width or height left out" in data.notes
    assert len(data.val) == len(data.test) == 1


def test_coco_numbers_sparse_categories_and_keeps_crowds_and_areas(tmp_path):
    boxes = [
        ([10, 5, 20, 10], 7, {"area": 120.5}),
        ([0, 0, 10, 10], 3, {"iscrowd": 1}),
    ]
    for split in ("train", "val"):
        write_coco(tmp_path, split, boxes)
    data = load(tmp_path, scales_up=False)
    example = data.test[0]
    assert data.class_names == ("cat", "dog")
    assert boxes_of(example) == [[10, 5, 30, 15], [0, 0, 10, 10]]
    assert example["classes"][:2].tolist() == [1, 0]
    assert example["areas"][:2].tolist() == [120.5, 100]
    assert example["ignored"].tolist() == [False, True, False]
    assert example["image_size"].tolist() == [30, 40]


def test_yolo_boxes_are_shares_of_the_image_and_a_file_may_be_missing(tmp_path):
    for split in ("train", "valid"):
        save_image(tmp_path / split / "images/a.png")
        save_image(tmp_path / split / "images/b.png")
        (tmp_path / split / "labels").mkdir()
        (tmp_path / split / "labels/b.txt").write_text("1 0.5 0.5 0.25 0.2\n")
    (tmp_path / "data.yaml").write_text("names: [cat, dog]\nnc: 2\n")
    data = load(tmp_path)
    assert data.class_names == ("cat", "dog")
    assert boxes_of(data.train[0]) == []
    assert np.allclose(boxes_of(data.train[1]), [[30, 24, 50, 36]])
    assert data.train[1]["areas"][0] == pytest.approx(10 * 6)


def test_other_files_beside_those_of_yolo_are_left_alone(tmp_path):
    save_image(tmp_path / "train/images/a.png")
    (tmp_path / "train/labels").mkdir()
    (tmp_path / "train/labels/a.txt").write_text("1 0.5 0.5 0.25 0.2\n")
    save_image(tmp_path / "val/images/a.png")
    (tmp_path / "val/labels").mkdir()
    (tmp_path / "val/labels/a.txt").write_text("0 0.5 0.5 0.25 0.2\n")
    (tmp_path / "data.yaml").write_text("names: [cat, dog]\n")
    (tmp_path / "args.yaml").write_text("lr: 0.1\n")
    for content in ('{"version": 1}', "[1]", "not JSON"):
        (tmp_path / "settings.json").write_text(content)
        assert load(tmp_path).class_names == ("cat", "dog")


def test_a_single_json_file_of_coco_is_for_training(tmp_path):
    write_coco(tmp_path, "train", [([0, 0, 9, 9], 3, {})])
    file = tmp_path / "annotations/instances_train2017.json"
    file.rename(tmp_path / "mine.json")
    (tmp_path / "train2017").rename(tmp_path / "images")
    with pytest.raises(UserError, match="1 images are too few to test on some"):
        load(tmp_path)


def test_photos_of_validation_are_not_learnt_where_one_list_has_both(tmp_path):
    own = [[voc_object(2, 2, 9, 9)]]
    root = write_voc(tmp_path, {"train": own, "val": own, "test": own})
    lists = root / "ImageSets/Main"
    (lists / "train.txt").unlink()
    (lists / "trainval.txt").write_text("train0\r\nval0\r\n\n")
    data = load(root)
    assert [len(split) for split in data.splits.values()] == [1, 1, 1]
    assert data.train.files[0].path.endswith("train0.png")


def test_names_of_photos_may_have_spaces(tmp_path):
    root = write_voc(tmp_path, {"train": [[voc_object(2, 2, 9, 9)]]})
    for file in (root / "JPEGImages/train0.png", root / "Annotations/train0.xml"):
        file.rename(file.with_stem("a photo"))
    write_voc(root, {"test": [[voc_object(2, 2, 9, 9)]]})
    (root / "ImageSets/Main/train.txt").write_text(" a photo \n")
    assert load(root).train.files[0].path.endswith("a photo.png")


@pytest.mark.parametrize(
    ("names", "fraction", "said"),
    [(["train"], 0, "test"), (["train", "test"], 0.2, "val")],
)
def test_a_split_that_is_left_without_boxes_is_refused(tmp_path, names, fraction, said):
    """Of six photos one is tested, or one held out: not the one that has a box."""
    images = [[voc_object(2, 2, 9, 9)], *([] for _ in range(5))]
    root = write_voc(tmp_path, dict.fromkeys(names, images))
    for bad in (None, "skip"):
        with pytest.raises(UserError, match=f"images that are left for {said} has a"):
            load(root, val_fraction=fraction, on_bad_image=bad)


def test_without_a_test_split_some_training_images_are_tested(tmp_path):
    images = [[voc_object(2, 2, 9, 9)] for _ in range(10)]
    data = load(write_voc(tmp_path, {"train": images}), val_fraction=0.25)
    assert [len(s) for s in data.splits.values()] == [6, 2, 2]
    assert any("no test split" in note for note in data.notes)


@pytest.mark.parametrize(
    ("objects", "width", "said"),
    [
        ([voc_object(30, 5, 20, 15)], 40, "train0.xml: the box .* is inverted"),
        (
            [voc_object(50, 5, 60, 15)],
            40,
            "train0.xml: the box .* is outside the image",
        ),
        ([], 40, "none of the 1 images of train has a box"),
        ([voc_object(2, 2, 9, 9)], 41, "annotations are of an image of 41 x 30 pixels"),
        ([voc_object(2, 2, 9, 9)] * 4, 40, "max_boxes=3: .* at least 4"),
        ([voc_object("x", 2, 9, 9)], 40, "not annotations as Pascal VOC's"),
    ],
)
def test_wrong_annotations_are_one_line(tmp_path, objects, width, said):
    fine = [voc_object(2, 2, 9, 9)]
    root = write_voc(tmp_path, {"train": [objects], "test": [fine]}, width)
    with pytest.raises(UserError, match=said) as caught:
        _ = load(root).train[0]
    assert "\n" not in str(caught.value)


def test_a_drawn_photo_of_another_size_is_no_damaged_one(tmp_path):
    """Its boxes may lie beyond it, where none can be shown."""
    place = {"box": (0, 0, 4, 4), "size": (30, 40), "scale_range": (0.5, 2.0)}
    source = source_of(tmp_path, MovingBoxedImages, Canvas((60, 80, 3)), **place)
    (file,) = source.files
    objects = file.objects._replace(boxes=np.array([[380.0, 5, 390, 15]]))
    other = file._replace(size=(30, 400), objects=objects)
    source = MovingBoxedImages([other], source.canvas, 2, source.scale_range)
    for seed in range(3):
        with pytest.raises(UserError, match="annotations are of an image of 400 x 30"):
            source.draw(0, np.random.default_rng(seed))


def test_a_damaged_first_photo_is_skipped_where_others_are_held_out(tmp_path):
    objects = [[voc_object(2, 2, 9, 9)] for _ in range(4)]
    root = write_voc(tmp_path, {"train": objects, "test": objects})
    (root / "JPEGImages/train0.png").write_bytes(b"no image")
    data = load(root, val_fraction=0.25, on_bad_image="skip")
    assert [len(split) for split in data.splits.values()] == [3, 1, 4]


def test_a_class_that_training_lacks_is_refused(tmp_path):
    objects = {
        "train": [[voc_object(2, 2, 9, 9)]],
        "test": [[voc_object(2, 2, 9, 9, name="cow")]],
    }
    with pytest.raises(UserError, match=r"test0.xml: unknown class cow; .* cat"):
        load(write_voc(tmp_path, objects))


def test_a_missing_image_is_named(tmp_path):
    write_coco(tmp_path, "train", [([0, 0, 9, 9], 3, {})])
    (tmp_path / "train2017/a.png").unlink()
    with pytest.raises(
        UserError, match=r"1 of 1 images of train are missing: .*a\.png"
    ):
        load(tmp_path)


def test_a_folder_of_none_of_the_layouts_is_told_what_they_are(tmp_path):
    save_image(tmp_path / "train/cat/a.png")
    with pytest.raises(UserError, match=r"holds no annotations; .*COCO.*VOC.*YOLO"):
        load(tmp_path)


def test_xml_with_entities_is_refused():
    bomb = b'<!DOCTYPE a [<!ENTITY b "cc">]><annotation>&b;</annotation>'
    with pytest.raises(ValueError, match="DOCTYPE"):
        parse_xml(bomb)


# Pixels and boxes ---------------------------------------------------------------------


def source_of(
    tmp_path, kind, canvas, box=(12, 8, 24, 20), size=(30, 40), others=(), **more
):
    """A source of one dark image with a bright box."""
    image = np.zeros((*size, 3), np.uint8)
    x1, y1, x2, y2 = box
    image[y1:y2, x1:x2] = 255
    path = tmp_path / "image.png"
    Image.fromarray(image).save(path)
    boxes = np.array([box, *others], np.float64)
    n = len(boxes)
    nothing = np.zeros(n, np.int32), np.zeros(n, bool), np.full(n, np.nan)
    objects = Objects(boxes, *nothing)
    return kind([Annotated(str(path), objects, size)], canvas, 2, **more)


def bright_box(image):
    """The box around what is brighter than half."""
    image = np.asarray(image)[..., 0]
    bright = (image > 127) & (image != 124)  # which is the padding
    rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


@pytest.mark.parametrize("size", [(45, 90), (90, 45), (30, 40), (15, 40)])
def test_on_a_canvas_of_any_size_the_box_is_where_its_pixels_are(tmp_path, size):
    canvas = Canvas((*size, 3), scales_up=True)
    example = source_of(tmp_path, BoxedImages, canvas)[0]
    assert example["image"].shape == (*size, 3)
    assert abs(bright_box(example["image"]) - example["boxes"][0]).max() <= 1
    undone = canvas.restore_boxes(example["boxes"][0], 30, 40)
    assert np.allclose(undone, [12, 8, 24, 20], atol=1e-4)
    assert (canvas.read(tmp_path / "image.png") == example["image"]).all()


def test_drawn_training_examples_move_box_and_pixels_together(tmp_path):
    canvas = Canvas((60, 80, 3), scales_up=True)
    moving = {"scale_range": (0.4, 2.5)}
    source = source_of(tmp_path, MovingBoxedImages, canvas, **moving)
    seen = []
    for seed in range(30):
        example = source.draw(0, np.random.default_rng(seed))
        seen.append(example["boxes"][0])
        assert abs(bright_box(example["image"]) - seen[-1]).max() <= 1.5
    assert np.ptp(seen, axis=0).min() > 10  # it was drawn
    again = source.draw(0, np.random.default_rng(0))
    assert (again["boxes"][0] == seen[0]).all()


def test_a_crop_shows_a_box_and_leaves_out_those_beyond_it(tmp_path):
    canvas = Canvas((60, 80, 3), scales_up=True)
    corners = {"box": (0, 0, 8, 8), "others": [(32, 22, 40, 30)]}
    moving = {"scale_range": (3.0, 3.0)}
    source = source_of(tmp_path, MovingBoxedImages, canvas, **corners, **moving)
    draws = [source.draw(0, np.random.default_rng(seed)) for seed in range(40)]
    for example in draws:  # a ninth of the image is seen
        assert example["valid"][0]
        assert (example["boxes"] >= 0).all()
        assert (example["boxes"] <= [80, 60, 80, 60]).all()
        assert example["valid"].sum() == 1  # the other one is too far


def test_a_placement_shows_the_part_of_an_image_that_is_on_the_canvas():
    placement = Placement(size=(60, 80), corner=(-10, 20))
    assert placement.visible((40, 50)) == (0, 20, 40, 50)
    assert placement.box((40, 50), 30, 40) == (0, 5, 15, 25)


def test_a_flip_moves_the_boxes_of_a_batch_along(tmp_path):
    canvas = Canvas((30, 48, 3))
    example = source_of(tmp_path, BoxedImages, canvas)[0]
    batch = {k: jnp.asarray(v)[None] for k, v in example.items()}
    augment = Augment(flip_probability=1.0)
    drawn = augment.draw(jax.random.key(0), 1, 30, 48).images
    kinds = {"boxes": "boxes", "classes": "class"}
    moved = augment.apply_to_batch(batch, kinds, drawn)
    assert moved["boxes"][0, 0].tolist() == [24, 8, 36, 20]
    assert bright_box(moved["image"][0]).tolist() == [24, 8, 36, 20]
    assert (moved["classes"] == batch["classes"]).all()


def test_targets_are_the_same_resident_and_streamed(tmp_path):
    objects = [[voc_object(2, 2, 9, 9)], []]
    data = load(write_voc(tmp_path, {"train": objects, "test": objects}))
    feeds = {}
    for kind in ("resident", "streamed"):
        loader = make_loader(data.train, loader=kind)
        (feed,) = loader.evaluation_feeds(2)
        feeds[kind] = loader.fetch(loader.store, feed)
    feeds["streamed"].pop("error", None)
    jax.tree.map(np.testing.assert_array_equal, feeds["resident"], feeds["streamed"])
    assert feeds["resident"]["valid"].sum(1).tolist() == [1, 0]
