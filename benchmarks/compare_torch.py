"""Our train step against PyTorch's, on the same work.

    python benchmarks/compare_torch.py --out benchmarks/results/torch_cpu.json
    python benchmarks/compare_torch.py --device gpu --models canet sccnet34

Each row trains one network: ours, and `pytorch/`'s eager (on a CPU), in
channels_last and compiled, in turn (`timing.py`). On a CPU both compute in float32 and
in bfloat16, on a GPU in bfloat16 alone, PyTorch by autocast. The ratio is our fastest
over PyTorch's fastest, in whichever dtype each is. Needs `pip install -e '.[torch]'`.
"""
# pyright: reportMissingImports=false

import argparse
import dataclasses
import functools
import json
import math
import pathlib
import sys
from collections.abc import Container, Sequence
from typing import Any

import jax
import jax.numpy as jnp

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from benchmarks import timing
from benchmarks.steps import Work, make_jax_side, make_run, make_torch_side
from jaxattn.ops.conv import conv2d

_BFLOAT16 = "+bfloat16"  # of a side's name
_CIFAR = {"stem": "cifar"}
_ROWS = {
    "cpu": (
        Work("canet_tiny", 32, 128),
        Work("canet", 32, 64),
        Work("enhanced_efficient_resnet", 32, 64),
        Work("resnet18", 32, 64, model_kwargs=_CIFAR),
        Work("sccnet18", 64, 32),
        Work("resnet50_scsa", 224, 16, 1000),
    ),
    "gpu": (
        Work("canet_tiny", 32, 256),
        Work("canet", 32, 256),
        Work("enhanced_efficient_resnet", 32, 128),
        Work("resnet18", 32, 128, model_kwargs=_CIFAR),
        Work("sccnet18", 64, 128),
        Work("sccnet34", 224, 128, 1000),
        Work("resnet50_scsa", 224, 128, 1000),
        Work("resnet50", 224, 128, 1000),
    ),
}
# In the work's dtype or, with "+bfloat16", in that one, as is one of ours then.
_VARIANTS = {
    "cpu": (
        "eager",
        "channels_last",
        "channels_last+compile",
        "channels_last+bfloat16",
        "channels_last+compile+bfloat16",
    ),
    "gpu": ("channels_last", "channels_last+compile"),
}


def main() -> None:
    """Prints a table, and writes the JSON after every row.

    Other rows of a JSON that is there already stay, if its environment is this one.
    """
    args = _parse()
    every = rows(args.device)
    works = [work for work in every if not args.models or work.model in args.models]
    order = [work.model for work in every]
    others = set(order) - {work.model for work in works}
    environment = timing.environment(args.device)
    kept = _kept(args.out, others, environment)
    limits = measure_limits(args.device)
    results = {"environment": environment, "rows": kept}
    for work in works:
        row = compare(work, limits, blocks=args.blocks, seconds=args.seconds)
        results["rows"].append(row)
        results["rows"].sort(key=lambda row: order.index(row["work"]["model"]))
        print(json.dumps(row["timings"]), flush=True)
        if args.out:
            args.out.write_text(json.dumps(results, indent=1) + "\n")
    print(format_table(results))


def _kept(
    path: pathlib.Path | None, models: Container[str], environment: dict[str, Any]
) -> list[dict[str, Any]]:
    """Returns an earlier call's rows of these models.

    Raises:
        SystemExit: They are of another environment.
    """
    if path is None or not path.exists():
        return []
    earlier = json.loads(path.read_text())
    kept = [row for row in earlier["rows"] if row["work"]["model"] in models]
    if kept and earlier["environment"] != environment:
        raise SystemExit(
            f"--out {path}: its other rows were measured in {earlier['environment']},"
            f" not in {environment}; measure all, or name another file"
        )
    return kept


def rows(device: str) -> list[Work]:
    """Returns the work of every row of the table, in the dtype of the device."""
    dtype = "bfloat16" if device == "gpu" else "float32"
    return [
        dataclasses.replace(work, device=device, dtype=dtype) for work in _ROWS[device]
    ]


