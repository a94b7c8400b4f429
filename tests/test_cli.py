"""The `jaxattn` command: every subcommand, and what it says to a mistake."""

import argparse
import csv
import errno
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
from PIL import Image
from tiers import full_but

from jaxattn import cli
from jaxattn.cli import _make_parser, machine, main, predict
from jaxattn.cli.methods import make_method
from jaxattn.config.file import list_recipes
from jaxattn.data import load_data
from jaxattn.errors import UserError
from jaxattn.inference import attention
from jaxattn.inference.attention import read_examples
from jaxattn.inference.evaluation import load_data_of
from jaxattn.tasks.classification import Flip
from jaxattn.training import loop
from jaxattn.training.checkpoints.trained import load_trained

THRESHOLDS = "0.9,0.9,0.9,0.9,0.9"
METHODS = ("plain", "flip", "tta", "class_specialized", "adaptive")


@pytest.fixture(scope="module")
def workdir(trained_workdir):
    return trained_workdir


@pytest.fixture(scope="module")
def images():
    return load_data(
        "synthetic", image_size=16, num_train=8, num_test=6, num_classes=5
    ).test.images


@pytest.fixture
def batch(images, tmp_path):
    path = tmp_path / "test_batch"
    planar = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    ids = np.array([5, 3, 4, 0, 2, 1])
    path.write_bytes(pickle.dumps({b"data": planar, b"ids": ids}))
    return path


def run(capsys, *arguments):
    code = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def rows(path):
    return list(csv.reader(io.StringIO(path.read_text())))


@pytest.mark.parametrize("method", full_but(METHODS, "plain", "adaptive"))
def test_predict_writes_the_submission(capsys, workdir, batch, tmp_path, method):
    out = tmp_path / "out" / "a.csv"
    code, text, _ = run(
        capsys, "predict", "--workdir", workdir, "--data", batch, "--method", method,
        "--thresholds", THRESHOLDS, "--hard-classes", "2,3", "--out", out,
    )  # fmt: skip
    assert code == 0
    assert text.endswith(f"\n6 predictions in {out}\n")
    header, *body = rows(out)
    assert header == ["ID", "Labels"]
    assert [row[0] for row in body] == list("012345")
    assert all(row[1] in "01234" for row in body)


@pytest.mark.full
@pytest.mark.parametrize(
    ("method", "name"),
    [("adaptive", "adaptive"), ("class_specialized", "specialized")],
)
def test_files_are_named_as_the_reference_names_them(
    capsys, workdir, batch, tmp_path, monkeypatch, method, name
):
    monkeypatch.chdir(tmp_path)
    run(
        capsys, "predict", "--workdir", workdir, "--data", batch, "--method", method,
        "--thresholds", THRESHOLDS,
    )  # fmt: skip
    assert (tmp_path / "submissions" / f"{name}_submission.csv").exists()


def test_probabilities_and_names(capsys, workdir, images, tmp_path):
    np.savez(tmp_path / "a.npz", images=images)
    out = tmp_path / "a.csv"
    run(
        capsys, "predict", "--workdir", workdir, "--data", tmp_path / "a.npz",
        "--names", "--probabilities", "--out", out,
    )  # fmt: skip
    header, *body = rows(out)
    assert header == ["ID", "Labels", "0", "1", "2", "3", "4"]
    for _, label, *chances in body:
        assert sum(map(float, chances)) == pytest.approx(1, abs=1e-5)
        assert max(chances) == chances[int(label)]


def save_photos(images, folder):
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def renamed(two_epochs, tmp_path):
    """A run on images of 8 pixels, its classes with names that are no numbers."""
    copied = shutil.copytree(two_epochs, tmp_path / "renamed")
    config = json.loads((copied / "config.json").read_text())
    config["dataset"]["class_names"] = ["ant", "bee", "cat", "a\ndog", "eel"]
    (copied / "config.json").write_text(json.dumps(config))
    return copied


