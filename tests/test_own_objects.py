"""A user's own arrays and network in the trainer, and what a run records of them."""

import chex
import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
import smoke

from jaxattn import doctor
from jaxattn.errors import UserError
from jaxattn.inference.evaluation import load_data_of
from jaxattn.studies.average import average_checkpoints
from jaxattn.training import build, load_trained, train_and_evaluate

ONE = smoke.one_device()
CONFIG = {
    "seed": 0,
    "num_epochs": 2,
    "batch_size": 8,
    "normalize": {"mean": (0.5,), "std": (0.5,)},
    "schedule": {"name": "constant", "learning_rate": 0.1},
    "optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 0.0},
    "log": {"tensorboard": False},
}


class Net(nn.Module):
    """A linear classifier."""

    num_classes: int = 3
    scale: float = 1.0

    @nn.compact
    def __call__(self, x, *, train=False):
        del train
        return nn.Dense(self.num_classes)(self.scale * x.reshape(len(x), -1))


def arrays(count, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 4, 4, 3), np.uint8), rng.integers(0, 3, count)


class Deep(nn.Module):
    """Two layers."""

    num_classes: int = 3

    @nn.compact
    def __call__(self, x, *, train=False):
        del train
        return nn.Dense(self.num_classes)(nn.Dense(4)(x.reshape(len(x), -1)))


DATA = {"train": arrays(24), "test": arrays(10, 1)}


NET = Net()


def make_run(data=DATA, model=NET, **changes):
    return build({**CONFIG, **changes}, data=data, model=model, devices=ONE)


def test_own_arrays_and_network_train_and_load(tmp_path):
    results = train_and_evaluate(make_run(), tmp_path)
    assert results["model"] == "Net"
    assert results["num_examples"] == {"train": 24, "val": 0, "test": 10}
    trained = load_trained(tmp_path, model=Net())
    logits = trained.model.apply(
        trained.variables, trained.preprocess.normalize(DATA["test"][0])
    )
    right = np.mean(np.argmax(logits, -1) == DATA["test"][1])
    assert results["test_accuracy"] == pytest.approx(right)


def test_a_run_of_an_own_network_says_which_it_needs(tmp_path):
    train_and_evaluate(make_run(), tmp_path)
    with pytest.raises(UserError, match="model=None: must be given, since the run"):
        load_trained(tmp_path)
    message = r"^model: another object than the run's: .*scale = 2.*, .*scale = 1"
    with pytest.raises(UserError, match=message):  # of the same weights
        load_trained(tmp_path, model=Net(scale=2.0))


def test_a_run_starts_from_one_of_an_own_network(tmp_path):
    train_and_evaluate(make_run(), tmp_path)
    expected = load_trained(tmp_path, model=Net()).variables["params"]
    state = make_run(init_from=str(tmp_path)).init_state()
    chex.assert_trees_all_equal(state.params, expected)
    more = make_run(init_from=str(tmp_path), model=Net(num_classes=5)).init_state()
    assert more.params["Dense_0"]["kernel"].shape == (48, 5)
    with pytest.raises(UserError, match="weights of another network"):
        make_run(init_from=str(tmp_path), model=Deep()).init_state()


def test_what_needs_more_than_a_config_says_so(tmp_path):
    train_and_evaluate(make_run(), tmp_path)
    statuses = [finding.status for finding in doctor.verify(tmp_path)]
    assert statuses == ["warning", "ok", "ok", "ok"]  # two epochs, and the newest
    with pytest.raises(UserError, match=r"objects of its own \(data, model\)"):
        average_checkpoints(tmp_path, tmp_path / "average")
    trained = load_trained(tmp_path, model=NET)
    with pytest.raises(UserError, match="your own arrays, come without data"):
        load_data_of(trained, {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {**DATA, "train": arrays(24, 9)}}, r"own\.data\.train: sha256"),
        ({"model": Net(scale=2.0)}, r"own\.model: "),
    ],
)
def test_resuming_with_other_objects_is_refused(tmp_path, change, message):
    train_and_evaluate(make_run(), tmp_path)
    with pytest.raises(UserError, match=message) as refused:
        train_and_evaluate(make_run(**change), tmp_path)
    assert "\n" not in str(refused.value)