def compare(
    work: Work,
    limits: dict[str, float],
    *,
    blocks: int,
    seconds: float,
    variants: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Returns the timings of one row and what follows from them.

    Args:
        work: What is trained.
        limits: Of the machine, by `measure_limits`.
        blocks: Of every side.
        seconds: Of a block.
        variants: Of PyTorch; the device's by default.
    """
    variants = _VARIANTS[work.device] if variants is None else variants
    sides: dict[str, Any] = {"jaxattn": functools.partial(make_jax_side, work)}
    for name in variants:
        done, variant = _in_dtype(work, name), name.removesuffix(_BFLOAT16)
        if variant != name:
            sides["jaxattn" + _BFLOAT16] = functools.partial(make_jax_side, done)
        sides[name] = functools.partial(make_torch_side, done, variant)
    timings = timing.time_in_turn(sides, blocks=blocks, seconds=seconds)
    own, peer = timing.fastest_sides(timings)
    own = own or "jaxattn"
    speed, done = timing.median(timings[own]), _in_dtype(work, own)
    macs, traffic = _work_per_image(done)
    flops = limits["flops" if done == work else "flops_bfloat16"]
    return {
        "work": dataclasses.asdict(work),
        "timings": timings,
        "fastest_peer": peer,
        "ratio": speed / timing.median(timings[peer]) if peer else math.nan,
        # A training step is three forward passes, of two operations a MAC.
        "share_of_flops": speed * macs * 6 / flops,
        "share_of_bandwidth": speed * traffic / limits["bytes_per_s"],
        "limits": limits,
    }


def _in_dtype(work: Work, side: str) -> Work:
    """Returns the work of a side, by its name."""
    is_half = side.endswith(_BFLOAT16)
    return dataclasses.replace(work, dtype="bfloat16") if is_half else work


def _work_per_image(work: Work) -> tuple[int, float]:
    """Returns MACs of an image's forward pass, and bytes its step moves (by XLA)."""
    run = make_run(work, steps_per_dispatch=1)
    parallel, loader = run.parallel, run.loaders["train"]
    dispatch: Any = parallel.compile_train(run.train_step, loader.fetch)
    feed = parallel.place_stacked([next(loader.train_feeds(run.order, 0, 1))])
    store = parallel.replicate(loader.store)
    compiled = dispatch.lower(run.init_state(), store, feed).compile()
    return run.cost.macs, compiled.cost_analysis()["bytes accessed"] / work.batch_size


def measure_limits(device: str) -> dict[str, float]:
    """Returns what the machine reaches: FLOP/s of a product, bytes/s of a copy.

    The product is in the dtype of the rows; on a CPU another is in bfloat16.
    """
    names = ("flops", "bytes_per_s") + ("flops_bfloat16",) * (device == "cpu")
    sides = {name: functools.partial(_make_limit, name, device) for name in names}
    timings = timing.time_in_turn(sides, blocks=3, seconds=1.0)
    return {name: max(t["items_per_s"]) for name, t in timings.items()}


def _make_limit(name: str, device: str) -> timing.Side:
    """Returns many products, or many negations in place, of a matrix in one call."""
    n, repeats = (8192, 50) if device == "gpu" else (2048, 5)
    is_half = device == "gpu" or name == "flops_bfloat16"
    a, b = (jnp.eye(n, dtype=jnp.bfloat16 if is_half else jnp.float32) for _ in "ab")

    def product(a: jax.Array, b: jax.Array) -> jax.Array:
        if name == "flops":
            return a @ b
        # As networks compute it on a CPU, of maps: of single positions it is slower.
        return conv2d(a.reshape(-1, 32, 32, n), b[None, None]).reshape(n, n)

    @jax.jit
    def repeat(a: jax.Array, b: jax.Array) -> jax.Array:
        def once(_: int, b: jax.Array) -> jax.Array:
            return -b if name == "bytes_per_s" else product(a, b)

        return jax.lax.fori_loop(0, repeats, once, b)

    def call() -> None:
        repeat(a, b).block_until_ready()

    items = 2 * a.nbytes if name == "bytes_per_s" else 2 * n**3
    return timing.Side(call, repeats * items)


def format_table(results: dict[str, Any]) -> str:
    """Returns the rows as a Markdown table, images per second."""
    lines = [
        "| network | pixels, batch | jaxattn, its fastest | PyTorch, its fastest"
        " | ratio | in float32 | compiled in | memory | of a matmul's FLOP/s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join(lines + [_format_row(row) for row in results["rows"]])


def _format_row(row: dict[str, Any]) -> str:
    work, timings = row["work"], row["timings"]
    own, peer = timing.fastest_sides(timings)
    sides = [timings.get(name, {"error": "none ran"}) for name in (own, peer)]
    suffix = " bfloat16" if own and own.endswith(_BFLOAT16) else ""
    peer = peer and peer.replace(_BFLOAT16, " bfloat16")
    speeds = [f"{timing.median(t):,.3g} ({timing.spread(t)})" for t in sides]
    first = " / ".join(f"{t.get('first_call_s', math.nan):.0f} s" for t in sides)
    memory = " / ".join(f"{t.get('peak_bytes', 0) / 1e9:.1f} GB" for t in sides)
    return (
        f"| `{work['model']}` | {work['image_size']}, {work['batch_size']} |"
        f" {speeds[0]}{suffix} | {speeds[1]} {peer} | **{row['ratio']:.2f}** |"
        f" {_ratio_in_float32(row)} | {first} | {memory} |"
        f" {row['share_of_flops']:.0%} |"
    )


def _ratio_in_float32(row: dict[str, Any]) -> str:
    """Returns the ratio of the fastest sides in float32; nothing where none is."""
    timings = {n: t for n, t in row["timings"].items() if not n.endswith(_BFLOAT16)}
    own, peer = timing.fastest_sides(timings)
    if row["work"]["dtype"] != "float32" or own is None or peer is None:
        return ""
    return f"{timing.median(timings[own]) / timing.median(timings[peer]):.2f}"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    timing.add_arguments(parser, seconds=3.0)
    parser.add_argument("--models", nargs="*", help="rows; all by default")
    return parser.parse_args()


if __name__ == "__main__":
    main()
