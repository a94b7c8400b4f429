import os
import pathlib
import pickle

import numpy as np
import pytest
from PIL import Image

from jaxattn.data.preprocess import Frame
from jaxattn.errors import MachineError, UserError
from jaxattn.inference.inputs import read_inputs
from jaxattn.tasks.classification.predictions import (
    align_predictions,
    read_predictions,
    write_predictions,
)

SHAPE = (32, 32, 3)
FRAME = Frame(SHAPE)


def make_images(count=4, shape=SHAPE, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, *shape), dtype=np.uint8)


def to_planes(images):
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def to_rows(images):
    return to_planes(images).reshape(len(images), -1)


LAYOUTS = {"rows": to_rows, "planes": to_planes, "pixels": lambda images: images}


def write_pickle(path, **entries):
    path.write_bytes(pickle.dumps(entries))
    return path


def write_npz(path, **entries):
    np.savez(path, **entries)
    return path


def write_file(kind, folder, **entries):
    if kind == "npz":
        return write_npz(folder / "test.npz", **entries)
    return write_pickle(folder / "test.pkl", **entries)


def write_image(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def images_of(source):
    return np.stack([source[i]["image"] for i in range(len(source))])


def write_text(path, text):
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def check_refused(message, function, *args, **options):
    """The call raises a `UserError` of one line that matches."""
    with pytest.raises(UserError, match=message) as excinfo:
        function(*args, **options)
    assert "\n" not in str(excinfo.value)


# Inputs from arrays


@pytest.mark.parametrize("kind", ["pickle", "npz"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read(layout, kind, tmp_path):
    images = make_images()
    path = write_file(kind, tmp_path, data=LAYOUTS[layout](images))
    np.testing.assert_array_equal(
        images_of(read_inputs([path], FRAME).source), images, strict=True
    )


def test_rows_are_planes_of_red_green_and_blue(tmp_path):
    row = np.repeat(np.array([[10, 20, 30]], np.uint8), 1024, axis=1)
    row[0, 1024 + 32 * 5 + 7] = 99  # green, row 5, column 7
    path = write_pickle(tmp_path / "test", data=row)
    image = read_inputs([path], FRAME).source[0]["image"]
    assert image[0, 0].tolist() == [10, 20, 30]
    assert image[5, 7].tolist() == [10, 99, 30]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_of_another_shape_are_read(layout, tmp_path):
    images = make_images(shape=(4, 6, 1))
    path = write_npz(tmp_path / "a.npz", images=LAYOUTS[layout](images))
    source = read_inputs([path], Frame((4, 6, 1))).source
    np.testing.assert_array_equal(images_of(source), images)


@pytest.mark.parametrize("protocol", range(6))
def test_pickle_of_every_protocol_is_read(protocol, tmp_path):
    content = {b"data": to_rows(make_images()), b"ids": np.array([7, 3, 1, 0])}
    path = write_text(tmp_path / "test", pickle.dumps(content, protocol))
    assert read_inputs([path], FRAME).ids == (7, 3, 1, 0)


@pytest.mark.parametrize("kind", ["pickle", "npz"])
def test_ids_are_those_of_the_file(kind, tmp_path):
    ids = np.array([7, 3, 1, 0], np.int16)
    path = write_file(kind, tmp_path, data=make_images(), ids=ids)
    assert read_inputs([path], FRAME).ids == (7, 3, 1, 0)


@pytest.mark.parametrize("kind", ["pickle", "npz"])
def test_ids_count_from_zero_by_default(kind, tmp_path):
    path = write_file(kind, tmp_path, data=make_images())
    ids = read_inputs([path], FRAME).ids
    assert ids == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("keys", "chosen"),
    [
        (["x_test", "data", "images"], "images"),
        (["x_test", "data"], "data"),
        (["x_train", "x_test"], "x_test"),
    ],
)
def test_first_known_entry_of_an_npz_is_read(keys, chosen, tmp_path):
    entries = {key: make_images(seed=i) for i, key in enumerate(keys)}
    path = write_npz(tmp_path / "a.npz", **entries)
    read = images_of(read_inputs([path], FRAME).source)
    np.testing.assert_array_equal(read, entries[chosen])


def test_other_entries_of_an_npz_may_be_objects(tmp_path):
    names = np.array([None] * 4)
    path = write_npz(tmp_path / "a.npz", images=make_images(), names=names)
    assert len(read_inputs([path], FRAME).source) == 4


ACCEPTED = r"must be uint8 \[N, 32, 32, 3\] or \[N, 3, 32, 32\] or \[N, 3072\]"


@pytest.mark.parametrize("kind", ["pickle", "npz"])
@pytest.mark.parametrize(
    ("data", "found"),
    [
        (np.zeros((2, 3072), np.float32), r"float32 \[2, 3072\]"),
        (np.zeros((2, 3071), np.uint8), r"uint8 \[2, 3071\]"),
        (np.zeros((2, 16, 16, 3), np.uint8), r"uint8 \[2, 16, 16, 3\]"),
        (np.zeros((2, 32, 3, 32), np.uint8), r"uint8 \[2, 32, 3, 32\]"),
        (np.zeros(3072, np.uint8), r"uint8 \[3072\]"),
        (np.zeros((0, 3072), np.uint8), r"uint8 \[0, 3072\]"),
        (np.zeros((), np.uint8), r"uint8 \[\]"),
    ],
)
def test_wrong_images_name_what_is_found_and_accepted(data, found, kind, tmp_path):
    path = write_file(kind, tmp_path, data=data)
    message = rf"test\.(npz|pkl): data: {found}, {ACCEPTED} with N at least 1\Z"
    check_refused(message, read_inputs, [path], FRAME)


@pytest.mark.parametrize("data", [[[1, 2], [3]], "text", None, {"a": 1}])
def test_pickled_images_that_are_no_array_are_refused(data, tmp_path):
    path = write_pickle(tmp_path / "test", data=data)
    check_refused(rf"test: data: .*{ACCEPTED}", read_inputs, [path], FRAME)


@pytest.mark.parametrize("kind", ["pickle", "npz"])
@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.arange(3), r"int64 \[3\], must be integers \[4\]"),
        (np.arange(8).reshape(4, 2), r"int64 \[4, 2\]"),
        (np.arange(4.0), r"float64 \[4\]"),
        (np.array([True, False, True, False]), r"bool \[4\]"),
        (np.array([1, 5, 2, 5]), "5 is there twice, must be unique"),
    ],
)
def test_wrong_ids_are_named(ids, message, kind, tmp_path):
    path = write_file(kind, tmp_path, data=make_images(), ids=ids)
    check_refused(rf"test\.(npz|pkl): ids: {message}", read_inputs, [path], frame=FRAME)


