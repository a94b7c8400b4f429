"""The tables of results say what the records do, and nothing of what was not run."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from benchmarks import tables
from jaxattn.errors import UserError


def finished(accuracy, **changes):
    """A record of a run of 70 epochs."""
    return {
        "model": "canet_tiny",
        "num_params": 396_155,
        "num_macs": 68_146_606,
        "seed": 0,
        "epochs": 70,
        "epochs_done": 70,
        "history": [],
        "config": {"model": {"name": "canet_tiny"}, "dtype": "float32"},
        "test_accuracy": accuracy,
        "last_test_accuracy": 0.87,
        "test_accuracy_ema": None,
        "images_per_s": 250.0,
        "wall_time_s": 90.0,
        "device": "1 x cpu",
        "host": "2 x EPYC",
        "versions": {"jax": "1.2"},
        **changes,
    }


def test_table_compares_what_was_run_with_what_is_published():
    """`sccnet18` was not: it is left out."""
    cut = {"epochs_done": 12, "epochs": 70, "history": [{"val_accuracy": 0.6}]}
    found = {"canet_tiny": [finished(0.88), finished(0.89)], "canet": [cut]}
    table = tables.format_table(["canet_tiny", "canet", "sccnet18"], found)
    assert table.splitlines()[2:] == [
        "| `canet_tiny` | 70 | 2 | 88.50 ± 0.71 % | 88.66 % | -0.16 | 90 s |",
        "| `canet` |  |  | cut short at epoch 12 of 70, validation 60.00% | 93.50 % |"
        "  |  |",
    ]


def test_best_validation_is_compared_where_that_is_published():
    rows = [{"val_accuracy_ema": value} for value in (0.94, 0.96, 0.95)]
    found = {"enhanced_efficient_resnet": [finished(0.9, history=rows)]}
    table = tables.format_table(found, found)
    assert "| 96.00 % | 95.30 % (best validation, averaged weights) | +0.70 |" in table


def test_study_shows_the_difference_and_its_error():
    base = [finished(value) for value in (0.60, 0.62, 0.64)]
    better = [finished(value) for value in (0.63, 0.66, 0.69)]
    names = ["attention_none", "attention_cbam", "attention_scsa"]
    found = dict(zip(names, (base, better), strict=False))
    table = tables.format_study(names, "attention_none", found)
    # sqrt(2^2 / 3 + 3^2 / 3) = 2.08 points
    assert table.splitlines()[2:] == [
        "| `attention_none` | 396,155 | 68,146,606 | 3 | 62.00 ± 2.00 % |  | 250 |"
        " 90 s |",
        "| `attention_cbam` | 396,155 | 68,146,606 | 3 | 66.00 ± 3.00 % |"
        " +4.00 ± 2.08 | 250 | 90 s |",
    ]


def test_tables_are_replaced_between_their_markers():
    text = "a\n<!-- table:cpu -->\nold\n<!-- /table -->\nb\n"
    found = {"canet_tiny_20_epochs": [finished(0.8)]}
    once = tables.replace_tables(text, found)
    assert "old" not in once
    assert once.startswith("a\n<!-- table:cpu -->\n\n| run | epochs |")
    assert "- 1 x cpu (2 x EPYC); jax 1.2, float32\n" in once
    assert once.endswith("\n\n<!-- /table -->\nb\n")
    assert tables.replace_tables(once, found) == once
    with pytest.raises(UserError, match="table='gpu'"):
        tables.replace_tables(text.replace("cpu", "gpu"), found)


def test_group_of_which_nothing_was_run_has_no_rows():
    for group in ("cifar10", "attention_cpu"):
        assert tables.format_group(group, {}) == "No run is recorded yet."
    assert tables.format_summary({}) == "No run is recorded yet."


def test_latency_is_shown_once_it_was_measured(tmp_path):
    path = tmp_path / "latency.json"
    assert tables.format_latency(path) == "No run is recorded yet."
    path.write_text('{"rows": []}')
    assert tables.format_latency(path).startswith("| network | pixels, batch |")


def test_summary_has_the_finished_rows_with_their_recipes():
    """Only `canet_tiny` has a published figure; `canet` is cut short: left out."""
    cut = {"epochs_done": 12, "epochs": 70, "history": []}
    best = finished(0.1, test_accuracy_ema=0.9, model="resnet", epochs=16)
    found = {"best_cpu": [best], "canet": [cut], "canet_tiny": [finished(0.88)]}
    assert tables.format_summary(found).splitlines() == [
        "| network | recipe | epochs | accuracy | published | time |",
        "|---|---|---|---|---|---|",
        "| `canet_tiny` | `configs/canet.py:tiny` | 70 | 88.00 % | 88.66 % | 90 s |",
        "| `resnet` | `configs/best.py:cpu` | 16 | 90.00 % |  | 90 s |",
    ]
    del found["canet_tiny"]
    assert "published" not in tables.format_summary(found)


def test_speeds_are_the_medians_beside_the_fastest_of_pytorch():
    work = {"model": "canet", "image_size": 32, "batch_size": 64}
    sides = {
        "jaxattn": {"items_per_s": [29.0, 30.0, 28.0]},
        "eager": {"items_per_s": [20.0]},
        "compile": {"items_per_s": [25.0]},
    }
    row = {"work": work, "timings": sides, "fastest_peer": "compile", "ratio": 1.16}
    table = tables.format_speed({"rows": [row]})
    assert table.splitlines()[2:] == ["| `canet` | 32, 64 | 29 | 25 | 1.16 |"]
