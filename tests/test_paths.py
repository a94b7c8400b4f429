"""Paths as a user gives them: of this machine, and of no bucket."""

import pathlib

import pytest
import smoke

from jaxattn.cli import main
from jaxattn.config.file import load_config
from jaxattn.errors import UserError
from jaxattn.paths import local_path
from jaxattn.training.checkpoints.trained import load_trained, write_trained
from jaxattn.training.loop import train_and_evaluate
from jaxattn.training.run import build


@pytest.mark.parametrize(
    "address",
    ["gs://b/r", "s3://b", "hdfs://h:1/x", "file:///tmp/x", pathlib.Path("gs://b/r")],
)
def test_an_address_is_no_path(address):
    with pytest.raises(UserError, match=r"^out=.*:// is not supported$"):
        local_path(address, "out")


@pytest.mark.parametrize("wrong", [5, None, "", b"w", "a\0b"])
def test_what_is_no_path_is_refused_by_name(wrong):
    with pytest.raises(UserError, match=r"^out=.*: must be a path$"):
        local_path(wrong, "out")


def test_names_with_colons_are_paths():
    for name in ("tfds:mnist", "hf:owner/name", "./gs:/b", "C:/run", "a:b"):
        assert local_path(name) == pathlib.Path(name)


def test_home_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert local_path("~/run") == pathlib.Path("/home/someone/run")
    assert local_path("~nobody-of-that-name/run").parts[-1] == "run"


# Every option of every command that takes a path.
NETWORK = ("--weights", "canet_tiny-cifar10")
IN_THE_WAY = "gs://bucket/run"


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "--config", "quickstart", "--workdir", IN_THE_WAY),
        ("train", "--config", IN_THE_WAY, "--workdir", "w"),
        ("train", "--config", "own_images", "--config.data.path=s3://b", "--workdir=w"),
        ("train", "--config=canet", "--config.init_from=s3://b", "--workdir=w"),
        ("evaluate", "--workdir", IN_THE_WAY),
        ("evaluate", *NETWORK, "--out", IN_THE_WAY),
        ("evaluate", *NETWORK, "--data-name=imagefolder", "--data-path", IN_THE_WAY),
        ("predict", *NETWORK, "--data", IN_THE_WAY, "--out", "a.csv"),
        ("predict", *NETWORK, "--data", "a.png", "--out", IN_THE_WAY),
        ("predict", "--method=ensemble", "--ensemble-files", IN_THE_WAY, "b.csv"),
        ("attention-maps", *NETWORK, "--images", IN_THE_WAY),
        ("attention-maps", *NETWORK, "--out", IN_THE_WAY),
        ("import-torch", IN_THE_WAY, "--model=canet", "--workdir=w"),
        ("import-torch", "a.pth", "--model=canet", "--workdir", IN_THE_WAY),
        ("export-torch", *NETWORK, "--out", IN_THE_WAY),
        ("export", *NETWORK, "--out", IN_THE_WAY),
        ("benchmark-latency", "--workdir", IN_THE_WAY),
        ("doctor", "--workdir", IN_THE_WAY),
        ("verify", "--workdir", IN_THE_WAY),
        ("compare", "--workdirs", IN_THE_WAY),
        ("compare", "--configs", "quickstart", "--root", IN_THE_WAY),
        ("compare", "--configs", IN_THE_WAY, "--root", "w"),
        ("compare", "--workdirs", "w", "--out", IN_THE_WAY),
        ("sweep", "--config=quickstart", "--grid=seed=0", "--workdir", IN_THE_WAY),
        ("average", "--workdir", IN_THE_WAY, "--out", "w"),
        ("average", "--workdir", "w", "--out", IN_THE_WAY),
        ("bn-landscape", "--config", "vgg_bn", "--workdir", IN_THE_WAY),
    ],
    ids=lambda arguments: " ".join(arguments)[:60],
)
def test_every_command_refuses_an_address_in_one_line(
    capsys, monkeypatch, tmp_path, arguments
):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert ":// is not supported" in line
    assert list(tmp_path.iterdir()) == []


def test_a_python_call_refuses_an_address_before_data_are_read():
    config = smoke.get_config()
    config.data.name = "no such data set"
    for refused in (
        lambda: train_and_evaluate(config, "gs://b/r"),
        lambda: load_trained("gs://b/r"),
        lambda: write_trained("gs://b/r", {}, {}),
        lambda: build({**config.to_dict(), "init_from": "gs://b/r"}),
    ):
        with pytest.raises(UserError, match="gs:// is not supported"):
            refused()


def test_a_recipe_may_have_a_path_of_windows_or_an_argument():
    assert load_config("canet:tiny").model.name == "canet_tiny"