def test_objects_take_the_place_of_sections():
    run = make_run(model=Net(), data=DATA)
    named = build(
        {**CONFIG, "model": {"name": "vgg11"}, "data": {"name": "digits"}},
        data=DATA,
        model=Net(),
        devices=ONE,
    )
    assert named.record == run.record
    assert named.model == run.model


def test_some_named_some_own():
    config = {**CONFIG, "model": {"name": "efficient_resnet", "base_width": 2}}
    run = build(config, data=DATA, devices=ONE)
    assert run.model.num_classes == 3  # pyright: ignore
    assert set(run.record["own"]) == {"data"}


def test_validation_and_test_splits_are_optional():
    run = make_run(data={"train": arrays(8)})
    assert run.data.val is None
    assert run.data.test is run.data.train
    run = make_run(data={"train": arrays(8), "val": arrays(8, 1)})
    assert run.data.test is run.data.val


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"test": arrays(4)}, "data: has no train; must be train"),
        ({"train": arrays(4), "valid": arrays(4)}, "data: has valid; must be train"),
        ([arrays(4)], "data: list; must be a mapping of train"),
        ({"train": arrays(4)[0]}, r"data\['train'\]: must be a pair"),
        (
            {"train": (np.zeros((4, 4, 4, 3)), np.zeros(4, int))},
            r"images are float64 \[4, 4, 4, 3\], must be uint8",
        ),
        (
            {"train": (arrays(4)[0], np.zeros(3, int))},
            r"data\['train'\]: labels are int64 \[3\], must be integers \[4\]",
        ),
        ({"train": (arrays(4)[0], np.full(4, -1))}, "has a label -1"),
        ({"train": (arrays(4)[0], np.zeros(4))}, "labels are float64"),
        ({"train": 5}, r"data\['train'\]: must be a pair"),
        ({"train": arrays(4), "val": None}, r"data\['val'\]: must be a pair"),
        (
            {"train": arrays(4), "test": (np.zeros((2, 5, 5, 3), np.uint8), [0, 1])},
            r"data\['test'\]: images of \[5, 5, 3\], must be of \[4, 4, 3\]",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_named(data, message):
    with pytest.raises(UserError, match=message):
        make_run(data=data)


def test_logits_without_examples_are_classes_too(tmp_path):
    run = make_run(model=Net(num_classes=5))
    assert run.data.class_names == ("0", "1", "2", "3", "4")
    train_and_evaluate(run, tmp_path)  # its report and figures have all of them
    assert load_trained(tmp_path, model=Net(num_classes=5)).class_names[-1] == "4"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Net(num_classes=2), r"outputs are \[2, 2\], .* at least the 3 classes"),
        (nn.Dense(3), "model=Dense: does not take images"),
    ],
)
def test_a_network_that_does_not_fit_is_named(model, message):
    with pytest.raises(UserError, match=message):
        make_run(model=model)


class NoClasses(nn.Module):
    """Says nothing of its classes."""

    @nn.compact
    def __call__(self, x, *, train=False):
        del train
        return nn.Dense(3)(jnp.mean(x, (1, 2)))


def test_an_own_network_without_num_classes_has_no_known_head():
    make_run(model=NoClasses())
    with pytest.raises(UserError, match="NoClasses: has no attribute num_classes"):
        make_run(model=NoClasses(), trainable="head")


def test_pmap_needs_a_network_with_an_axis_name():
    with pytest.raises(UserError, match="data_parallel='pmap': model=Net has no"):
        make_run(data_parallel="pmap")