@pytest.mark.parametrize("ids", [[1, 2, [3], 4], ["a", "b", "c", "d"], "abcd"])
def test_pickled_ids_that_are_no_integers_are_refused(ids, tmp_path):
    path = write_pickle(tmp_path / "test", data=make_images(), ids=ids)
    check_refused("test: ids: .*must be integers", read_inputs, [path], FRAME)


class Exploit:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", range(6))
def test_malicious_pickle_is_refused_and_not_run(protocol, tmp_path):
    proof = tmp_path / "executed"
    payload = pickle.dumps({"data": Exploit(f"touch {proof}")}, protocol)
    path = write_text(tmp_path / "test.pkl", payload)
    check_refused(r"test\.pkl: .*system.*not allowed", read_inputs, [path], FRAME)
    assert not proof.exists()


def test_malicious_pickle_in_an_npz_is_not_run(tmp_path):
    proof = tmp_path / "executed"
    objects = np.array([Exploit(f"touch {proof}")], object)
    path = write_npz(tmp_path / "a.npz", images=objects)
    message = r"a\.npz: not a readable npz \(Object arrays cannot be loaded"
    check_refused(message, read_inputs, [path], FRAME)
    assert not proof.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pkl", pickle.dumps({"data": make_images()})[:-9], "not a readable pickle"),
        ("a.pkl", b"", r"not a readable pickle .*must be a pickle, an \.npz, a folder"),
        ("a.pkl", pickle.dumps([1]), r"not a readable pickle \(holds a list"),
        ("a.pkl", pickle.dumps({"x": 1}), r"has no entry 'data', only \['x'\]"),
        ("a.npz", b"", "not a readable npz"),
        ("a.npz", b"hello", "not a readable npz"),
        ("a.npz", pickle.dumps({"data": 1}), "not a readable npz"),
    ],
    ids=range(7),
)
def test_unreadable_file_is_named(name, content, message, tmp_path):
    path = write_text(tmp_path / name, content)
    check_refused(rf"{name}: {message}", read_inputs, [path], FRAME)


