"""The mean of a run's checkpoints, as a workdir."""

import functools
import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import smoke
from test_cli import run as run_command
from test_loop import train

from jaxattn.data.augment import normalize
from jaxattn.errors import UserError
from jaxattn.inference.evaluation import evaluate, load_data_of
from jaxattn.inference.predict import Predictor
from jaxattn.studies.average import average_checkpoints
from jaxattn.tasks.classification.methods import Plain
from jaxattn.training.checkpoints.checkpoint import Checkpoints
from jaxattn.training.checkpoints.trained import load_trained
from jaxattn.training.run import build

# Of a training of their own.
pytestmark = pytest.mark.full

ONE = smoke.one_device()


def config():
    """Without augmentation: a training batch is its images alone."""
    result = smoke.get_config("small")
    result.num_epochs, result.keep_checkpoints = 4, 3
    result.augment = {}
    return result


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(config(), folder)
    return folder


@pytest.fixture(scope="module")
def averaged(workdir, tmp_path_factory):
    out = tmp_path_factory.mktemp("averaged") / "out"
    return average_checkpoints(workdir, out, last=3, devices=ONE), out


def states(workdir):
    run, checkpoints = (
        build(config(), devices=ONE),
        Checkpoints(workdir, read_only=True),
    )
    return {
        step: jax.device_get(checkpoints.restore(step, run.abstract_state))
        for step in (12, 18, 24)
    }


def test_run_keeps_as_many_checkpoints_as_it_is_told(workdir):
    assert set(Checkpoints(workdir, read_only=True).all_steps()) >= {12, 18, 24}


@pytest.mark.parametrize(("kind", "field"), [("raw", "params"), ("ema", "ema_params")])
def test_weights_are_the_mean_of_the_checkpoints(workdir, tmp_path, kind, field):
    kwargs = {"steps": [12, 24], "kind": kind, "devices": ONE}
    result = average_checkpoints(workdir, tmp_path / "out", **kwargs)
    assert result.steps == (12, 24)
    given = states(workdir)
    expected = jax.tree.map(
        lambda a, b: (a.astype(np.float64) + b) / 2,
        *(getattr(given[step], field) for step in (12, 24)),
    )
    trained = load_trained(tmp_path / "out")
    assert trained.step == 24
    chex.assert_trees_all_close(
        trained.variables["params"], expected, rtol=1e-6, atol=1e-8
    )


def test_statistics_are_the_means_over_the_batches_of_an_epoch(workdir, averaged):
    """PyTorch's update_bn: each batch counts the same, unlike in a moving average.

    From each batch apart: after one step of momentum 0.9 from 0, a tenth of its own.
    """
    run = build(config(), devices=ONE)
    trained = load_trained(averaged[1])
    zeros = jax.tree.map(jnp.zeros_like, trained.variables["batch_stats"])
    as_input = functools.partial(normalize, **run.config["normalize"])
    images = run.data.train.images

    @jax.jit
    def of_batch(images):
        variables = {**trained.variables, "batch_stats": zeros}
        keys = {"dropout": jax.random.key(0), "forcing": jax.random.key(0)}
        _, new = run.model.apply(
            variables, as_input(images), train=True, mutable=["batch_stats"], rngs=keys
        )
        return jax.tree.map(lambda leaf: 10 * leaf, new["batch_stats"])

    parts = [of_batch(images[run.order(step)]) for step in range(run.steps_per_epoch)]
    expected = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *parts)
    chex.assert_trees_all_close(
        trained.variables["batch_stats"], expected, rtol=1e-4, atol=1e-5
    )
    # And not those of the last checkpoint.
    last = states(workdir)[24].batch_stats
    first, own = jax.tree.leaves(last)[0], jax.tree.leaves(expected)[0]
    assert not np.allclose(first, own, rtol=1e-2)


def test_accuracies_are_those_of_evaluate(workdir, averaged):
    result, out = averaged
    for folder, accuracies in ((workdir, result.before), (out, result.after)):
        trained = load_trained(folder, weights="last")
        predictor, data = Predictor(trained), load_data_of(trained, {})
        for split in ("val", "test"):
            summary = evaluate(predictor, data, Plain(), split=split).summary
            assert summary["accuracy"] == accuracies[split]


def test_workdir_says_what_it_is_and_has_no_other_average(workdir, averaged):
    saved = json.loads((averaged[1] / "config.json").read_text())
    origin = {"workdir": str(workdir), "steps": [12, 18, 24], "weights": "raw"}
    assert saved["averaged_from"] == origin
    with pytest.raises(UserError, match="kept no average"):
        load_trained(averaged[1], weights="last_ema")


def test_command_prints_accuracies_and_place(capsys, workdir, tmp_path):
    out = tmp_path / "out"
    code, text, _ = run_command(
        capsys, "average", "--workdir", workdir, "--last", 2, "--out", out
    )
    before, after, place = text.splitlines()
    assert code == 0
    assert before.startswith("step 24         val ")
    assert after.startswith("mean of 2       val ")
    assert place == f"mean of steps 18, 24 in {out}"


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"steps": [12, 13]}, r"steps=\(12, 13\): must be kept, and .* 12, 18, 24"),
        ({"steps": [12, 12]}, r"steps=\(12, 12\): must be kept, and each once"),
        ({"last": 9}, r"last=9: must be 1 to \d; those kept are .*12, 18, 24"),
        ({"kind": "best"}, r"weights='best': choices: raw, ema"),
    ],
)
def test_mistakes_are_named(workdir, tmp_path, kwargs, message):
    with pytest.raises(UserError, match=message):
        average_checkpoints(workdir, tmp_path / "out", devices=ONE, **kwargs)
    assert not (tmp_path / "out").exists()


def test_folder_of_a_run_is_not_written_over(workdir):
    with pytest.raises(UserError, match="holds a run already; name another one"):
        average_checkpoints(workdir, workdir, devices=ONE)


def test_damaged_checkpoint_is_named(workdir, tmp_path):
    copy = shutil.copytree(workdir, tmp_path / "run")
    manifest = copy / "checkpoints" / "18" / "manifest.json"
    manifest.unlink()
    with pytest.raises(UserError, match=r"18 is damaged: manifest.json is missing"):
        average_checkpoints(copy, tmp_path / "out", devices=ONE)


@pytest.mark.parametrize(
    ("decay", "kind", "message"),
    [(0.0, "ema", "kept no average"), (0.9, "raw", "holds no checkpoint yet")],
)
def test_what_a_run_does_not_have_is_named(tmp_path, decay, kind, message):
    changed = config()
    changed.ema.decay = decay
    workdir = tmp_path / "run"
    workdir.mkdir()
    record = {**build(changed, devices=ONE).record, "versions": {"jaxattn": "0.2"}}
    (workdir / "config.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=message):
        average_checkpoints(workdir, tmp_path / "out", kind=kind, devices=ONE)
    assert not (tmp_path / "out").exists()
