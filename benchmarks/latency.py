"""Prediction: ours against onnxruntime, OpenVINO and PyTorch, on the same network.

    python benchmarks/latency.py --out benchmarks/results/latency_cpu.json
    python benchmarks/latency.py --models canet_tiny --batch_sizes 1

A call is from normalised float32 images on the host to logits on the host. Each row
times ours in float32 and bfloat16, PyTorch eager and compiled in both, onnxruntime, and
OpenVINO in both, in turn (`timing.py`). The peers get the network from `pytorch/`, as
ONNX or by OpenVINO's own converter. Any that is not installed is left out:
`pip install -e '.[torch]'`, `'.[onnxruntime]'`, `'.[openvino]'`.
"""
# pyright: reportMissingImports=false

import argparse
import dataclasses
import functools
import importlib.util
import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from benchmarks import timing
from benchmarks.steps import Work
from jaxattn.studies.compare import markdown_table

_NETWORKS = (
    Work("canet_tiny", 32, 1),
    Work("resnet18", 32, 1, model_kwargs={"stem": "cifar"}),
    Work("sccnet18", 64, 1),
)
_BATCH_SIZES = (1, 16, 256)
_OURS = "jaxattn"
# By side: what has to be installed.
_SIDES = {
    f"{_OURS} float32": (),
    f"{_OURS} bfloat16": (),
    "PyTorch float32": ("torch",),
    "PyTorch float32 compiled": ("torch",),
    "PyTorch bfloat16": ("torch",),
    "PyTorch bfloat16 compiled": ("torch",),
    "onnxruntime float32": ("torch", "onnx", "onnxscript", "onnxruntime"),
    "OpenVINO float32": ("torch", "openvino"),
    "OpenVINO bfloat16": ("torch", "openvino"),
}
_COLUMNS = ("jaxattn", "PyTorch", "onnxruntime", "OpenVINO")


def main() -> None:
    """Prints a table, and writes the JSON after every row."""
    args = _parse()
    sides = _installed()
    results = {"environment": timing.environment("cpu"), "rows": []}
    for network in _NETWORKS:
        if args.models and network.model not in args.models:
            continue
        for batch_size in args.batch_sizes:
            work = dataclasses.replace(network, batch_size=batch_size)
            made = {name: functools.partial(make_side, work, name) for name in sides}
            timings = timing.time_in_turn(
                made, blocks=args.blocks, seconds=args.seconds
            )
            row = {"work": dataclasses.asdict(work), "timings": timings}
            results["rows"].append(row)
            print(json.dumps(row), flush=True)
            if args.out:
                args.out.write_text(json.dumps(results, indent=1) + "\n")
    print(format_table(results))


def _installed() -> list[str]:
    """Returns the sides that can be timed here, and says which cannot."""
    sides = []
    for side, packages in _SIDES.items():
        lacking = [name for name in packages if importlib.util.find_spec(name) is None]
        if lacking:
            print(f"{side} is left out: {', '.join(lacking)} not installed", flush=True)
        else:
            sides.append(side)
    return sides


# Sides -----------------------------------------------------------------------------


def make_side(work: Work, name: str) -> timing.Side:
    """Returns a call of a network, by the name of a side."""
    library, dtype, *options = name.split()
    images = np.random.default_rng(0).standard_normal(
        (work.batch_size, work.image_size, work.image_size, 3), np.float32
    )
    make = {
        _OURS: _make_ours,
        "PyTorch": functools.partial(_make_torch, is_compiled=bool(options)),
        "onnxruntime": _make_onnxruntime,
        "OpenVINO": _make_openvino,
    }[library]
    call = make(work, dtype, images)
    return timing.Side(lambda: call(images), work.batch_size)


