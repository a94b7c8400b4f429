"""Images per second of our train step against what decides its size.

    python benchmarks/scaling.py --out scaling.json --figure scaling.png
    python benchmarks/scaling.py --device gpu --series batch_size width

Four series start from CANet_tiny at 32 pixels and vary one thing: images of a batch,
pixels of an image's side, channels of the first block, and devices that share a batch.
The points of a series are timed in turn (`timing.py`). The machine is busy from where
GFLOP/s stay level; a train step counts as three forward passes, of two operations a
multiply-accumulate. Devices of a CPU are virtual and share its cores, so that their
series shows what sharing a batch costs, and no speed-up.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from benchmarks import timing
from benchmarks.steps import Work, make_jax_side, make_run, side_of_run
from jaxattn import create_model
from jaxattn.models.cost import measure_cost
from jaxattn.training.devices.mesh import MeshParallel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BASE = {
    "cpu": Work("canet_tiny", 32, 128),
    "gpu": Work("canet_tiny", 32, 256, dtype="bfloat16", device="gpu"),
}
WIDTHS = {16: "canet_tiny", 32: "canet_light", 64: "canet", 128: "canet_pro"}
VALUES = {
    "cpu": {
        "batch_size": (8, 16, 32, 64, 128, 256),
        "image_size": (16, 24, 32, 48, 64),
        "width": tuple(WIDTHS),
        "devices": (1, 2, 4, 8),
    },
    "gpu": {
        "batch_size": (32, 64, 128, 256, 512, 1024, 2048, 4096),
        "image_size": (16, 32, 64, 128, 256),
        "width": tuple(WIDTHS),
        "devices": (1, 2, 4, 8),
    },
}
_LABELS = {
    "batch_size": "images of a batch",
    "image_size": "side of the image, pixels",
    "width": "channels of the first block",
    "devices": "devices",
}


def main() -> None:
    """Prints a table and writes JSON and figure, after every series."""
    args = _parse()
    base, values = BASE[args.device], VALUES[args.device]
    results: dict[str, Any] = {
        "environment": timing.environment(args.device),
        "base": dataclasses.asdict(base),
        "series": {},
    }
    for name in args.series or values:
        results["series"][name] = measure(
            name, base, values[name], blocks=args.blocks, seconds=args.seconds
        )
        if args.out:
            args.out.write_text(json.dumps(results, indent=1) + "\n")
        if args.figure:
            from jaxattn.viz.figure import save_figure

            save_figure(plot(results["series"]), args.figure)
    print(format_table(results["series"]))


def measure(
    series: str, base: Work, values: Sequence[int], *, blocks: int, seconds: float
) -> list[dict[str, Any]]:
    """Returns the points of a series.

    Args:
        series: "batch_size", "image_size", "width" or "devices".
        base: What every point has in common.
        values: Of what the series varies.
        blocks: Of every point.
        seconds: Of a block.

    Returns:
        By point `value`, `macs` of an image's forward pass, and its timing.
    """
    sides: dict[str, Callable[[], timing.Side]] = {}
    for value in values:
        if series == "devices":
            make = functools.partial(_make_shared_side, base, value, max(values))
        else:
            make = functools.partial(make_jax_side, at(series, base, value))
        sides[str(value)] = make
    timings = timing.time_in_turn(sides, blocks=blocks, seconds=seconds)
    return [
        {
            "value": value,
            "macs": _macs(at(series, base, value)),
            **timings[str(value)],
        }
        for value in values
    ]


def at(series: str, base: Work, value: int) -> Work:
    """Returns the work of a point of a series; that of all is the same for devices."""
    if series == "devices":
        return base
    if series == "width":
        return dataclasses.replace(base, model=WIDTHS[value])
    return dataclasses.replace(base, **{series: value})


def _macs(work: Work) -> int:
    model = create_model(work.model, work.num_classes, **work.model_kwargs)
    return measure_cost(model, (work.image_size, work.image_size, 3)).macs


def _make_shared_side(work: Work, count: int, most: int) -> timing.Side:
    """Returns the train step of a batch that `count` of `most` devices share."""
    if work.device == "cpu":
        # As many for every point: convolutions on a single device may be others.
        jax.config.update("jax_num_cpu_devices", most)
    devices = jax.devices(work.device)
    if len(devices) < count:
        raise ValueError(f"{count} devices: there are {len(devices)}")
    parallel = MeshParallel(devices[:count])
    run = dataclasses.replace(make_run(work), parallel=parallel)
    return side_of_run(run, work.device)


# What is made of it ----------------------------------------------------------------


def gflops(point: Mapping[str, Any]) -> float:
    """Returns the GFLOP/s of a point's median block; NaN if it failed."""
    return 6 * point["macs"] * timing.median(point) / 1e9


def format_table(series: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Returns all points as a Markdown table."""
    lines = ["| series | value | images/s | GFLOP/s |", "|---|---|---|---|"]
    for name, points in series.items():
        for point in points:
            speed = f"{timing.median(point):,.0f} ({timing.spread(point)})"
            lines.append(
                f"| {name} | {point['value']} | {speed} | {gflops(point):,.4g} |"
            )
    return "\n".join(lines)


def plot(series: Mapping[str, Sequence[Mapping[str, Any]]]) -> "Figure":
    """Draws images/s and GFLOP/s of all series, on logarithmic axes.

    Args:
        series: Points by series, of `measure`; those that failed are left out.
    """
    from jaxattn.viz.figure import new_figure

    figure = new_figure(3.2 * len(series), 5.2)
    grid = figure.subplots(2, len(series), sharex="col", sharey="row", squeeze=False)
    for column, (name, points) in enumerate(series.items()):
        points = [point for point in points if "error" not in point]
        values = [point["value"] for point in points]
        speeds, rates = grid[:, column]
        _draw(speeds, values, [timing.median(point) for point in points], "#4477aa")
        _draw(rates, values, [gflops(point) for point in points], "#cc5544")
        rates.set_xlabel(_LABELS[name])
    grid[0, 0].set_ylabel("images/s")
    grid[1, 0].set_ylabel("GFLOP/s")
    return figure


def _draw(
    axes: "Axes", values: Sequence[int], heights: Sequence[float], color: str
) -> None:
    from matplotlib.ticker import LogLocator

    axes.loglog(values, heights, "o-", color=color, linewidth=1.5, markersize=3.5)
    axes.set_xticks(values, [str(value) for value in values])
    axes.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(2))
    axes.yaxis.set_major_formatter(lambda height, _: f"{height:,.4g}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    timing.add_arguments(parser, seconds=2.0)
    parser.add_argument(
        "--series", nargs="*", choices=list(_LABELS), help="all by default"
    )
    parser.add_argument("--figure", type=pathlib.Path, help="PNG; needs matplotlib")
    return parser.parse_args()


if __name__ == "__main__":
    main()