def test_few_images_are_answered_on_the_terminal(capsys, renamed, images, tmp_path):
    photos = save_photos(images[:2], tmp_path / "photos")
    out = tmp_path / "a.csv"
    code, text, _ = run(
        capsys, "predict", "--workdir", renamed, "--data", photos, "--out", out
    )
    *told, last = text.splitlines()
    assert (code, last) == (0, f"2 predictions in {out}")
    for line, (name, label) in zip(told, rows(out)[1:], strict=True):
        shares = re.findall(r"([\w\\]+) (\d+\.\d) %", line)
        assert line.startswith(f"{name}  {shares[0][0]} ")
        assert len(shares) == 3  # of five classes
        assert label.replace("\n", r"\n") == shares[0][0]
        values = [float(share) for _, share in shares]
        assert values == sorted(values, reverse=True)
        assert 0 < sum(values) <= 100.1


def test_many_images_are_answered_in_the_file_alone(capsys, renamed, tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((11, 8, 8, 3), np.uint8))
    out = tmp_path / "a.csv"
    data = tmp_path / "a.npz"
    _, text, _ = run(
        capsys, "predict", "--workdir", renamed, "--data", data, "--out", out
    )
    assert text == f"11 predictions in {out}\n"


@pytest.mark.parametrize(
    ("kind", "flags", "has_names"),
    [
        ("folder", (), True),
        ("folder", ("--no-names",), False),
        ("arrays", (), False),  # as the reference code's submissions
        ("arrays", ("--names",), True),
    ],
)
def test_classes_are_named_where_images_are(
    capsys, renamed, images, tmp_path, kind, flags, has_names
):
    data = tmp_path / "a.npz"
    if kind == "folder":
        data = save_photos(images, tmp_path / "photos")
    else:
        np.savez(data, images=images[:, ::2, ::2])
    out = tmp_path / "a.csv"
    run(capsys, "predict", "--workdir", renamed, "--data", data, "--out", out, *flags)
    header, *body = rows(out)
    assert header == ["ID", "Labels"]
    assert all(row[1].isdecimal() != has_names for row in body)


def test_images_and_folders_are_predicted_alike(capsys, workdir, images, tmp_path):
    folder = save_photos(images, tmp_path / "photos")
    by_folder, by_file = tmp_path / "a.csv", tmp_path / "b.csv"
    base = ("predict", "--workdir", workdir, "--data")
    assert run(capsys, *base, folder, "--out", by_folder)[0] == 0
    files = sorted(folder.iterdir())
    assert run(capsys, *base, *files, "--out", by_file)[0] == 0
    labels = [[row[1] for row in rows(path)] for path in (by_folder, by_file)]
    assert labels[0] == labels[1]
    assert rows(by_folder)[1][0] == "0.png"


def test_ensemble_needs_no_network(capsys, tmp_path):
    for i, labels in enumerate(((1, 2, 0), (1, 0, 0), (3, 1, 2))):
        lines = [f"{j},{label}" for j, label in enumerate(labels)]
        (tmp_path / f"{i}.csv").write_text("\n".join(["ID,Labels", *lines]) + "\n")
    files = sorted(tmp_path.iterdir())
    out = tmp_path / "e.csv"
    command = ("predict", "--method", "ensemble", "--ensemble-files", *files)
    assert run(capsys, *command, "--out", out)[0] == 0
    assert rows(out)[1:] == [["0", "1"], ["1", "0"], ["2", "0"]]


def test_ensemble_votes_on_names_as_well(capsys, tmp_path):
    for i, labels in enumerate((("bee", "ant"), ("ant", "bee"), ("bee", "cat"))):
        lines = [f"{j}.jpg,{label}" for j, label in enumerate(labels)]
        (tmp_path / f"{i}.csv").write_text("\n".join(["ID,Labels", *lines]) + "\n")
    files = sorted(tmp_path.iterdir())
    out = tmp_path / "e.csv"
    command = ("predict", "--method", "ensemble", "--ensemble-files", *files)
    assert run(capsys, *command, "--out", out)[0] == 0
    assert rows(out)[1:] == [["0.jpg", "bee"], ["1.jpg", "ant"]]


