"""One device, eight under jit and eight under pmap train the same."""

import itertools

import chex
import jax
import numpy as np
import pytest
import smoke
from tiers import slow_from

from jaxattn.errors import UserError
from jaxattn.training.evaluate import Evaluator
from jaxattn.training.run import build

# (data_parallel, devices, steps per dispatch)
WAYS = [("jit", 8, 1), ("pmap", 2, 3), ("pmap", 8, 1), ("jit", 1, 3)]


def run_of(data_parallel, devices, **overrides):
    config = smoke.get_config("steady")
    config.data_parallel = data_parallel
    config.update_from_flattened_dict(overrides)
    return build(config, devices=jax.devices()[:devices])


def three_steps(data_parallel, devices, per_dispatch, **overrides):
    """State and metrics after 3 steps, and an evaluation of them."""
    run = run_of(data_parallel, devices, **overrides)
    loader = run.loaders["train"]
    state = run.init_state()
    evaluator = Evaluator(run, lambda: False)
    dispatch = run.parallel.compile_train(run.train_step, loader.fetch)
    feeds, metrics = loader.train_feeds(run.order, 0, 3), []
    while chunk := list(itertools.islice(feeds, per_dispatch)):
        stacked = run.parallel.place_stacked(chunk)
        state, new = dispatch(state, evaluator.stores["train"], stacked)
        metrics.append(jax.device_get(new))
    summary = evaluator.evaluate(state.variables, "test")
    joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *metrics)
    return jax.device_get(run.parallel.collect(state)), joined, summary


@pytest.fixture(scope="module")
def one_device():
    return three_steps("jit", 1, 1)


@pytest.mark.parametrize(
    ("data_parallel", "devices", "per_dispatch"), slow_from(2, WAYS)
)
def test_every_way_trains_as_one_device(
    one_device, data_parallel, devices, per_dispatch
):
    state, metrics, summary = three_steps(data_parallel, devices, per_dispatch)
    expected_state, expected_metrics, expected_summary = one_device
    assert state.step == 3
    chex.assert_trees_all_close(
        state.variables, expected_state.variables, atol=1e-5, rtol=0
    )
    chex.assert_trees_all_close(
        state.ema_variables, expected_state.ema_variables, atol=1e-5, rtol=0
    )
    chex.assert_trees_all_close(metrics, expected_metrics, rtol=1e-3)
    assert summary["count"] == expected_summary["count"] == 45
    assert summary["loss"] == pytest.approx(expected_summary["loss"], abs=1e-4)


@pytest.mark.full
def test_streamed_batches_train_as_resident_ones(one_device):
    state, _, _ = three_steps("jit", 1, 1, **{"pipeline.loader": "streamed"})
    chex.assert_trees_all_equal(state, one_device[0])


def test_cpus_dispatch_one_step_without_kernels_for_loops():
    assert run_of("jit", 1).steps_per_dispatch == 1
    assert run_of("jit", 1, steps_per_dispatch=3).steps_per_dispatch == 3


def test_the_step_is_traced_once():
    run = run_of("jit", 1)
    loader = run.loaders["train"]
    evaluator = Evaluator(run, lambda: False)
    traced = chex.assert_max_traces(run.train_step, n=1)
    dispatch = run.parallel.compile_train(traced, loader.fetch)
    state = run.init_state()
    for feed in loader.train_feeds(run.order, 0, run.steps_per_epoch + 1):
        placed = run.parallel.place_stacked([feed])
        state, _ = dispatch(state, evaluator.stores["train"], placed)
    assert int(state.step) == run.steps_per_epoch + 1


@pytest.mark.full
def test_the_state_is_donated():
    run = run_of("jit", 1)
    dispatch = run.parallel.compile_train(run.train_step, run.loaders["train"].fetch)
    state = run.init_state()
    placed = run.parallel.place_stacked(
        [next(run.loaders["train"].train_feeds(run.order, 0, 1))]
    )
    dispatch(state, Evaluator(run, lambda: False).stores["train"], placed)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


def test_a_batch_must_divide_by_the_devices():
    with pytest.raises(UserError, match="batch_size=16: must be divisible by the 3"):
        run_of("jit", 3)
