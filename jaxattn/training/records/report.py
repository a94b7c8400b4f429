"""What a run leaves in its workdir at its start and at its end."""

import json
import pathlib
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

import jaxattn
from jaxattn import host
from jaxattn.atomic import write_atomically, write_json
from jaxattn.config.changes import flatten, is_harmless
from jaxattn.data.augment import Mix, mix
from jaxattn.models.cost import summarize_model
from jaxattn.ops import cpu_kernels
from jaxattn.tasks.task import Summary
from jaxattn.text import in_words
from jaxattn.training.records import figures
from jaxattn.training.records.writer import RESULTS, RunWriter, read_metrics
from jaxattn.training.resume import ByStep, convolutions_by_step
from jaxattn.training.run import Run
from jaxattn.training.state import TrainState, stream
from jaxattn.training.testing import Chosen

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
_NUM_EXAMPLES = 32
# What a table of runs shows first, and what it calls some keys of the config.
_MAIN = ("model", "data", "learning_rate", "batch_size", "num_epochs")
_SHORT = {
    "model.name": "model",
    "data.name": "data",
    "schedule.learning_rate": "learning_rate",
    "optimizer.name": "optimizer",
}
# Names of submodules that hold attention, for the histograms' tags.
_ATTENTION = {
    *("sa", "se", "unit_transform", "SAlayer", "SELayer"),  # CANet
    # CBAM's residual blocks; and `attn`, whatever a ResNet or MobileNetV2 has there.
    *("channel_attention", "spatial_attention", "attention", "attn"),
}
_SCC_AFFINE = ("alpha", "beta")  # parameters that only SCC has


def write_description(run: Run, writer: RunWriter, key: np.ndarray) -> None:
    """Shows what is known before the first step: config, network, augmented inputs.

    Args:
        run: The run.
        writer: Its writer.
        key: Data of the run's root PRNG key.
    """
    text = json.dumps(run.config, indent=2, default=str)
    summary = (
        f"{run.cost.parameters:,} parameters, {run.cost.macs:,} MACs an image\n"
        f"{summarize_model(run.model, run.data.image_shape)}"
    )
    writer.write_texts(0, {"config": _as_code(text), "model": _as_code(summary)})
    hparams = _hyperparameters(run)
    writer.write_hparams(hparams, main=_MAIN, metrics=_metrics(run))
    shows = run.log.images and writer.shows_images
    if shows and (plots := figures.load_plots()):
        images, titles = augmented_examples(run, key)
        figure = plots.plot_images(images, titles)
        writer.write_images(0, {"view/augmented_inputs": plots.figure_to_array(figure)})


def _hyperparameters(run: Run) -> dict[str, Any]:
    """Returns what decides a run's weights, by names that a person knows."""
    kept = {k: v for k, v in flatten(run.config).items() if not is_harmless(k)}
    kept = {_SHORT.get(key, key): value for key, value in kept.items()}
    return {**kept, "model": name_of_model(run), "data": run.data.name}


def _metrics(run: Run) -> dict[str, str]:
    """Returns the names of what a table of runs compares, by their tags."""
    metric = run.task.metric
    names = [f"test_{metric}", f"best_val_{metric}", f"test_{metric}_ema"]
    names = names if run.ema.decay else names[:2]
    return {f"{RESULTS}/{name}": name for name in names} | {
        f"epoch/val_{metric}": f"val_{metric}"
    }


def write_config(
    run: Run, workdir: pathlib.Path, step: int, say: Callable[[str], None]
) -> None:
    """Writes `config.json`: the run's record and the versions it runs with.

    Args:
        run: The run.
        workdir: Its folder.
        step: The step that it starts or goes on from.
        say: Told if its convolutions are others than before.
    """
    by_step = convolutions_by_step(run, workdir, step)
    if step and str(step) in by_step:
        *_, before, now = by_step.values()
        say(
            f"convolutions: {before} -> {now}, which round otherwise: what follows is"
            " not bit for bit what it would have been"
        )
    changed = {"convolutions_by_step": by_step} if len(by_step) > 1 else {}
    record = {**run.record, "versions": {**versions(), **changed}}
    write_json(workdir / "config.json", record)


