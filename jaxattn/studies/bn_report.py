"""The report of the study of batch normalisation: numbers, text and figures.

Figures are the project's, with one colour for each network throughout (the project's
two bands have them swapped) and both networks' names.
"""

import dataclasses
import io
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxattn.atomic import write_atomically, write_json
from jaxattn.studies.bn_curves import Curves, Member, by_epoch, compare_widths
from jaxattn.training.records.report import versions
from jaxattn.training.records.writer import RunWriter
from jaxattn.training.run import Run
from jaxattn.viz.comparison import Band, Panel, plot_bands
from jaxattn.viz.figure import figure_to_array, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colour and opacity of the lines.
_STYLES = {"plain": ("#00F0F0", 0.6), "bn": ("#F00000", 0.9)}
_LINES = ("-", "--", ":", "-.")  # of the learning rates
# The project's margins of the loss band, 200 and 1000 steps of its 19,550.
_LEFT, _RIGHT = 200 / 19_550, 1000 / 19_550
# Of the figures in TensorBoard, as the project has them.
_FIGURE_TAGS = {
    "loss_range": "LossRange_Figure_comparison",
    "gradient_range": "GradRange_Figure_comparison",
}


def write_report(
    workdir: pathlib.Path,
    curves: Mapping[str, Curves],
    runs: Mapping[str, Run],
    factors: Sequence[float],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Writes `results.json`, `report.txt`, `curves.npz` and the figures.

    Args:
        workdir: Of the study.
        curves: What was recorded, by network.
        runs: A run of each network.
        factors: Points along a step, in units of it.
        say: Shows a line.

    Returns:
        The content of `results.json`.
    """
    run = runs["plain"]
    results = {
        "models": {network: c.model for network, c in curves.items()},
        "num_params": {network: r.cost.parameters for network, r in runs.items()},
        "data": run.data.name,
        "num_examples": {"train": len(run.data.train), "test": len(run.data.test)},
        "seed": run.options.seed,
        "epochs": run.options.num_epochs,
        "steps": run.total_steps,
        **measure(curves, factors),
        "device": f"{run.parallel.num_devices} x {jax.devices()[0].device_kind}",
        "versions": versions(),
    }
    write_json(workdir / "results.json", results)
    report = format_report(results)
    write_atomically(workdir / "report.txt", report)
    arrays: dict[str, Any] = {
        f"{network}_{key}": value
        for network, c in curves.items()
        for key, value in dataclasses.asdict(c).items()
        if isinstance(value, np.ndarray)
    }
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    write_atomically(workdir / "curves.npz", file.getvalue())
    figures = make_figures(curves, factors)
    for name, figure in figures.items():
        save_figure(figure, workdir / f"{name}.png")
    images = {_FIGURE_TAGS.get(k, k): figure_to_array(f) for k, f in figures.items()}
    loss = results["loss_band"]
    # Its records of an earlier report are dropped, for it starts at step 0.
    with RunWriter(workdir, start_step=0, tensorboard=run.log.tensorboard) as writer:
        widths = zip(loss["plain_by_epoch"], loss["bn_by_epoch"], strict=True)
        for epoch, (plain, bn) in enumerate(widths, 1):
            scalars = {"LossRange/plain": plain, "LossRange/bn": bn}
            writer.write_scalars(epoch * run.steps_per_epoch, scalars)
        writer.write_images(run.total_steps, images)
    say(f"{report}\nreport and figures in {workdir}")
    return results


# Numbers --------------------------------------------------------------------------


def measure(curves: Mapping[str, Curves], factors: Sequence[float]) -> dict[str, Any]:
    """Returns the figures of the study.

    Args:
        curves: What was recorded, by network.
        factors: Points along a step, in units of it.
    """
    plain, bn = curves["plain"], curves["bn"]
    E = plain.test_accuracy.shape[1]
    widths = [by_epoch(np.ptp(c.loss, axis=0), E) for c in (plain, bn)]
    ranges = [by_epoch(c.gradient_max - c.gradient_min, E) for c in (plain, bn)]
    measured = {
        "runs": {
            Member(network, c.model, rate).name: _run_figures(network, c, i)
            for network, c in curves.items()
            for i, rate in enumerate(c.rates.tolist())
        },
        "loss_band": compare_widths(*widths),
        "gradient_band": {
            f"{rate:g}": compare_widths(*(r[i] for r in ranges))
            for i, rate in enumerate(plain.rates)
        },
    }
    if len(plain.look_steps):
        measured["landscape"] = {
            network: _landscape_figures(c, factors) for network, c in curves.items()
        }
    return measured


def _run_figures(network: str, curves: Curves, i: int) -> dict[str, Any]:
    test = curves.test_accuracy[i]
    changes = np.diff(test)
    speed = curves.images_per_s[i]
    return {
        "network": network,
        "learning_rate": float(curves.rates[i]),
        "last_test_accuracy": float(test[-1]),
        "best_test_accuracy": float(test.max()),
        "best_epoch": int(test.argmax()) + 1,
        "last_train_accuracy": float(curves.train_accuracy[i, -1]),
        "last_train_loss": float(curves.train_loss[i, -1]),
        "largest_drop_of_test_accuracy": float(max(0.0, -changes.min(initial=0.0))),
        "std_of_test_accuracy_changes": float(changes.std()) if len(changes) else None,
        "images_per_s": None if np.isnan(speed) else round(float(speed), 1),
    }


def _landscape_figures(curves: Curves, factors: Sequence[float]) -> dict[str, Any]:
    """Means over all looks of every learning rate."""
    at_step = int(np.argmin(np.abs(np.asarray(factors) - 1)))  # the step itself
    by_rate = {
        "loss_range": np.ptp(curves.look_loss, axis=-1).mean(1),
        "gradient_change": curves.gradient_change[..., at_step].mean(1),
        "beta_smoothness": curves.smoothness(factors).mean(1),
    }
    finite = {key: np.nan_to_num(v, nan=np.inf) for key, v in by_rate.items()}
    return {
        key: {
            f"{rate:g}": float(value) if np.isfinite(value) else None
            for rate, value in zip(curves.rates, values, strict=True)
        }
        for key, values in finite.items()
    }


def format_report(results: Mapping[str, Any]) -> str:
    """Returns the text of `report.txt`."""
    names = results["models"]
    count = results["num_examples"]
    lines = [
        f"{names['plain']} and {names['bn']} on {results['data']}, {count['train']:,}"
        f" training and {count['test']:,} test images, {results['epochs']} epochs,"
        f" seed {results['seed']}",
        "",
        f"{'run':24}{'test, last':>12}{'best (epoch)':>18}{'train, last':>13}"
        f"{'train loss':>12}",
    ]
    for name, run in results["runs"].items():
        best = f"{run['best_test_accuracy']:.4f} ({run['best_epoch']})"
        lines.append(
            f"{name:24}{run['last_test_accuracy']:12.4f}{best:>18}"
            f"{run['last_train_accuracy']:13.4f}{run['last_train_loss']:12.4f}"
        )
    lines += ["", "Width of the band of losses over the learning rates:"]
    lines.append(_describe(results["loss_band"], results["epochs"]))
    lines += ["", "Range of the last layer's gradient, by learning rate:"]
    for rate, band in results["gradient_band"].items():
        lines.append(f"{rate:>8}  {_describe(band, results['epochs'])}")
    if landscape := results.get("landscape"):
        lines += ["", "Along a step, means (plain / with batch normalisation):"]
        lines.append(
            f"{'rate':>8}{'range of losses':>24}{'change of gradient':>24}"
            f"{'beta-smoothness':>24}"
        )
        for rate in results["gradient_band"]:
            cells = [
                f"{_number(landscape['plain'][key][rate])} /"
                f" {_number(landscape['bn'][key][rate])}"
                for key in ("loss_range", "gradient_change", "beta_smoothness")
            ]
            lines.append(f"{rate:>8}" + "".join(f"{cell:>24}" for cell in cells))
    return "\n".join(lines) + "\n"


def _describe(band: Mapping[str, Any], epochs: int) -> str:
    since = band["bn_narrower_since_epoch"]
    end = "not at the end" if since is None else f"for good since epoch {since}"
    return (
        f"plain {band['plain_mean']:.4g}, with batch normalisation"
        f" {band['bn_mean']:.4g}; narrower with it in {band['bn_narrower_epochs']} of"
        f" {epochs} epochs, {end}"
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


# Figures --------------------------------------------------------------------------


def make_figures(
    curves: Mapping[str, Curves], factors: Sequence[float]
) -> dict[str, "Figure"]:
    """Returns the figures by the names of their files.

    Args:
        curves: What was recorded, by network.
        factors: Points along a step, in units of it.
    """
    figures = {
        "loss_range": _loss_range(curves),
        "gradient_range": _gradient_range(curves),
        "accuracy": _accuracy(curves),
    }
    if len(curves["plain"].look_steps):
        figures["landscape"] = _landscape(curves, factors)
    return figures


def _band(network: str, label: str, x: Any, low: Any, high: Any) -> Band:
    colour, alpha = _STYLES[network]
    return Band(label, x, low, high, colour, alpha)


def _loss_range(curves: Mapping[str, Curves]) -> "Figure":
    T = curves["plain"].loss.shape[1]
    bands = [
        _band(n, c.model, np.arange(1, T + 1), c.loss.min(0), c.loss.max(0))
        for n, c in curves.items()
    ]
    title = "Step-wise Loss Range Comparison (Different Learning Rates)"
    limits = (-_LEFT * T, (1 + _RIGHT) * T)
    panel = Panel(title, bands, "Step", "Loss Value", limits)
    return plot_bands([[panel]], width=10, height=5)


def _gradient_range(curves: Mapping[str, Curves]) -> "Figure":
    """Of the last learning rate."""
    bands = []
    for network, c in curves.items():
        E = c.test_accuracy.shape[1]
        low, high = (by_epoch(v[-1], E) for v in (c.gradient_min, c.gradient_max))
        bands.append(_band(network, c.model, np.arange(1, E + 1), low, high))
    names = " and ".join(c.model for c in curves.values())
    title = f"Gradient Range of the Last Layer, {names}, learning rate"
    title = f"{title} {curves['plain'].rates[-1]:g}"
    panel = Panel(title, bands, "Epoch", "Gradient (mean of the epoch)")
    return plot_bands([[panel]], width=8, height=4)


def _accuracy(curves: Mapping[str, Curves]) -> "Figure":
    """Training loss and test accuracy of every run."""

    def bands(values: Callable[[Curves], np.ndarray]) -> list[Band]:
        made = []
        for network, c in curves.items():
            for i, (rate, y) in enumerate(zip(c.rates, values(c), strict=True)):
                x = np.arange(1, len(y) + 1)
                band = _band(network, f"{c.model}, rate {rate:g}", x, y, y)
                line = _LINES[i % len(_LINES)]
                made.append(dataclasses.replace(band, line=line, alpha=0.9))
        return made

    loss = bands(lambda c: c.train_loss)
    accuracy = bands(lambda c: 100 * c.test_accuracy)
    row = [
        Panel("Training loss", loss, "Epoch", "mean of the epoch's batches"),
        Panel("Test accuracy", accuracy, "Epoch", "%"),
    ]
    return plot_bands([row], width=10, height=4)


def _landscape(curves: Mapping[str, Curves], factors: Sequence[float]) -> "Figure":
    """Loss, gradient and smoothness along the steps, a row for each learning rate."""
    quantities = (
        ("loss along the step", lambda c: c.look_loss, False),
        ("change of the gradient", lambda c: c.gradient_change, True),
        ("beta-smoothness", lambda c: c.smoothness(factors)[..., None], True),
    )
    rows = []
    for i, rate in enumerate(curves["plain"].rates):
        row = []
        for quantity, values, is_log in quantities:
            bands = []
            for network, c in curves.items():
                y = values(c)[i]
                low, high = y.min(-1), y.max(-1)
                low = high if y.shape[-1] == 1 else low
                bands.append(_band(network, c.model, c.look_steps, low, high))
            title = f"{quantity}, rate {rate:g}"
            row.append(Panel(title, bands, "Step", "", log=is_log))
        rows.append(row)
    return plot_bands(rows, width=11, height=2.6 * len(rows))
