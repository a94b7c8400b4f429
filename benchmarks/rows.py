"""Rows of the tables of results, and the records of their runs.

A row is a recipe with its seeds, and with the published figure that it is to reproduce.
`reproduce.py` trains it; `tables.py` shows it.
"""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from jaxattn.errors import choose
from jaxattn.models.slots import list_attention

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "runs"
Record = dict[str, Any]

# Rows ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A line of a table.

    Attributes:
        group: The table.
        config: A config file with its argument.
        network: Of that config's study of batch normalisation, whose run it is.
        overrides: Of the recipe, as `num_epochs=20`.
        seeds: One run each.
        published: The figure it is to reproduce, in percent; None without one.
        figure: Which of ours that is.
    """

    group: str
    config: str
    network: str | None = None
    overrides: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (42,)
    published: float | None = None
    figure: str = "test_accuracy"


FIGURES = {
    "test_accuracy": "test",
    "best_val_accuracy_ema": "best validation, averaged weights",
    "test_accuracy_ema": "test, averaged weights",
    "last_test_accuracy": "test, last weights",
}
"""What a row's figure is called in the table."""

GROUPS = ("cifar10", "cpu", "best", "attention_cpu", "attention", "precision_cpu")
"""The tables: whole recipes, shorter ones for CPUs, our own, three studies."""


def _canet(variant: str, published: float) -> Row:
    config = f"configs/canet.py:{variant}"
    return Row(group="cifar10", config=config, published=published)


def _baseline(name: str, published: float) -> Row:
    config = f"configs/baselines.py:{name}"
    return Row(group="cifar10", config=config, published=published)


def _vgg(network: str, published: float) -> Row:
    return Row(
        group="cifar10",
        config="configs/vgg_bn.py",
        network=network,
        seeds=(2020,),
        published=published,
        figure="last_test_accuracy",
    )


def _best(variant: str) -> Row:
    config = f"configs/best.py:{variant}"
    return Row(group="best", config=config, seeds=(0,), figure="test_accuracy_ema")


def _attention(variant: str) -> Row:
    config = f"configs/attention_study.py:{variant}"
    return Row(group="attention_cpu", config=config, seeds=(0, 1, 2))


def _zoo(variant: str, seeds: tuple[int, ...] = (0,)) -> Row:
    return Row(
        group="attention",
        config=f"configs/attention_study.py:{variant}",
        # Five times the images, and as many more steps: attention has time to show.
        overrides=("num_epochs=20", "data.max_train_examples=25000"),
        seeds=seeds,
    )


def _precision(dtype: str) -> Row:
    return Row(
        group="precision_cpu",
        config="configs/canet.py:tiny",
        # Flips and crops alone; the learning rate falls to where it does in 70 epochs.
        overrides=(
            *(f"dtype={dtype}", "num_epochs=20", "schedule.decay_rate=0.867"),
            *("batch_size=128", "data.val_fraction=0.0"),
            *("data.max_train_examples=5000", "data.max_eval_examples=1000"),
            *("augment.erase_probability=0.0", "augment.mixup_probability=0.0"),
            "augment.cutmix_probability=0.0",
        ),
        seeds=(0, 1, 2, 3, 4),
    )


ROWS = {
    # The report of CANet, the baselines in its table included.
    "canet_tiny": _canet("tiny", 88.66),
    "canet_light": _canet("light", 91.56),
    "canet": _canet("base", 93.50),
    "canet_pro": _canet("pro", 93.56),
    "resnet18": _baseline("resnet18", 93.00),
    "resnet34": _baseline("resnet34", 93.56),
    "mobilenet_v2": _baseline("mobilenet_v2", 84.14),
    "shufflenet_v2_x0_5": _baseline("shufflenet_v2_x0_5", 62.66),
    "vgg11": _baseline("vgg11", 85.75),
    # Attention-Enhanced ResNet: the best of its validations, on augmented images.
    "enhanced_efficient_resnet": Row(
        group="cifar10",
        config="configs/cbam_resnet.py",
        overrides=("augment.validation=True",),
        published=95.30,
        figure="best_val_accuracy_ema",
    ),
    # The loss-landscape study of CANet's authors, at one of its learning rates.
    "vgg_a": _vgg("vgg_a", 75.81),
    "vgg_a_bn": _vgg("vgg_a_bn", 84.29),
    # Nothing is published for these.
    "sccnet18": Row(group="cifar10", config="configs/sccnet.py:18_cifar"),
    "resnet18_scsa": Row(group="cifar10", config="configs/scsa.py:resnet18_cifar"),
    "canet_tiny_20_epochs": Row(
        group="cpu",
        config="configs/canet.py:tiny",
        # The learning rate falls to where it does in 70 epochs.
        overrides=("num_epochs=20", "schedule.decay_rate=0.867"),
    ),
    "enhanced_efficient_resnet_5000": Row(
        group="cpu",
        config="configs/cbam_resnet.py",
        # In 800 steps the average must forget sooner than in 176,000.
        overrides=(
            *("num_epochs=20", "data.max_train_examples=5000"),
            *("ema.decay=0.98", "ema.batch_stats=average"),
        ),
    ),
    "best_gpu": _best("gpu"),
    "best_cpu": _best("cpu"),
    "attention_none": _attention("none"),
    "attention_cbam": _attention("cbam"),
    "attention_multi_kernel_eca": _attention("multi_kernel_eca"),
    "attention_scsa": _attention("scsa"),
    "attention_scc": _attention("scc"),
    "zoo_none": _zoo("none", (0, 1, 2)),
    **{f"zoo_{name}": _zoo(name) for name in list_attention()},
    "canet_tiny_float32": _precision("float32"),
    "canet_tiny_bfloat16": _precision("bfloat16"),
}
"""All rows by name, in their tables' order."""

BASELINE_OF = {
    "attention_cpu": "attention_none",
    "attention": "zoo_none",
    "precision_cpu": "canet_tiny_float32",
}
"""The row that the others of a study are compared with, by table."""


def select_rows(names: Sequence[str], groups: Sequence[str]) -> list[str]:
    """Returns the rows of the given names, in their order, then those of the groups.

    Raises:
        UserError: If there is none of a name.
    """
    for name in names:
        choose("--rows", name, ROWS)
    for group in groups:
        choose("--group", group, GROUPS)
    of_groups = [name for name, row in ROWS.items() if row.group in groups]
    return list(dict.fromkeys([*names, *of_groups]))


# Records ---------------------------------------------------------------------------


def is_done(record: Record) -> bool:
    """Returns whether a record is of a finished run."""
    return "test_accuracy" in record


def read_record(name: str, results: pathlib.Path) -> Record:
    """Returns the record of a run; empty if there is none."""
    path = record_path(name, results)
    return json.loads(path.read_text()) if path.exists() else {}


def read_records(results: pathlib.Path) -> dict[str, list[Record]]:
    """Returns the records of every row, those that there are."""
    return {
        name: [
            record
            for seed in row.seeds
            if (record := read_record(f"{name}_seed{seed}", results))
        ]
        for name, row in ROWS.items()
    }


def record_path(name: str, results: pathlib.Path) -> pathlib.Path:
    """Returns the file of a run's record."""
    return results / f"{name}.json"


def figure_of(record: Record, figure: str) -> float:
    """Returns an accuracy of a finished run, one of `FIGURES`."""
    if figure == "best_val_accuracy_ema":
        return max(row["val_accuracy_ema"] for row in record["history"])
    return record[figure]
