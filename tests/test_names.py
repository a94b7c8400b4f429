"""Any name that a file system allows survives training, reports and pictures."""

import io
import json
import os
import sys
import unicodedata

import flax.linen as nn
import jax
import numpy as np
import pytest
from PIL import Image

from jaxattn import UserError, cli
from jaxattn.atomic import write_atomically
from jaxattn.data import load_data
from jaxattn.inference.attention import Examples, write_pages
from jaxattn.tasks.classification.predictions import write_predictions
from jaxattn.text import printable
from jaxattn.training import build
from jaxattn.training.checkpoints.checkpoint import Checkpoints
from jaxattn.training.loop import train_and_evaluate
from jaxattn.viz import figure as viz_figure
from jaxattn.viz import figure_to_array, plot_confusion_matrix, plot_images

RAW = [
    b"caf\xe9",  # Latin-1
    b"two\nlines",
    b"$\\bad{$",
    "犬".encode(),
    unicodedata.normalize("NFD", "é").encode(),
    b"Labels",
    b"ID",
    b"10",
    b"2",
    b"\x1b[31mred",
    "\u202etxt".encode(),
    b"%s {0} <b>",
    b" ",
    "n" * 120,
]
NAMES = [os.fsdecode(name) for name in RAW]
SHOWN = {
    "caf\udce9": "caf\\xe9",
    "two\nlines": "two\\nlines",
    "\x1b[31mred": "\\x1b[31mred",
}


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, *, train=False):
        del train
        return nn.Dense(len(NAMES))(x.mean((1, 2)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("names")
    for split in ("train", "val"):
        for i, name in enumerate(NAMES):
            for k in range(2):
                path = root / split / name / f"{k}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((6, 6, 3), 9 * i, np.uint8)).save(path)
    return root


CONFIG = {
    "seed": 0,
    "num_epochs": 1,
    "batch_size": 14,
    "normalize": {"mean": (0.5,), "std": (0.5,)},
    "schedule": {"name": "constant", "learning_rate": 1e-3},
    "optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 0.0},
}


@pytest.mark.parametrize(
    "tensorboard", [False, pytest.param(True, marks=pytest.mark.full)]
)
def test_classes_of_any_name_are_trained_and_reported(folder, tmp_path, tensorboard):
    data = load_data("imagefolder", path=str(folder), image_size=4, val_fraction=0.5)
    run = build(
        CONFIG | {"log": {"tensorboard": tensorboard}, "data": {"path": "caf\udce9"}},
        data=data,
        model=Net(),
        devices=jax.devices()[:1],
    )
    workdir = tmp_path / "café $x$ 犬"
    train_and_evaluate(run, workdir)
    report = (workdir / "report.txt").read_text(encoding="utf-8")
    for name in NAMES:
        assert printable(name) in report
    assert sum(line.startswith("two") for line in report.splitlines()) == 1
    assert (workdir / "confusion_matrix.png").exists()
    saved = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
    assert saved["dataset"]["class_names"] == list(map(printable, sorted(NAMES)))


@pytest.mark.parametrize("name", [b"caf\xe9", b"two\nlines"])
def test_workdir_whose_name_checkpoints_cannot_have_is_refused(name, tmp_path):
    workdir = tmp_path / os.fsdecode(name)
    with pytest.raises(UserError, match=r"its path must be UTF-8 without line breaks"):
        Checkpoints(workdir)
    assert not workdir.exists()


@pytest.mark.parametrize(("name", "shown"), SHOWN.items())
def test_what_cannot_be_shown_is_escaped(name, shown):
    assert printable(name) == shown
    assert printable(shown) == shown


@pytest.mark.parametrize(
    "name", ["café", "犬", "\u0646\u0627\u0645\u200c\u0647\u0627", "a b", "\\n", "👩‍🚀"]
)
def test_what_can_be_shown_stays(name):
    assert printable(name) == name


def test_columns_of_probabilities_have_names_of_their_own(tmp_path):
    names, path = ("ID", "Labels", "p,q"), tmp_path / "p.csv"
    probabilities = np.full((1, 3), 1 / 3)
    write_predictions(path, ["a"], [1], class_names=names, probabilities=probabilities)
    assert path.read_text().splitlines()[0] == 'ID,Labels,p(ID),p(Labels),"p,q"'


def test_numbers_as_names_are_said_to_be_names(folder):
    data = load_data("imagefolder", path=str(folder), image_size=4)
    index = data.class_names.index("10")
    assert f"number {index} is class 10" in data.notes[-1]
    assert data.class_names.index("2") == index + 1


def make_split(root, split, names):
    for name in names:
        (root / split / name).mkdir(parents=True)
        Image.new("RGB", (6, 6)).save(root / split / name / "a.png")


def test_accents_of_a_mac_are_those_of_others(tmp_path):
    composed, apart = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    make_split(tmp_path, "train", [composed, "b"])
    make_split(tmp_path, "val", [apart, "b"])
    data = load_data("imagefolder", path=str(tmp_path), val_fraction=0)
    assert data.class_names == ("b", composed)
    assert data.test[1]["label"] == 1


def test_two_folders_that_read_alike_are_refused(tmp_path):
    composed, apart = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    make_split(tmp_path, "train", [composed, apart])
    make_split(tmp_path, "val", [composed, apart])
    with pytest.raises(UserError, match=r"train holds two folders that read alike"):
        load_data("imagefolder", path=str(tmp_path))


def test_messages_are_one_line_on_any_terminal(tmp_path, monkeypatch):
    output = io.BytesIO()
    stream = io.TextIOWrapper(output, encoding="ascii")
    monkeypatch.setattr(sys, "stderr", stream)
    workdir = tmp_path / os.fsdecode(b"caf\xe9\n\xe7\x8a\xac")
    assert cli.main(["verify", "--workdir", str(workdir)]) == 2
    stream.flush()
    text = output.getvalue()
    assert b"caf\\xe9\\n\\u72ac: its path must" in text
    assert text.count(b"\n") == 1


def test_text_is_written_whatever_it_holds(tmp_path):
    write_atomically(tmp_path / ("n" * 250), "caf\udce9")
    assert (tmp_path / ("n" * 250)).read_bytes() == b"caf\\udce9"


def test_pictures_escape_what_no_font_has(monkeypatch, caplog):
    viz_figure._tell.cache_clear()
    monkeypatch.setattr(viz_figure, "_fallbacks", list)
    for name in ("\U00013000", "\U00013000b"):  # a hieroglyph, not of DejaVu
        figure_to_array(plot_confusion_matrix(np.eye(2, dtype=int), [name, "b"]))
        assert viz_figure.legible(name).startswith("\\U00013000")
    assert caplog.text.count("no font here has all characters") == 1


def test_pictures_take_another_font_for_what_the_first_lacks():
    """STIX comes with Matplotlib and has what DejaVu Sans lacks."""
    usual = viz_figure._characters(viz_figure.findfont(viz_figure.FontProperties()))
    (stix,) = [f for f in viz_figure._fallbacks() if f.name == "STIXGeneral"]
    code = min(c for c in viz_figure._characters(stix.fname) - usual if c > 0x2000)
    assert viz_figure.legible(chr(code)) == chr(code)
    figure = plot_confusion_matrix(np.eye(2, dtype=int), [chr(code), "b"])
    figure_to_array(figure)  # a missing glyph would be a warning, so an error here
    figure_to_array(plot_images(np.zeros((1, 4, 4, 3), np.uint8), [chr(code)]))
    label = figure.axes[0].get_xticklabels()[0]
    assert label.get_text() == chr(code)
    assert len(label.get_fontfamily()) > 1


def test_pages_of_long_and_odd_names_are_written(tmp_path, monkeypatch):
    names = [os.fsdecode(b"\xe9" * 120), "犬" * 80, "a\nb"]
    examples = Examples(np.zeros((3, 4, 4, 3), np.uint8), names, [None] * 3, 3)
    pages = [plot_confusion_matrix(np.eye(2, dtype=int), ["a", "b"])] * 3
    from jaxattn.inference import attention

    monkeypatch.setattr(attention, "sows_gates", lambda *_: False)

    class Trained:
        model = variables = class_names = image_shape = None

        class task:  # noqa: N801
            make_pages = staticmethod(lambda *_, **__: lambda *_: pages)

        class preprocess:  # noqa: N801
            normalize = staticmethod(lambda images: images)

    paths, _ = write_pages(Trained(), examples, tmp_path)
    assert [path.name[:6] for path in paths] == ["00_\\xe", "01_犬犬犬", "02_a\\n"]
    assert all(path.exists() for path in paths)