def test_evaluate_reports_the_runs_accuracy(capsys, workdir):
    code, text, _ = run(capsys, "evaluate", "--workdir", workdir)
    assert code == 0
    folder = workdir / "evaluation" / "test_best_plain"
    report = (folder / "report.txt").read_text()
    assert text == f"{report}\nreport and figures in {folder}\n"
    results = json.loads((folder / "results.json").read_text())
    trained = json.loads((workdir / "results.json").read_text())
    assert results["accuracy"] == pytest.approx(trained["test_accuracy"])
    assert results["ece"] == pytest.approx(trained["test_ece"], abs=1e-6)
    assert results["temperature_fitted_on"] == "val"
    for name in ("confusion_matrix", "reliability", "reliability_calibrated"):
        assert (folder / f"{name}.png").stat().st_size > 1000


class Counting:
    """A task that is no classification, as far as a choice of a method asks."""

    plain = Flip()


def test_plain_method_is_the_tasks_and_others_are_classifications():
    parser = argparse.ArgumentParser()
    predict._add_evaluate(parser)
    trained = types.SimpleNamespace(task=Counting(), class_names=("0", "1"))
    args = parser.parse_args([])
    assert make_method(args, trained) is Counting.plain
    args = parser.parse_args(["--method", "tta"])
    with pytest.raises(UserError, match="--method='tta': must be plain for Counting"):
        make_method(args, trained)
    args = parser.parse_args(["--bonus", "0.1"])
    with pytest.raises(UserError, match=r"--bonus=0\.1: must be left out: Counting"):
        make_method(args, trained)


@pytest.mark.parametrize("split", full_but(["val", "train"], "val"))
def test_evaluate_takes_any_split_and_method(capsys, workdir, tmp_path, split):
    code, text, _ = run(
        capsys, "evaluate", "--workdir", workdir, "--split", split,
        "--method", "tta", "--weights", "last_ema", "--out", tmp_path / "e",
    )  # fmt: skip
    assert code == 0
    assert f"split {split}, weights last_ema, step 120, method tta" in text
    results = json.loads((tmp_path / "e" / "results.json").read_text())
    assert results["num_examples"] == {"val": 30, "train": 90}[split]


def test_torch_weights_go_in_and_out(capsys, golden, tmp_path):
    torch = pytest.importorskip("torch")
    state = {
        name.removeprefix("state/"): torch.from_numpy(array)
        for name, array in golden("efficient_resnet_bw8").items()
        if name.startswith("state/")
    }
    torch.save(state, tmp_path / "a.pth")
    code, text, err = run(
        capsys, "import-torch", tmp_path / "a.pth", "--model", "efficient_resnet",
        "--model-arg", "base_width=8", "--workdir", tmp_path / "run",
    )  # fmt: skip
    assert code == 0, err
    assert text.startswith("efficient_resnet, 179,410 parameters")
    assert "mean (0.4914, 0.4822, 0.4465)" in text
    code, _, err = run(
        capsys, "export-torch", "--workdir", tmp_path / "run",
        "--out", tmp_path / "b.pth",
    )  # fmt: skip
    assert code == 0, err
    exported = torch.load(tmp_path / "b.pth", weights_only=True)
    assert all(torch.equal(exported[name], state[name]) for name in state)


class Malicious:
    def __reduce__(self):
        return print, ("executed",)


def malicious(path):
    path.write_bytes(pickle.dumps(Malicious()))


