"""Whether this tree trains as another commit does, bit for bit.

    python benchmarks/rail.py 9baaa2d
    python benchmarks/rail.py HEAD --networks canet_tiny vgg_a_bn --kernels off

For a change that is to move code and no numbers. The commit is checked out into a
temporary folder; it and this tree, uncommitted changes included, train five small
networks for 20 steps on synthetic data, on the CPU, with oneDNN's convolutions and
without. The five recipes differ, so that together they cover most of the trainer. Every
logged loss, gradient norm and rate and all figures of validation and test must be the
same float. Then this tree resumes a run of the commit's from its middle, and evaluates
one that is finished.

Prints a line for each comparison: "same", or the first figure that differs. Exits with
1 if one differs or a run fails. Most of its time goes into compiling BASE's programs.

Both trees are black boxes, `python main.py --config FILE --workdir DIR` and
`python -m jaxattn`: nothing of either is imported here, so that code may move.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import pprint
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

ROOT = pathlib.Path(__file__).resolve().parent.parent
KERNELS = {"off": "0", "on": "1"}  # value of JAXATTN_CPU_KERNELS

_NUM_EPOCHS, _STEPS_PER_EPOCH, _BATCH_SIZE = 2, 10, 16
_MIDDLE, NUM_STEPS = _STEPS_PER_EPOCH, _NUM_EPOCHS * _STEPS_PER_EPOCH
_RESUMED = "canet_tiny"  # this network's run

# What is compared, of rows of metrics.jsonl and of results.json.
_LOGGED = (
    "step/loss",
    "step/gradient_norm",
    "step/accuracy",
    "step/learning_rate",
    "epoch/val_loss",
    "epoch/val_accuracy",
    "epoch/val_loss_ema",
    "epoch/val_accuracy_ema",
)
_REPORTED = (
    "num_params",
    "best_val_accuracy",
    "test_loss",
    "test_accuracy",
    "test_accuracy_ema",
    "test_ece",
    "last_test_accuracy",
)

Figures = dict[tuple[int, str], Any]  # by step and name, in the order of the run


class RunError(Exception):
    """A run that failed, or was not what it should be."""


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a line for each comparison, and returns the exit code."""
    args = _parse(argv)
    signal.signal(signal.SIGTERM, _exit)  # which leaves no worktree behind either
    try:
        with tempfile.TemporaryDirectory(prefix="rail-") as folder:
            return _run(args, pathlib.Path(folder))
    except RunError as error:
        print(f"rail.py: {error}", file=sys.stderr)
        return 2


def _run(args: argparse.Namespace, folder: pathlib.Path) -> int:
    count = 0
    with checked_out(ROOT, args.base, folder / "tree"):
        for kernels in args.kernels:
            base = Tree(folder / "tree", folder / f"base-{kernels}", kernels)
            here = Tree(ROOT, folder / f"here-{kernels}", kernels)
            count += compare_trees(base, here, args.networks)
    return int(count > 0)


# Recipes ---------------------------------------------------------------------------


def _num_train(num_kept: int, val_fraction: float) -> int:
    """Examples of which `num_kept` are left to train on."""
    return round(num_kept / (1 - val_fraction))


