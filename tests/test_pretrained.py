"""Fine-tuning: runs that start from the weights of another one."""

import json
import shutil

import chex
import jax
import numpy as np
import pytest
import smoke

from jaxattn import UserError, to_torch
from jaxattn.training import loop
from jaxattn.training.checkpoints.trained import load_trained
from jaxattn.training.run import build

ONE = smoke.one_device()
HEAD = "fc"


def config(**overrides):
    result = smoke.get_config()
    result.num_epochs = 1
    result.update_from_flattened_dict(
        {key.replace("__", "."): value for key, value in overrides.items()}
    )
    return result


@pytest.fixture(scope="module")
def other_run(two_epochs):
    return two_epochs


@pytest.fixture
def torch_file(other_run, tmp_path):
    torch = pytest.importorskip("torch")
    trained = load_trained(other_run)
    state = to_torch(trained.model, trained.variables)
    path = tmp_path / "model.pth"
    torch.save({k: torch.tensor(v) for k, v in state.items()}, path)
    return path


def first_state(**overrides):
    return build(config(**overrides), devices=ONE).init_state()


def split_head(params):
    body = {key: value for key, value in params.items() if key != HEAD}
    return body, params[HEAD]


def test_run_starts_from_the_best_weights_of_another(other_run):
    state = first_state(init_from=str(other_run))
    variables = load_trained(other_run).variables
    chex.assert_trees_all_equal(state.params, variables["params"])
    chex.assert_trees_all_equal(state.batch_stats, variables["batch_stats"])
    chex.assert_trees_all_equal(state.ema_params, variables["params"])
    assert state.step == 0


def test_another_number_of_classes_gets_a_new_head(other_run):
    state = first_state(init_from=str(other_run), data__num_classes=7)
    fresh = first_state(data__num_classes=7)
    pretrained = load_trained(other_run).variables["params"]
    body, head = split_head(state.params)
    chex.assert_trees_all_equal(body, split_head(pretrained)[0])
    chex.assert_trees_all_equal(head, split_head(fresh.params)[1])


@pytest.fixture
def named_run(other_run, tmp_path):
    """Copies the other run, and gives its classes names, or its data another one."""

    def copy(names=None, data="synthetic"):
        folder = shutil.copytree(other_run, tmp_path / "named")
        record = json.loads((folder / "config.json").read_text())
        record["dataset"]["class_names"] = list(names or "01234")
        record["data"]["name"] = data
        (folder / "config.json").write_text(json.dumps(record))
        return folder

    return copy


@pytest.mark.parametrize(
    ("names", "data", "is_kept"),
    [
        ("01234", "digits", True),  # the same names
        pytest.param("abcde", "synthetic", True, marks=pytest.mark.full),  # same data
        ("abcde", "imagefolder", False),
        # Imported weights, of which nobody knows.
        pytest.param("01234", None, True, marks=pytest.mark.full),
    ],
)
def test_as_many_other_classes_get_a_new_head(named_run, names, data, is_kept):
    folder = named_run(names, data)
    notes = []
    run = build(config(init_from=str(folder)), devices=ONE)
    state = run.init_state(notes.append)
    pretrained = load_trained(folder).variables["params"]
    fresh = first_state()
    body, head = split_head(state.params)
    chex.assert_trees_all_equal(body, split_head(pretrained)[0])
    expected = pretrained if is_kept else fresh.params
    chex.assert_trees_all_equal(head, split_head(expected)[1])
    (note,) = notes
    assert ("its head too" in note) == is_kept
    assert ("starts anew, for the classes here are 0, 1, 2, ...; it" in note) != is_kept


@pytest.mark.parametrize("num_classes", [5, 7])
def test_run_starts_from_a_torch_file(torch_file, other_run, num_classes):
    kwargs = {"data__num_classes": num_classes}
    state = first_state(init_from=str(torch_file), **kwargs)
    expected = first_state(init_from=str(other_run), **kwargs)
    chex.assert_trees_all_equal(state, expected)


@pytest.mark.full
def test_head_alone_trains(other_run, tmp_path):
    overrides = {"init_from": str(other_run), "data__num_classes": 7}
    tuned = config(**overrides, trainable="head", optimizer__weight_decay=0.1)
    loop.train_and_evaluate(tuned, tmp_path, devices=ONE)
    after = load_trained(tmp_path, weights="last").variables
    before = load_trained(other_run).variables
    body, head = split_head(after["params"])
    chex.assert_trees_all_equal(body, split_head(before["params"])[0])
    fresh = split_head(first_state(**overrides).params)[1]
    for leaf, first in zip(jax.tree.leaves(head), jax.tree.leaves(fresh), strict=True):
        assert np.all(leaf != first)
    stats, old = after["batch_stats"], before["batch_stats"]
    assert np.any(stats["bn1"]["mean"] != old["bn1"]["mean"])


@pytest.mark.full
def test_resumed_run_needs_its_origin_no_more(other_run, tmp_path):
    origin = tmp_path / "origin"
    origin.symlink_to(other_run)
    tuned = config(init_from=str(origin))
    first = loop.train_and_evaluate(tuned, tmp_path / "run", devices=ONE)
    origin.unlink()
    again = loop.train_and_evaluate(tuned, tmp_path / "run", devices=ONE)
    assert again["test_accuracy"] == first["test_accuracy"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model__base_width": 4}, "weights of another network: .* differ, such"),
        ({"trainable": "fc"}, "trainable='fc': choices: all, head"),
    ],
)
def test_what_does_not_fit_is_refused(other_run, overrides, message):
    with pytest.raises(UserError, match=message):
        first_state(init_from=str(other_run), **overrides)


def test_origin_that_is_no_run_or_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"init_from: workdir .*holds no run"):
        first_state(init_from=str(tmp_path))
    with pytest.raises(UserError, match=r"init_from=none.pth: no such workdir or Py"):
        first_state(init_from="none.pth")
    with pytest.raises(UserError, match=r"did you mean 'canet_tiny-cifar10'\?"):
        first_state(init_from="canet_tiny_cifar10")
    pytest.importorskip("torch")
    (tmp_path / "bad.pth").write_text("not a checkpoint")
    with pytest.raises(UserError, match=r"bad.pth: not a PyTorch file"):
        first_state(init_from=str(tmp_path / "bad.pth"))


def test_torch_file_of_another_network_is_refused(torch_file):
    with pytest.raises(
        UserError, match=r"init_from=.*state dict does not fit EfficientResNet"
    ):
        first_state(init_from=str(torch_file), model__base_width=4)
