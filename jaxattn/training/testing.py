"""The test of a run that is over: of its last weights, and of those that are best."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxattn.tasks.task import Summary, Tested
from jaxattn.training.checkpoints.checkpoint import Checkpoints
from jaxattn.training.checkpoints.trained import best_metric
from jaxattn.training.run import Run
from jaxattn.training.state import TrainState


class Chosen(NamedTuple):
    """What the tests came to.

    Attributes:
        tested: Their summaries.
        params: Of the weights "best", on the host.
        step: Theirs; None without a validation split.
    """

    tested: Tested
    params: Any
    step: int | None


def try_weights(
    run: Run,
    checkpoints: Checkpoints,
    state: TrainState,
    step: int,
    test: Callable[[Any, int, str], Summary],
) -> Chosen:
    """Tests the last weights of a run, and the best ones of its checkpoints.

    Args:
        run: The run.
        checkpoints: Of the run.
        state: The last one.
        step: Its step.
        test: Tests variables, of a step and for a person of a name.
    """
    best_steps = {}
    tested = {"last": test(weights_of(state)[""], step, "last")}
    best_params = state.params
    for suffix, variables in weights_of(state).items():
        metric = best_metric(run.task, "ema" if suffix else "raw")
        best = checkpoints.restore_best(run.abstract_state, metric)
        if best is None:  # without a validation split the last weights are it
            summary = tested["last"]
            if suffix:
                summary = test(variables, step, "averaged")
        else:
            variables = weights_of(run.parallel.replicate(best[0]))[suffix]
            summary = test(variables, step, "best averaged" if suffix else "best")
            best_steps[suffix] = best[1]
            best_params = best_params if suffix else variables["params"]
        tested[f"best{suffix}"] = summary
    best_step = best_steps.get("")
    saved = {} if best_step is None else checkpoints.metrics(best_step)
    figure = saved.get(best_metric(run.task, "raw"))
    return Chosen(Tested(tested, figure), run.parallel.collect(best_params), best_step)


def weights_of(state: TrainState) -> dict[str, Any]:
    """Returns variables to evaluate by the suffix of their metrics: raw, and EMA."""
    averaged = state.ema_variables
    return {"": state.variables} | ({"_ema": averaged} if averaged else {})