# What differs from `make_config`'s. Narrow networks: what is computed is the same.
NETWORKS: dict[str, dict[str, Any]] = {
    "canet_tiny": {
        "data": {"num_train": _num_train(160, 0.1), "val_fraction": 0.1},
        "augment": {
            "flip_probability": 0.5,
            "crop_padding_px": 4,
            "crop_fill": "zero",
            "erase_probability": 0.5,
            "erase_area": (0.04, 0.2),
            "erase_aspect": (0.5, 2.0),
            "mixup_probability": 0.4,
            "mixup_alpha": 0.5,
            "cutmix_probability": 0.4,
            "cutmix_alpha": 0.5,
        },
        "loss": {"label_smoothing": 0.1},
        "schedule": {"name": "exponential", "decay_rate": 0.9},
        "optimizer": {
            "name": "adamw_then_sgd",
            "switch_fraction": 0.5,
            "weight_decay": 1e-3,
            "momentum": 0.9,
        },
        "ema": {"decay": 0.9, "batch_stats": "average"},
    },
    "enhanced_efficient_resnet": {
        "model": {"base_width": 8, "dropout_rate": 0.3},
        "data": {"num_train": _num_train(160, 0.1), "val_fraction": 0.1},
        "augment": {
            "flip_probability": 0.5,
            "crop_padding_px": 4,
            "crop_fill": "reflect",
            "rotation_degrees": 15.0,
            "brightness": 0.1,
            "contrast": 0.1,
            "saturation": 0.1,
            "hue": 0.02,
            "perspective_probability": 0.5,
            "perspective_distortion": 0.1,
            "validation": True,
        },
        "schedule": {"name": "cosine", "learning_rate": 0.02, "update_per": "step"},
        "optimizer": {
            "name": "sgd",
            "nesterov": True,
            "weight_decay": 5e-4,
            "clip_norm": 1.0,
        },
        "ema": {"decay": 0.99, "batch_stats": "live"},
    },
    "sccnet18": {
        "model": {"stem": "cifar", "widths": (8, 16, 32, 64), "mask_prob": 0.05},
        "data": {"image_size": 16},
        "augment": {"flip_probability": 0.5},
        "schedule": {
            "name": "multi_step",
            "learning_rate": 0.02,
            "milestones": (0.5,),
            "decay_rate": 0.1,
            "warmup_epochs": 0.5,
            "update_per": "step",
        },
        "optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 5e-4},
    },
    "resnet18": {
        "accumulate_steps": 2,
        "model": {
            "stem": "cifar",
            "widths": (8, 16, 32, 64),
            "attention": "scsa",
            "attention_kwargs": {"attn_drop_ratio": 0.1},
        },
        "augment": {"crop_padding_px": 2, "crop_fill": "edge"},
        "loss": {"label_smoothing": 0.1},
        "schedule": {"name": "constant"},
        "optimizer": {"name": "adamw", "weight_decay": 0.05, "decay_mask": "kernels"},
    },
    "vgg_a_bn": {
        "model": {"width": 8},
        "data": {"max_train_examples": 155},  # the last batch is completed
        "pipeline": {"loader": "streamed"},
        "schedule": {"name": "step", "epochs_per_step": 1.0, "decay_rate": 0.5},
        "optimizer": {"name": "adam", "weight_decay": 1e-4},
    },
}


def make_config(network: str) -> dict[str, Any]:
    """Returns the recipe of a network.

    Args:
        network: One of `NETWORKS`.
    """
    config: dict[str, Any] = {
        "seed": 42,
        "num_epochs": _NUM_EPOCHS,
        "batch_size": _BATCH_SIZE,
        "dtype": "float32",
        "data_parallel": "jit",
        "trainable": "all",
        "keep_checkpoints": 2,  # of either epoch, to resume from the first one's
        "max_skipped_steps": 0,
        "stall_timeout_s": 1800.0,
        "model": {"name": network},
        "data": {
            "name": "synthetic",
            "val_fraction": 0.0,
            "split_seed": 0,
            "image_size": 32,
            "num_train": _STEPS_PER_EPOCH * _BATCH_SIZE,
            "num_test": 50,  # the last batch is padded
        },
        "pipeline": {"loader": "resident", "num_workers": 0},
        "normalize": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
        "augment": {},
        "loss": {"label_smoothing": 0.0},
        "schedule": {"learning_rate": 1e-3},
        "optimizer": {},
        "ema": {"decay": 0.0, "batch_stats": "average"},
        "early_stopping": {"patience": 0},
        "log": {"every_steps": 1, "tensorboard": False},
    }
    for key, value in NETWORKS[network].items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    return config


def write_config(path: pathlib.Path, network: str) -> None:
    """Writes a config file that imports nothing of a tree.

    Args:
        path: Of the file.
        network: One of `NETWORKS`.
    """
    recipe = pprint.pformat(make_config(network), sort_dicts=False)
    path.write_text(
        "import ml_collections\n\n\n"
        "def get_config():\n"
        f"    return ml_collections.ConfigDict({recipe})\n"
    )