def _make_ours(
    work: Work, dtype: str, images: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    import jax

    from jaxattn import create_model
    from jaxattn.config.bind import DTYPES
    from jaxattn.inference.freezing import compile_network

    kwargs = {"dtype": DTYPES[dtype], **work.model_kwargs}
    model = create_model(work.model, work.num_classes, **kwargs)
    init = jax.jit(functools.partial(model.init, train=False))
    variables = jax.device_get(init(jax.random.key(0), images[:1]))
    answer = compile_network(functools.partial(model.apply, train=False), variables)
    return lambda images: jax.device_get(answer(images))


def _torch_network(work: Work) -> Any:
    import torch

    from benchmarks.pytorch.registry import create_torch_model

    torch.manual_seed(0)
    network: Any = create_torch_model(work.model, work.num_classes, **work.model_kwargs)
    return network.eval()


def _as_nchw(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def _make_torch(
    work: Work, dtype: str, images: np.ndarray, *, is_compiled: bool
) -> Callable[[np.ndarray], np.ndarray]:
    import torch

    del images
    network = _torch_network(work).to(memory_format=torch.channels_last)
    if is_compiled:
        import torch._inductor.config as inductor

        inductor.freezing = True  # folds batch normalisation, packs the kernels
        network = torch.compile(network)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16")

    def call(images: np.ndarray) -> np.ndarray:
        # A view in channels_last.
        x = torch.from_numpy(images).permute(0, 3, 1, 2)
        with torch.no_grad(), autocast:
            return network(x).float().numpy()

    return call


def _make_onnxruntime(
    work: Work, dtype: str, images: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    import onnxruntime
    import torch

    del dtype  # it has no faster one on CPUs
    x, network = torch.from_numpy(_as_nchw(images)), _torch_network(work)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder:
        path = str(pathlib.Path(folder, "network.onnx"))
        torch.onnx.export(network, (x,), path, dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
    (given,) = session.get_inputs()

    def call(images: np.ndarray) -> np.ndarray:
        return session.run(None, {given.name: images})[0]

    # In its own layout, which a user would keep images in.
    return _checked(call, network, x)


def _make_openvino(
    work: Work, dtype: str, images: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    import openvino
    import torch

    x, network = torch.from_numpy(_as_nchw(images)), _torch_network(work)
    converted = openvino.convert_model(network, example_input=x, input=[tuple(x.shape)])
    kind = "bf16" if dtype == "bfloat16" else "f32"
    config = {"INFERENCE_PRECISION_HINT": kind, "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.compile_model(converted, "CPU", config)

    def call(images: np.ndarray) -> np.ndarray:
        return compiled(images)[0]

    return _checked(call, network, x)


def _checked(
    call: Callable[[np.ndarray], np.ndarray], network: Any, x: Any
) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a call that answers as PyTorch does, given images in its own layout.

    Most logits do, at least: SCC jumps where two kernel sizes are equal but for
    rounding.

    Raises:
        ValueError: If it answers something else.
    """
    import torch

    with torch.no_grad():
        expected = network(x).numpy()
    error = np.median(np.abs(call(x.numpy()) - expected)) / np.abs(expected).max()
    if not error < 0.03:
        raise ValueError(f"its answers differ from PyTorch's, median {error:.2g}")
    own = x.numpy()
    return lambda _: call(own)


# The table -------------------------------------------------------------------------


def format_table(results: Mapping[str, Any]) -> str:
    """Returns the rows as a Markdown table, milliseconds of a call.

    A library's cell is its fastest way in either dtype. The ratios are the time of the
    fastest other library over ours, in float32 and in whichever dtype is fastest.
    """
    header = ("network", "pixels, batch", *_COLUMNS, "ratio, float32", "ratio")
    return markdown_table(header, [_cells(row) for row in results["rows"]])


def _cells(row: Mapping[str, Any]) -> list[str]:
    work, timings = row["work"], row["timings"]

    def fastest(library: str, dtype: str = "") -> str | None:
        start = f"{library} {dtype}".strip()
        ran = {n: t for n, t in timings.items() if n.startswith(start)}
        return timing.fastest(ran)

    def milliseconds(side: str) -> float:
        return 1e3 * work["batch_size"] / timing.median(timings[side])

    def cell(library: str) -> str:
        lines = []
        for dtype in ("float32", "bfloat16"):
            if side := fastest(library, dtype):
                rates = [work["batch_size"] / r for r in timings[side]["items_per_s"]]
                low, high = (1e3 * f(rates) for f in (min, max))
                name = "f32" if dtype == "float32" else "bf16"
                lines.append(
                    f"{name} {milliseconds(side):.3g} ({low:.3g} to {high:.3g})"
                )
        return ", ".join(lines) or "did not run"

    def ratio(dtype: str) -> str:
        ours, others = fastest(_OURS, dtype), [fastest(c, dtype) for c in _COLUMNS[1:]]
        times = [milliseconds(side) for side in others if side]
        return f"{min(times) / milliseconds(ours):.2f}" if ours and times else ""

    size = f"{work['image_size']}, {work['batch_size']}"
    cells = [cell(library) for library in _COLUMNS]
    return [f"`{work['model']}`", size, *cells, ratio("float32"), f"**{ratio('')}**"]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--models", nargs="*", help="networks; all by default")
    add("--batch_sizes", type=int, nargs="+", default=_BATCH_SIZES, help="1 16 256")
    add("--blocks", type=int, default=5, help="of every side")
    add("--seconds", type=float, default=1.0, help="of a block")
    add("--out", type=pathlib.Path, help="JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