def test_truncated_npz_is_named(tmp_path):
    path = write_npz(tmp_path / "a.npz", images=make_images())
    path.write_bytes(path.read_bytes()[:-100])
    check_refused(r"a\.npz: not a readable npz", read_inputs, [path], FRAME)


def test_npz_without_a_known_entry_lists_those_it_has(tmp_path):
    path = write_npz(tmp_path / "a.npz", x_train=make_images(), y=np.arange(4))
    message = r"no entry 'images' or 'data' or 'x_test', only \['x_train', 'y'\]"
    check_refused(message, read_inputs, [path], FRAME)


# Inputs from image files


def test_empty_path_is_not_the_current_folder():
    check_refused("inputs='': must be a path", read_inputs, [""], FRAME)


def test_folder_is_read_with_ids_relative_to_it(tmp_path):
    images = make_images(3, shape=(4, 6, 3))
    names = ("a.png", "b/a.png", "b/c.png")
    for name, image in zip(names, images, strict=True):
        write_image(tmp_path / name, image)
    inputs = read_inputs([tmp_path], Frame((4, 6, 3)))
    assert inputs.ids == names
    np.testing.assert_array_equal(images_of(inputs.source), images)


def test_image_files_keep_their_order_and_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = make_images(2, shape=(4, 6, 3))
    write_image(tmp_path / "b.png", images[0])
    write_image(tmp_path / "a.png", images[1])
    inputs = read_inputs(["./b.png", pathlib.Path("a.png")], Frame((4, 6, 3)))
    assert inputs.ids == ("./b.png", "a.png")
    np.testing.assert_array_equal(images_of(inputs.source), images)


def test_single_image_is_scaled_to_the_network(tmp_path):
    path = write_image(tmp_path / "a.PNG", make_images(1, shape=(40, 90, 3))[0])
    assert read_inputs([path], FRAME).source[0]["image"].shape == SHAPE


def test_no_path_says_what_to_give():
    check_refused(r"no path; must be a pickle, an \.npz", read_inputs, [], FRAME)


@pytest.mark.parametrize("name", ["a.npz", "a.png", "folder", "test"])
def test_missing_path_is_named(name, tmp_path):
    message = rf"{name}: no such file or folder; must be"
    check_refused(message, read_inputs, [tmp_path / name], FRAME)


@pytest.mark.parametrize("name", ["a.npz", "test", "folder", "folder.png"])
def test_several_paths_must_all_be_images(name, tmp_path):
    image = write_image(tmp_path / "a.png", make_images(1)[0])
    other = tmp_path / name
    other.mkdir() if name.startswith("folder") else other.touch()
    message = rf"{name}: not an image; several paths must all be image files\Z"
    check_refused(message, read_inputs, [image, other], FRAME)


def test_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    check_refused(r"pipe: is a pipe, socket", read_inputs, [tmp_path / "pipe"], FRAME)