def broken_image(path):
    path.mkdir()
    (path / "a.png").write_bytes(b"not an image")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (malicious, "not allowed"),
        (lambda p: p.write_bytes(pickle.dumps({"data": 1})[:-4]), "not a readable"),
        (lambda p: p.write_bytes(pickle.dumps({"data": 1})), "must be uint8"),
        (lambda p: p.mkdir(), "holds no image"),
        (broken_image, "a.png: not a readable image"),
        (lambda _: None, "no such file or folder"),
    ],
)
def test_bad_input_is_one_line(capsys, workdir, tmp_path, make, message):
    make(tmp_path / "input")
    out = tmp_path / "a.csv"
    code, text, err = run(
        capsys, "predict", "--workdir", workdir, "--data", tmp_path / "input",
        "--out", out,
    )  # fmt: skip
    assert (code, text) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict"], "--data=None: must be given with this method"),
        (
            ["predict", "--data", "x"],
            "--workdir=None: must be given, or --weights one of",
        ),
        (["predict", "--method", "best"], "invalid choice: 'best'"),
        (["predict", "--thresholds", "a,b"], "'a,b' must be numbers"),
        (["predict", "--method", "ensemble"], "0 file(s), must be at least 2"),
        (["predict", "--method", "ensemble", "--data", "x"], "must be left out"),
        (
            ["predict", "--method", "ensemble", "--weights", "canet_tiny-cifar10"],
            "--weights='canet_tiny-cifar10': must be left out",
        ),
        (["predict", "--ensemble-files", "a"], "with --method ensemble alone"),
        (["predict", "--workdir", "none", "--data", "x"], "holds no run"),
        (["evaluate"], "--workdir=None: must be given, or --weights"),
        (["evaluate", "--workdir", "x", "--split", "all"], "invalid choice: 'all'"),
        (["export-torch", "--workdir", "x"], "--out"),
        (
            ["import-torch", "a.pth", "--model", "cant", "--workdir", "w"],
            "did you mean",
        ),
        (["pedict"], "invalid choice: 'pedict'"),
        (["train", "--config", "canet"], "--workdir"),
    ],
)
def test_mistake_is_one_line(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, text, err = run(capsys, *arguments)
    assert (code, text) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_without_arguments_the_first_command_is_named(capsys):
    code, text, err = run(capsys)
    assert (code, err) == (0, "")
    first = re.search(r"jaxattn (train --config quickstart --workdir \S+)", text)
    assert first is not None
    trained = _make_parser().parse_args(first[1].split())
    assert trained.config in list_recipes()
    assert "predict" in text


@pytest.mark.parametrize(
    ("program", "command"),
    [("main.py", "python main.py"), ("jaxattn", "jaxattn train")],
)
def test_training_without_arguments_names_a_recipe(capsys, program, command):
    code = main(["train"], program)
    captured = capsys.readouterr()
    assert (code, captured.out) == (2, "")
    assert f"{command} --config quickstart --workdir workdir/quickstart" in captured.err
    assert all(recipe in captured.err for recipe in list_recipes())


def test_train_takes_a_recipe_by_name_with_overrides(capsys, tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(loop, "train_and_evaluate", lambda *run: trained.append(run))
    overrides = ("--config.seed", "3", "--noconfig.log.images")
    code, _, err = run(
        capsys, "train", "--config", "canet:tiny", "--workdir", tmp_path, *overrides
    )
    assert (code, err) == (0, "")
    ((config, workdir),) = trained
    assert workdir == str(tmp_path)
    assert (config.model.name, config.seed) == ("canet_tiny", 3)
    assert (config.log.images, config.is_locked) == (False, True)


def test_mismatching_ensemble_names_the_ids(capsys, tmp_path):
    for name, ids in (("a", (0, 1)), ("b", (0, 2))):
        lines = "".join(f"{i},1\n" for i in ids)
        (tmp_path / f"{name}.csv").write_text("ID,Labels\n" + lines)
    code, _, err = run(
        capsys, "predict", "--method", "ensemble", "--ensemble-files",
        tmp_path / "a.csv", tmp_path / "b.csv", "--out", tmp_path / "e.csv",
    )  # fmt: skip
    assert code == 2
    assert "lacks '1', adds '2'" in err


def test_thresholds_of_other_classes_are_named(capsys, workdir, batch, tmp_path):
    code, _, err = run(
        capsys, "predict", "--workdir", workdir, "--data", batch, "--method",
        "adaptive", "--out", tmp_path / "a.csv",
    )  # fmt: skip
    assert code == 2
    assert "--thresholds=None: must be given for other classes" in err


def test_unwritable_output_is_said_before_the_work(
    capsys, workdir, batch, tmp_path, monkeypatch
):
    monkeypatch.setattr("jaxattn.inference.predict.Predictor", None)
    code, _, err = run(
        capsys, "predict", "--workdir", workdir, "--data", batch, "--out", tmp_path
    )
    assert code == 2
    assert "cannot be written (is a folder)" in err


def test_base_installation_gets_one_line():
    """Without the extra: help and ensembles work, the rest says what to install."""
    code = (
        "import sys; sys.modules.update(matplotlib=None, orbax=None, tqdm=None);"
        "from jaxattn.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run([sys.executable, "-c", code, "--help"], check=False)
    assert done.returncode == 0
    command = [sys.executable, "-c", code, "evaluate", "--workdir", "x"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.endswith(": pip install orbax-checkpoint matplotlib tqdm\n")


def test_models_lists_parameters_and_macs(capsys):
    code, text, _ = run(capsys, "models", "sccnet18")
    header, row, keywords = text.splitlines()
    assert code == 0
    assert header.split()[:5] == ["model", "stem", "pixels", "classes", "parameters"]
    assert row.split() == [
        "sccnet18", "imagenet", "224", "1000", "15,849,384",
        "2,655,424,512", "2,276,495,360",
    ]  # fmt: skip
    assert "downsample" in keywords


def test_models_takes_what_the_network_takes(capsys):
    _, text, _ = run(
        capsys, "models", "sccnet18", "--stem", "cifar", "--num-classes", "100",
        "--image-size", "16", "--model-arg", "downsample=conv1",
    )  # fmt: skip
    row = text.splitlines()[1].split()
    # 11,712,552 with another stem (7x7 -> 3x3 of 3 to 64 channels) and 100 classes.
    assert row[1:5] == ["cifar", "16", "100", f"{11_712_552 - 40 * 192 - 900 * 513:,}"]


@pytest.mark.full
def test_models_lists_all(capsys, monkeypatch):
    names = ["canet_tiny", "resnet18"]
    monkeypatch.setattr("jaxattn.models.registry.list_models", lambda: names)
    code, text, _ = run(capsys, "models", "--stem", "cifar")
    rows = [line.split() for line in text.splitlines()[1:]]
    assert code == 0
    assert [row[0] for row in rows] == names
    assert rows[0][1:4] == ["32", "10", "396,155"]
    assert rows[1][1:5] == ["cifar", "32", "10", "11,173,962"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet50_sca"], "model='resnet50_sca': did you mean 'resnet50_scsa'"),
        (["canet", "--stem", "cifar"], "model.stem: canet takes no such key"),
        (["resnet18", "--stem", "cifr"], "stem='cifr': did you mean 'cifar'"),
        (["canet", "--image-size", "20"], "canet at 20 pixels: CANet: image height 20"),
        (["canet", "--num-classes", "0"], "'0' must be at least 1"),
    ],
)
def test_models_refuses(capsys, arguments, message):
    code, text, error = run(capsys, "models", *arguments)
    assert (code, text) == (2, "")
    assert message in error


@pytest.mark.full
def test_attention_maps_writes_a_page_for_each_image(capsys, workdir, images, tmp_path):
    folder = tmp_path / "photos" / "3"  # the name of a class
    folder.mkdir(parents=True)
    for i, image in enumerate(images[:3]):
        Image.fromarray(image).save(folder / f"{i}.png")
    (tmp_path / "one.png").write_bytes((folder / "0.png").read_bytes())
    out = tmp_path / "pages"
    code, text, err = run(
        capsys, "attention-maps", "--workdir", workdir, "--out", out,
        "--images", tmp_path / "one.png", folder,
    )  # fmt: skip
    assert (code, text, err) == (0, f"pages of 4 images in {out}\n", "")
    pages = sorted(path.name for path in out.iterdir())
    assert pages == ["00_one.png", "01_0.png", "02_1.png", "03_2.png"]


@pytest.mark.parametrize(
    ("arguments", "folder"),
    [
        (["--weights", "canet_tiny-cifar10"], "attention_maps"),
        (["--workdir", "run"], "run/attention_maps"),
        (["--workdir", "run", "--out", "here"], "here"),
    ],
)
def test_attention_maps_are_where_the_run_is_or_the_person(
    capsys, tmp_path, monkeypatch, arguments, folder
):
    monkeypatch.chdir(tmp_path)
    written = []
    monkeypatch.setattr(predict, "load_network", lambda _: None)
    examples = types.SimpleNamespace(total=1)
    monkeypatch.setattr(attention, "read_examples", lambda *_: examples)

    def write_pages(_trained, _examples, out, _layers, of_class):
        assert of_class is None
        written.append(str(out))
        return [out], True

    monkeypatch.setattr(attention, "write_pages", write_pages)
    code, text, _ = run(capsys, "attention-maps", *arguments)
    assert (code, written) == (0, [folder])
    assert text == f"pages of 1 image in {folder}\n"


def test_attention_maps_knows_classes_by_folder_and_of_the_test_split(
    workdir, images, tmp_path
):
    (tmp_path / "3").mkdir()
    for path in (tmp_path / "3" / "a.png", tmp_path / "b.png"):
        Image.fromarray(images[0]).save(path)
    trained = load_trained(workdir)
    given = read_examples(trained, [tmp_path], 16)
    assert given.names == ["3/a.png", "b.png"]
    assert given.targets == [{"label": 3}, {}]
    own = read_examples(trained, None, 3)
    test = load_data_of(trained, {}).test
    assert own.names == ["test_0", "test_22", "test_44"]
    labels = [target["label"] for target in own.targets]
    assert labels == test.labels[[0, 22, 44]].tolist()
    np.testing.assert_array_equal(own.images, test.images[[0, 22, 44]])


def test_attention_maps_complains_of_layers_in_one_line(capsys, workdir, tmp_path):
    code, _, err = run(
        capsys, "attention-maps", "--workdir", workdir, "--layers", "res*",
        "--max-images", 1, "--out", tmp_path,
    )  # fmt: skip
    assert code == 2
    assert err.startswith("jaxattn: --layers='res*': must be of layer1.0, ")
    assert err.count("\n") == 1


# Programs


def start(*arguments, stdout, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "jaxattn", *arguments],
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        stdout=stdout, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("arguments", [("--help",), ("models", "canet")])
def test_a_command_ends_quietly_when_no_one_reads(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    # Unbuffered, argparse itself is quiet of its help, and the code 0.
    process = start(*arguments, stdout=writer, PYTHONUNBUFFERED="")
    os.close(writer)
    _, said = process.communicate(timeout=120)
    assert (process.returncode, said) == (141, "")


def test_a_broken_pipe_of_another_kind_is_told(capsys, monkeypatch):
    def fail(_):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(cli, "_COMMANDS", [machine.Command("verify", "", fail)])
    assert main(["verify"]) == 1
    assert "Broken pipe" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "joins"),
    [
        ([], False),
        (["--distributed"], True),
        (["--distributed=true"], True),
        (["--distributed=false"], False),
    ],
)
def test_distributed_is_a_flag_with_or_without_a_value(
    monkeypatch, tmp_path, flags, joins
):
    calls = []
    monkeypatch.setattr(loop, "train_and_evaluate", lambda *_: None)
    monkeypatch.setattr("jax.distributed.initialize", lambda *_: calls.append(1))
    command = ("train", "--config", "canet:tiny", "--workdir", str(tmp_path))
    assert main([*command, *flags]) == 0
    assert bool(calls) == joins


def test_a_variable_that_jax_refuses_is_one_line():
    process = start("models", stdout=subprocess.PIPE, JAX_ENABLE_X64="maybe")
    text, said = process.communicate(timeout=60)
    assert (process.returncode, text) == (2, "")
    assert said.startswith("jaxattn: ")
    assert said.count("\n") == 1