# Trees -----------------------------------------------------------------------------


@contextlib.contextmanager
def checked_out(
    repository: pathlib.Path, commit: str, path: pathlib.Path
) -> Iterator[None]:
    """Has a commit in a git worktree, which is removed at the end.

    Args:
        repository: A checkout of the repository.
        commit: Any name that git knows for it.
        path: Of the worktree, which does not exist yet.

    Raises:
        RunError: If git cannot.
    """
    git = ["git", "-C", str(repository), "worktree"]
    try:
        _call([*git, "add", "--detach", str(path), commit])
        yield
    finally:
        if path.exists():
            _call([*git, "remove", "--force", str(path)])


@dataclasses.dataclass(frozen=True)
class Tree:
    """A tree of the repository, with oneDNN's convolutions or without.

    Attributes:
        root: Folder of the tree.
        folder: For what its programs write; the kernels that it finds are there too,
            its own and no others. Folders of trees to be compared have one parent.
        kernels: "on" or "off".
    """

    root: pathlib.Path
    folder: pathlib.Path
    kernels: str

    def prepare(self) -> None:
        """Makes the folder, and builds the kernels if they are on.

        Raises:
            RunError: If they cannot be built.
        """
        self.folder.mkdir()
        if self.kernels == "on":
            self._python("-m", "jaxattn", "build-cpu-kernels")

    def train(
        self, config: pathlib.Path, workdir: pathlib.Path, start_step: int = 0
    ) -> Figures:
        """Trains to the end, and returns the figures of the run.

        Args:
            config: A file of `write_config`.
            workdir: Of the run.
            start_step: From which it must resume.

        Raises:
            RunError: If it fails, or its record shows another run than that.
        """
        flags = ("--config", str(config), "--workdir", str(workdir))
        self._python("main.py", *flags)
        return read_figures(workdir, start_step, self.kernels)

    def evaluate(self, workdir: pathlib.Path, out: pathlib.Path) -> float:
        """Returns the test accuracy of a finished run.

        Args:
            workdir: Of the run.
            out: Folder for the report.

        Raises:
            RunError: If it fails.
        """
        flags = ("--workdir", str(workdir), "--batch-size", str(_BATCH_SIZE))
        self._python("-m", "jaxattn", "evaluate", *flags, "--out", str(out))
        return json.loads((out / "results.json").read_text())["accuracy"]

    def _python(self, *arguments: str) -> None:
        _call([sys.executable, *arguments], cwd=self.root, env=self._environment())

    def _environment(self) -> dict[str, str]:
        # Neither a cache nor a number of devices comes in from outside.
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX", "XLA"))}
        return kept | {
            "PYTHONPATH": str(self.root),
            "JAX_PLATFORMS": "cpu",
            "JAXATTN_CPU_KERNELS": KERNELS[self.kernels],
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            # Shared, since its key is the program: another one is compiled anew, and
            # the kernels are no part of an entry, they are called by name.
            "JAX_COMPILATION_CACHE_DIR": str(self.folder.parent / "xla"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            # Its list of fonts is made once.
            "MPLCONFIGDIR": str(self.folder.parent / "matplotlib"),
        }


def _call(command: Sequence[str], **options: Any) -> None:
    done = subprocess.run(command, capture_output=True, text=True, **options)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        words = " ".join(map(str, command[:4]))
        raise RunError(f"{words} ... exited with {done.returncode}: {lines[-1]}")


# Comparison ------------------------------------------------------------------------


def compare_trees(base: Tree, here: Tree, networks: Sequence[str]) -> int:
    """Prints a line for each comparison, and returns how many are not "same".

    Args:
        base: The other tree.
        here: This one; both with the same kernels.
        networks: Some of `NETWORKS`.

    Raises:
        RunError: If kernels cannot be built.
    """
    for tree in (base, here):
        tree.prepare()
    count = 0
    for network in networks:
        for what, difference in _compare(base, here, network):
            print(f"{what}, kernels {base.kernels}: {difference or 'same'}", flush=True)
            count += difference is not None
    return count


def _compare(base: Tree, here: Tree, network: str) -> Iterator[tuple[str, str | None]]:
    """Yields what was compared, and what differs if anything does."""
    config, workdir = base.folder / f"{network}.py", base.folder / network
    write_config(config, network)
    try:
        wanted = base.train(config, workdir)
    except RunError as error:
        yield network, f"BASE failed: {error}"
        return
    yield (
        network,
        _difference(wanted, lambda: here.train(config, here.folder / network)),
    )
    if network != _RESUMED:
        return
    half = here.folder / f"{network}-resumed"
    yield (
        f"{network} resumed",
        _difference(
            {key: value for key, value in wanted.items() if key[0] > _MIDDLE},
            lambda: here.train(config, cut_back(workdir, half), _MIDDLE),
        ),
    )
    out, accuracy = here.folder / f"{network}-evaluated", (NUM_STEPS, "test_accuracy")
    yield (
        f"{network} evaluated",
        _difference(
            {accuracy: wanted[accuracy]},
            lambda: {accuracy: here.evaluate(workdir, out)},
        ),
    )


def _difference(wanted: Figures, run: Callable[[], Figures]) -> str | None:
    try:
        return first_difference(wanted, run())
    except RunError as error:
        return f"failed: {error}"


def first_difference(base: Figures, here: Figures) -> str | None:
    """Returns the first figure that is not the same float, with both values, or None.

    Args:
        base: Figures of the other tree.
        here: Figures of this one.
    """
    for key in base | here:
        # The shortest text that reads back as the same float: it tells -0.0 from 0.0.
        values = [repr(side[key]) if key in side else "none" for side in (base, here)]
        if values[0] != values[1]:
            step, name = key
            return f"step {step}, {name}: {values[0]} in BASE, {values[1]} here"
    return None


def read_figures(workdir: pathlib.Path, start_step: int, kernels: str) -> Figures:
    """Returns what is compared of a finished run; its last figures are of the report.

    Args:
        workdir: Of the run.
        start_step: After which it was trained.
        kernels: "on" or "off".

    Raises:
        RunError: If other steps were logged, or other convolutions used.
    """
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    steps = [row["step"] for row in rows if "step/loss" in row]
    if steps != [*range(start_step + 1, NUM_STEPS + 1)]:
        raise RunError(f"logged the steps {steps}, not {start_step + 1} to {NUM_STEPS}")
    results = json.loads((workdir / "results.json").read_text())
    library = results["versions"].get("convolutions", "XLA")
    if (library == "oneDNN") != (kernels == "on"):
        raise RunError(f"convolutions were {library}'s with kernels {kernels}")
    figures = {
        (row["step"], name.split("/")[1]): row[name]
        for row in rows
        for name in _LOGGED
        if name in row
    }
    return figures | {(NUM_STEPS, name): results[name] for name in _REPORTED}


def cut_back(workdir: pathlib.Path, copy: pathlib.Path) -> pathlib.Path:
    """Copies a finished run, and takes from the copy what came after its middle.

    The log goes altogether: what it holds at the end shows where the run resumed.

    Args:
        workdir: Of the run.
        copy: Folder to be made.

    Returns:
        The copy.
    """
    shutil.copytree(workdir, copy)
    shutil.rmtree(copy / "checkpoints" / str(NUM_STEPS))
    (copy / "results.json").unlink()
    (copy / "metrics.jsonl").unlink()
    return copy


def _exit(*_: object) -> NoReturn:
    sys.exit(143)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", metavar="BASE", help="commit to compare with")
    parser.add_argument(
        "--networks", nargs="+", choices=NETWORKS, default=[*NETWORKS], help="all"
    )
    parser.add_argument(
        "--kernels", nargs="+", choices=KERNELS, default=[*KERNELS], help="both"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