def test_image_without_an_ending_is_told_from_a_pickle(tmp_path):
    path = write_image(tmp_path / "a.png", make_images(1)[0]).rename(tmp_path / "a")
    np.testing.assert_array_equal(
        read_inputs([path], FRAME).source[0]["image"], make_images(1)[0]
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.zip", b"PK\3\4", "it is a ZIP archive; must be a pickle"),
        ("a.npy", b"\x93NUMPY", r"it is a NumPy array; arrays are given in an \.npz"),
        ("a.tar.gz", b"\x1f\x8b", "it is an archive packed by gzip"),
    ],
)
def test_other_files_are_called_what_they_are(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    check_refused(rf"{name}: {message}", read_inputs, [tmp_path / name], FRAME)


def test_heic_that_is_not_read_says_how_it_would_be(tmp_path):
    path = tmp_path / "a.heic"
    path.write_bytes(b"\0\0\0\x18ftypheic")
    source = read_inputs([path], FRAME).source
    check_refused(r"HEIC.*pip install pillow-heif", source.__getitem__, 0)


def test_what_a_folder_holds_beside_images_is_said(tmp_path):
    write_image(tmp_path / "a.png", make_images(1)[0])
    (tmp_path / "a.txt").touch()
    assert read_inputs([tmp_path], FRAME).notes == (f"{tmp_path}: left out 1 .txt",)


def test_image_given_twice_is_refused(tmp_path):
    path = write_image(tmp_path / "a.png", make_images(1)[0])
    check_refused(r"a\.png: is given twice", read_inputs, [path, path], FRAME)


def test_empty_folder_is_named(tmp_path):
    check_refused(r"holds no image; must hold.*\.jpg", read_inputs, [tmp_path], FRAME)


def test_image_files_need_a_network_for_colours(tmp_path):
    path = write_image(tmp_path / "a.png", make_images(1)[0])
    message = r"a\.png: image files have 3 channels.*\[32, 32, 1\]"
    check_refused(message, read_inputs, [path], Frame((32, 32, 1)))


# Writing predictions


def test_predictions_are_sorted_by_number(tmp_path):
    write_predictions(tmp_path / "p.csv", [10, 9, 100], np.array([1, 2, 3]))
    assert (tmp_path / "p.csv").read_bytes() == b"ID,Labels\n9,2\n10,1\n100,3\n"


def test_predictions_are_sorted_by_name(tmp_path):
    write_predictions(tmp_path / "p.csv", ["b.png", "a,1.png"], [1, 2])
    assert (tmp_path / "p.csv").read_bytes() == b'ID,Labels\n"a,1.png",2\nb.png,1\n'


def test_class_names_replace_the_numbers(tmp_path):
    write_predictions(tmp_path / "p.csv", [0, 1], [1, 0], class_names=["cat", "a, b"])
    assert (tmp_path / "p.csv").read_text() == 'ID,Labels\n0,"a, b"\n1,cat\n'


@pytest.mark.parametrize(
    ("options", "header"),
    [
        ({}, "0,1"),
        ({"probability_columns": ["cat", "dog"]}, "cat,dog"),
        ({"class_names": ["a", "b"]}, "a,b"),
        ({"class_names": ["a", "b"], "probability_columns": ["x", "y"]}, "x,y"),
    ],
)
def test_probabilities_have_a_column_each(options, header, tmp_path):
    chances = np.array([[0.25, 0.75], [1.0, 1 / 3]], np.float32)
    path = tmp_path / "p.csv"
    write_predictions(path, [1, 0], [1, 0], probabilities=chances, **options)
    lines = path.read_text().splitlines()
    assert lines[0] == f"ID,Labels,{header}"
    assert lines[1].endswith(",1.000000,0.333333")
    assert lines[2].endswith(",0.250000,0.750000")


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([1, 2, 3], {}, r"labels: int64 \[3\], must be integers \[2\]"),
        ([0.0, 1.0], {}, r"labels: float64 \[2\]"),
        ([0, 2], {"class_names": ["a", "b"]}, r"labels: in \[0, 2\].*in \[0, 1\]"),
        ([0, -1], {"class_names": ["a", "b"]}, r"labels: in \[-1, 0\]"),
        ([0, 1], {"probabilities": np.ones((3, 2))}, r"\[3, 2\], must be \[2, C\]"),
        ([0, 1], {"probabilities": np.ones(2)}, r"probabilities: \[2\]"),
        (
            [0, 1],
            {"probabilities": np.ones((2, 3)), "probability_columns": ["a"]},
            "probability_columns: 1 names, must be 3",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused(labels, options, message, tmp_path):
    path = tmp_path / "p.csv"
    check_refused(message, write_predictions, path, [0, 1], labels, **options)
    assert not path.exists()


def test_repeated_ids_are_not_written(tmp_path):
    path = tmp_path / "p.csv"
    message = "ids: 4 is there twice"
    check_refused(message, write_predictions, path, [4, 4], [0, 1])


def test_folders_are_created(tmp_path):
    path = tmp_path / "new" / "deep" / "p.csv"
    write_predictions(path, [0], [1])
    assert path.read_text() == "ID,Labels\n0,1\n"


def test_earlier_file_is_replaced(tmp_path):
    for label in (1, 2):
        write_predictions(tmp_path / "p.csv", [0], [label])
    assert (tmp_path / "p.csv").read_text() == "ID,Labels\n0,2\n"
    assert os.listdir(tmp_path) == ["p.csv"]


def test_link_is_written_through(tmp_path):
    (tmp_path / "link.csv").symlink_to(tmp_path / "p.csv")
    write_predictions(tmp_path / "link.csv", [0], [1])
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "p.csv").read_text() == "ID,Labels\n0,1\n"


class Unprintable:
    def __str__(self):
        raise KeyboardInterrupt


def test_interrupted_writing_leaves_the_earlier_file(tmp_path):
    write_predictions(tmp_path / "p.csv", [0, 1], [1, 2])
    names = ["a" * 100_000, Unprintable()]  # the first goes beyond the buffer
    with pytest.raises(KeyboardInterrupt):
        write_predictions(tmp_path / "p.csv", [0, 1], [0, 1], class_names=names)
    assert (tmp_path / "p.csv").read_text() == "ID,Labels\n0,1\n1,2\n"
    assert os.listdir(tmp_path) == ["p.csv"]


def test_failed_rename_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    message = r"p\.csv: No space left on device; free some space there$"
    with pytest.raises(MachineError, match=message):
        write_predictions(tmp_path / "p.csv", [0], [1])
    assert os.listdir(tmp_path) == []


def test_folder_as_output_is_refused(tmp_path):
    message = r"cannot be written \(is a folder\)"
    check_refused(message, write_predictions, tmp_path, [0], [1])
    assert os.listdir(tmp_path) == []


def test_output_inside_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    message = r"file/p\.csv: cannot be written \((Not a directory|File exists)\)"
    check_refused(message, write_predictions, tmp_path / "file" / "p.csv", [0], [1])


def test_device_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    message = r"pipe: cannot be written \(is not a regular file\)"
    check_refused(message, write_predictions, tmp_path / "pipe", [0], [1])


def test_name_that_is_not_utf8_costs_no_predictions(tmp_path):
    name = os.fsdecode(b"\xff.png")
    write_predictions(tmp_path / "p.csv", [name], [1])
    assert read_predictions(tmp_path / "p.csv")[0] == [r"\udcff.png"]


# Reading predictions


@pytest.mark.parametrize(
    "ids", [[3, 10, 2**40], [-5, 0], ["a,b.png", 'say "x"'], ["line\nbreak", "ü.png"]]
)
def test_predictions_come_back_as_written(ids, tmp_path):
    labels = list(range(len(ids)))
    write_predictions(tmp_path / "p.csv", ids, labels)
    read_ids, read_labels = read_predictions(tmp_path / "p.csv")
    assert dict(zip(read_ids, read_labels, strict=True)) == dict(
        zip(ids, labels, strict=True)
    )
    assert read_labels.dtype == np.int64


@pytest.mark.parametrize("names", [["1", "a"], ["007", "8"], ["1_0", "2"], ["1", "²"]])
def test_ids_are_names_unless_all_are_numbers(names, tmp_path):
    text = "ID,Labels\n" + "".join(f"{name},0\n" for name in names)
    assert read_predictions(write_text(tmp_path / "p.csv", text))[0] == names


@pytest.mark.parametrize(
    "text",
    [
        "ID,Labels\n2,5\n1,6\n",
        "\ufeffID,Labels\n2,5\n1,6\n",
        "ID,Labels\r\n2,5\r\n1,6\r\n",
        "ID,Labels\n2,5\n\n1,6\n\n",
        "ID,Labels\n2,5\n1,6",
        "ID,Labels,cat,dog\n2,5,0.1,0.9\n1,6,0.2,0.8\n",
    ],
)
def test_common_forms_of_csv_are_read(text, tmp_path):
    ids, labels = read_predictions(write_text(tmp_path / "p.csv", text))
    assert ids == [2, 1]
    assert labels.tolist() == [5, 6]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: header '' must start with ID,Labels"),
        ("1,2\n", "line 1: header '1,2'"),
        ("id,labels\n1,2\n", "line 1: header 'id,labels'"),
        ("ID;Labels\n1;2\n", "line 1: header 'ID;Labels'"),
        ("ID\n1\n", "line 1: header 'ID'"),
        ("ID,Labels\n", "line 2: no predictions"),
        ("ID,Labels\n1,2\n3\n", "line 3: 1 fields, must be 2"),
        ("ID,Labels\n1,2,3\n", "line 2: 3 fields, must be 2"),
        ("ID,Labels\n1,2\n1,3\n", "line 3: the ID '1' is there before"),
        ("ID,Labels\n1,\n", "line 2: no label"),
        ('ID,Labels\n"1,2\n', r"not a readable CSV file \(unexpected end"),
        ("ID,Labels\n" + "1" * 200_000 + ",1\n", "field larger than field limit"),
        (b"ID,Labels\n\xff,1\n", "not a readable CSV file .*utf-8"),
        ("ID,Labels\n".encode("utf-16"), "not a readable CSV file .*utf-8"),
        ('"a\nb"\n', r"line 1: header 'a\\nb'"),
    ],
    ids=range(15),
)
def test_wrong_predictions_are_named(text, message, tmp_path):
    path = write_text(tmp_path / "p.csv", text)
    check_refused(rf"p\.csv: .*{message}", read_predictions, path)


