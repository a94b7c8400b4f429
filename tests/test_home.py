"""`~` is the user's home in every path, also where no shell has replaced it."""

import argparse
import shutil

import jax
import numpy as np
import pytest

from jaxattn import UserError, cli, create_model
from jaxattn.cli.arguments import location, path
from jaxattn.config.file import load_config
from jaxattn.data import load_data
from jaxattn.models.classes import abstract_variables
from jaxattn.training import load_trained
from jaxattn.training.checkpoints.pretrained import Pretrained
from jaxattn.training.checkpoints.trained import write_trained

# What takes no path of its own, among what takes a text.
TEXTS = {
    *("name", "model", "config", "configs", "grid", "coordinator", "layers", "stem"),
    *("data_name", "platforms", "to", "of_class"),
}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def options():
    (commands,) = (
        action
        for action in cli._make_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    for name, parser in commands.choices.items():
        for action in parser._actions:
            if action.nargs != 0 and not action.choices and action.dest != "help":
                yield name, action


def test_every_option_that_takes_a_path_knows_it():
    untyped = {
        (name, action.dest)
        for name, action in options()
        if action.type in (None, str) and action.dest not in TEXTS
    }
    assert untyped == set()
    typed = {action.dest for _, action in options() if action.type in (location, path)}
    assert {"workdir", "out", "data", "images", "data_path", "checkpoint"} <= typed


def test_path_is_expanded(home):
    assert location("~/a") == str(home / "a")
    assert path("~/a") == home / "a"
    assert location("~no_such_user/a") == "~no_such_user/a"
    assert location("a~b") == "a~b"


def test_data_path_is_expanded(home):
    (home / "photos").mkdir()
    with pytest.raises(UserError, match="holds no folder train"):
        load_data("imagefolder", path="~/photos")


def test_recipe_is_expanded(home):
    shutil.copy(load_config.__globals__["_RECIPES"] / "canet.py", home / "mine.py")
    assert load_config("~/mine.py:tiny").model.name == "canet_tiny"


def test_workdir_and_init_from_are_expanded(home):
    data = load_data("digits", image_size=8)
    shape = data.image_shape
    model = create_model("efficient_resnet", 10, base_width=2)
    shapes = abstract_variables(model, shape)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    config = {
        "model": {"name": "efficient_resnet", "base_width": 2},
        "normalize": {"mean": (0.5,), "std": (0.5,)},
        "dataset": {"class_names": data.class_names, "image_shape": shape},
    }
    write_trained(home / "run", config, zeros)
    assert load_trained("~/run").class_names == data.class_names
    assert len(Pretrained("~/run", model, data).read(print)) > 10
    assert not (home / "~").exists()