def augmented_examples(run: Run, key: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Returns the first batch as it is augmented, before normalisation.

    Photos are cropped as in an evaluation; the random crops are the readers'.

    Args:
        run: The run.
        key: Data of the run's root PRNG key.

    Returns:
        Up to 32 uint8 images `[N, H, W, C]`, mixed as the step mixes them, and titles.
    """
    examples = [run.data.train[int(i)] for i in run.order(0)]
    images = np.stack([example["image"] for example in examples])
    names = run.data.class_names
    titles = [run.task.name_target(example, names) for example in examples]

    @jax.jit  # one program to compile, not dozens
    def augment(key: jax.Array, images: jax.Array) -> tuple[jax.Array, Mix | None]:
        drawn = run.augment.draw(stream(key, 0, "augment"), *images.shape[:3])
        x = run.augment.apply(images, drawn.images).astype(jnp.float32)
        if drawn.mix is not None:
            x = mix(x, x[drawn.mix.partner], drawn.mix)
        return jnp.round(x[:_NUM_EXAMPLES]).astype(jnp.uint8), drawn.mix

    pictures, mixed = jax.device_get(augment(key, images))
    if mixed is not None:
        own = round(100 * float(mixed.label_weight))
        partners = [titles[i] for i in mixed.partner]
        if own < 100:
            titles = [
                f"{own}% {a}\n{100 - own}% {b}"
                for a, b in zip(titles, partners, strict=True)
            ]
    return pictures, titles[:_NUM_EXAMPLES]


def histograms(params: Any) -> dict[str, np.ndarray]:
    """Returns all parameters by their tag, those of attention apart."""
    tagged = {}
    for path, leaf in traverse_util.flatten_dict(jax.device_get(params)).items():
        is_attention = _ATTENTION & set(path) or path[-1] in _SCC_AFFINE
        group = "attention/" if is_attention else ""
        tagged[f"weights/{group}{'.'.join(path)}"] = np.asarray(leaf)
    return tagged


def write_epoch(
    run: Run,
    writer: RunWriter,
    state: TrainState,
    step: int,
    row: Mapping[str, float],
    draw_attention: Callable[[Any], dict[str, np.ndarray]] | None,
) -> None:
    """Writes what an epoch came to.

    Args:
        run: The run.
        writer: Its writer.
        state: At the end of the epoch.
        step: Its step.
        row: The epoch's figures.
        draw_attention: As `make_attention_maps` returns it.
    """
    writer.write_scalars(step, {f"epoch/{key}": value for key, value in row.items()})
    if run.log.histograms:
        writer.write_histograms(step, histograms(run.parallel.collect(state.params)))
    if draw_attention:
        writer.write_images(step, draw_attention(run.parallel.collect(state.variables)))


def write_results(
    run: Run,
    workdir: pathlib.Path,
    writer: RunWriter | None,
    chosen: Chosen,
    *,
    last_step: int,
    wall_time_s: float,
    images_per_s: float | None,
    has_trained: bool,
) -> dict[str, Any]:
    """Writes `results.json`, `report.txt` and the figures of a finished run.

    Args:
        run: The run.
        workdir: Its folder.
        writer: Its writer; None writes nothing (not the first process).
        chosen: What the tests came to.
        last_step: That of the weights "last"; an early one of a run that stopped early.
        wall_time_s: Of the run.
        images_per_s: Training speed; None if the run was too short to tell.
        has_trained: Whether this attempt trained, or reports a finished run again.

    Returns:
        The content of `results.json`.
    """
    tested, best_params, best_step = chosen
    best = tested.summaries["best"]
    devices = jax.devices()
    results = {
        "model": name_of_model(run),
        "num_params": run.cost.parameters,
        "num_macs": run.cost.macs,
        "data": run.data.name,
        "num_examples": {
            "train": len(run.data.train),
            "val": len(run.data.val) if run.data.val else 0,
            "test": best["count"],
        },
        "seed": run.options.seed,
        "epochs": last_step // run.steps_per_epoch,
        "stopped_early": last_step < run.total_steps,
        "best_epoch": best_step and best_step // run.steps_per_epoch,
        **run.task.results(tested),
        "wall_time_s": round(wall_time_s, 1),
        "images_per_s": images_per_s and round(images_per_s, 1),
        "device": f"{run.parallel.num_devices} x {devices[0].device_kind}",
        "host": host.describe_cpu(),
        "versions": {**versions(), **_changed_convolutions(workdir)},
    }
    if writer is None:
        return results
    write_json(workdir / "results.json", results)
    if has_trained:
        writer.write_results(last_step, run.task.results(tested))
    write_atomically(workdir / "report.txt", format_report(results, best, run))
    if plots := figures.load_plots():
        drawn = figures.draw_results(run, read_metrics(workdir), best_params, best)
        for name, figure in drawn.items():
            plots.save_figure(figure, workdir / f"{name}.png")
        # A run that is reported again has shown them.
        if has_trained and writer.shows_images:
            arrays = {f"view/{k}": plots.figure_to_array(v) for k, v in drawn.items()}
            writer.write_images(last_step, arrays)
    return results


def outcome(
    run: Run, workdir: pathlib.Path, results: dict[str, Any], chosen: Chosen
) -> str:
    """Returns the line that ends a run: how well it does, and where the report is."""
    best = chosen.tested.summaries["best"]
    return (
        f"test {run.task.headline(best)} ({_chosen(run, results)}); report in {workdir}"
    )


def format_report(results: dict[str, Any], best: Summary, run: Run) -> str:
    """Returns the text of `report.txt`."""
    lines = [
        f"{results['model']} on {results['data']}, seed {results['seed']}:"
        f" {_chosen(run, results)}",
        *_early(results, run),
        *_changes(results["versions"].get("convolutions_by_step", {})),
        "",
        *run.task.report(best, run.data.class_names),
    ]
    return "\n".join(lines) + "\n"


def _early(results: dict[str, Any], run: Run) -> list[str]:
    if not results["stopped_early"]:
        return []
    return [
        f"stopped early, after epoch {results['epochs']} of {run.options.num_epochs}"
    ]


def _changes(by_step: ByStep) -> list[str]:
    """Tells of a run that was not trained with one library's convolutions alone."""
    parts = [f"{name}'s from step {step}" for step, name in by_step.items()]
    return [f"convolutions: {', '.join(parts)}"] if parts else []


def name_of_model(run: Run) -> str:
    """Returns the name of a run's network: its class, if it is a user's own."""
    return run.config["model"].get("name") or type(run.model).__name__


def _chosen(run: Run, results: dict[str, Any]) -> str:
    if results["best_epoch"] is None:
        return f"last weights, epoch {results['epochs']}, no validation split"
    figure = in_words(run.task.metric)
    return f"best validation {figure}, epoch {results['best_epoch']}"


def versions() -> dict[str, str]:
    """Returns the versions of what decides a run's numbers."""
    own = {name: metadata.version(name) for name in _PACKAGES}
    own = {"jaxattn": jaxattn.__version__, **own}  # which need not be installed
    return {**own, "convolutions": cpu_kernels.name_of_convolutions()}


def _changed_convolutions(workdir: pathlib.Path) -> dict[str, ByStep]:
    """Returns what `write_config` has written of them, if they are not all one's."""
    key, path = "convolutions_by_step", workdir / "config.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    versions_ = known.get("versions", {})
    return {key: versions_[key]} if key in versions_ else {}


def _as_code(text: str) -> str:
    """Markdown that TensorBoard shows as it stands."""
    return "\n".join(f"    {line}" for line in text.splitlines())