def test_missing_predictions_are_named(tmp_path):
    message = r"p\.csv: not a readable CSV file \(No such file or directory\)"
    check_refused(message, read_predictions, tmp_path / "p.csv")


# Aligning predictions


def write_all(folder, *contents):
    paths = [folder / f"{i}.csv" for i in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        write_text(path, "ID,Labels\n" + content)
    return paths


def test_predictions_are_aligned_by_id(tmp_path):
    paths = write_all(tmp_path, "10,1\n9,2\n", "9,3\n10,4\n", "10,5\n9,6\n")
    ids, labels, names = align_predictions(paths)
    assert (ids, names) == ([9, 10], None)
    assert labels.tolist() == [[2, 1], [3, 4], [6, 5]]
    assert labels.dtype == np.int64


@pytest.mark.parametrize("odd", ["cat", "²", "007", "-1"])
def test_names_of_classes_are_aligned_as_numbers_are(odd, tmp_path):
    paths = write_all(tmp_path, f"b,dog\na,{odd}\n", f"a,dog\nb,{odd}\n")
    ids, labels, names = align_predictions(paths)
    assert ids == ["a", "b"]
    assert np.array(names)[labels].tolist() == [[odd, "dog"], ["dog", odd]]
    assert names == sorted([odd, "dog"])


def test_names_and_numbers_are_not_mixed(tmp_path):
    paths = write_all(tmp_path, "1,0\n", "1,cat\n")
    message = r"1\.csv: must hold names of classes, or numbers, as .*0\.csv does"
    check_refused(message, align_predictions, paths)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("1,0\n2,0\n3,0\n4,0\n", r"lacks '5'\Z"),
        ("1,0\n2,0\n3,0\n4,0\n5,0\n9,0\n", r"adds '9'\Z"),
        ("5,0\n", r"lacks '1', '2', '3' and 1 more\Z"),
        ("2,0\n3,0\n4,0\n5,0\na,0\n", r"lacks '1', adds 'a'\Z"),
    ],
)
def test_other_ids_are_named(other, message, tmp_path):
    first = "".join(f"{i},0\n" for i in range(1, 6))
    paths = write_all(tmp_path, first, first, other)
    message = rf"2\.csv: must have the same IDs as .*0\.csv, but {message}"
    check_refused(message, align_predictions, paths)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_files_are_refused(count, tmp_path):
    paths = write_all(tmp_path, *["1,0\n"] * count)
    check_refused(rf"{count} file.*at least 2", align_predictions, paths)
