"""Every number of a config: what is out of range is one line, before data are read."""

import functools
import math

import pytest
import smoke

from jaxattn.cli import main
from jaxattn.config import recipe
from jaxattn.data import load_data
from jaxattn.data.datasets import registry, toy
from jaxattn.errors import UserError
from jaxattn.inference import Predictor
from jaxattn.models.registry import create_model
from jaxattn.studies.bn_landscape import _check as check_study
from jaxattn.training import build, load_trained, train_and_evaluate


class DataReadError(Exception):
    pass


FLOATS = (
    math.nan,
    math.inf,
    -math.inf,
    -1.0,
    -0.5,
    0.0,
    0.5,
    1.0,
    1.5,
    1e39,
    "a",
    True,
)
INTS = (-(10**30), -1, 0, 1, 10**6, 2**32, 10**30, 0.5, math.nan, "a", True)
TUPLES = (
    1, "a", (), (math.nan, 1.0), (0.5, math.inf), (-1.0, 0.5), (0, 0), (0.5,),
    (0.5, 0.5), (1, 2), (2, 1), (1, 2, 3), (0.5, "a"),
)  # fmt: skip
PROBES = {float: FLOATS, int: INTS, tuple: TUPLES}

# Of the probes those that a key takes.
FROM_0, FROM_1 = (0, 1, 10**6), (1, 10**6)
SHARE, BELOW_1 = (0.0, 0.5, 1.0), (0.0, 0.5)
ANY_FROM_0, ABOVE_0 = (0.0, 0.5, 1.0, 1.5), (0.5, 1.0, 1.5)
TAKEN = {
    "seed": FROM_0,
    "num_epochs": FROM_1,
    "batch_size": FROM_1,
    "steps_per_dispatch": FROM_1,
    "accumulate_steps": (1,),  # of a batch of 16
    "keep_checkpoints": FROM_1,
    "freeze_stages": FROM_0,
    "unfreeze_epochs": ((), (1, 2), (1, 2, 3)),  # of 4
    "max_skipped_steps": FROM_0,
    "stall_timeout_s": ABOVE_0,
    "model.widths": ((1, 2), (2, 1), (1, 2, 3)),
    "model.width": FROM_1,
    "model.base_width": FROM_1,
    "model.dropout_rate": BELOW_1,
    "model.drop_path_rate": BELOW_1,
    "model.in_channels": FROM_1,
    "model.mask_prob": SHARE,
    "model.channels": FROM_1,
    "model.fpn_features": FROM_1,
    "model.anchor_base": ABOVE_0,
    "model.attention_stages": ((0, 0), (1, 2), (2, 1), (1, 2, 3)),
    "model.attention_kwargs.reduction": FROM_1,
    "model.attention_kwargs.window_size": FROM_1,
    "model.attention_kwargs.head_num": FROM_1,
    "model.attention_kwargs.attn_drop_ratio": BELOW_1,
    "data.val_fraction": BELOW_1,
    "data.split_seed": FROM_0,
    "data.max_train_examples": FROM_1,
    "data.max_eval_examples": FROM_1,
    "data.image_size": (1,),
    "data.resize_px": (10**6,),
    "data.crop_scale": ((0.5, 0.5),),
    "data.crop_ratio": ((0.5, 0.5), (1, 2)),
    "data.canvas_size": (1, (1, 2), (2, 1)),
    "data.crop_size": (1, (1, 2), (2, 1)),
    "data.scale_range": ((0.5, 0.5), (1, 2)),
    "data.cat_max_ratio": (0.5, 1.0),
    "data.classes": ((),),
    "data.max_boxes": FROM_1,
    "pipeline.num_workers": (0, 1),
    "augment.flip_probability": SHARE,
    "augment.crop_padding_px": FROM_0,
    "augment.rotation_degrees": ANY_FROM_0,
    "augment.brightness": SHARE,
    "augment.contrast": SHARE,
    "augment.saturation": SHARE,
    "augment.hue": BELOW_1,
    "augment.photometric_probability": SHARE,
    "augment.perspective_probability": SHARE,
    "augment.perspective_distortion": (0.5, 1.0),
    "augment.erase_probability": SHARE,
    "augment.erase_area": ((0.5, 0.5),),
    "augment.erase_aspect": ((0.5, 0.5), (1, 2)),
    "augment.mixup_probability": SHARE,
    "augment.mixup_alpha": ABOVE_0,
    "augment.cutmix_probability": SHARE,
    "augment.cutmix_alpha": ABOVE_0,
    "loss.label_smoothing": BELOW_1,
    "loss.aux_weight": ANY_FROM_0,
    "loss.dice_weight": ANY_FROM_0,
    "loss.focal_gamma": ANY_FROM_0,
    "loss.ohem_threshold": (0.5, 1.0),
    "loss.ohem_min_kept": FROM_0,
    "loss.class_weights": ((0.5,), (0.5, 0.5), (1, 2), (2, 1), (1, 2, 3)),
    "loss.box_weight": ABOVE_0,
    "schedule.learning_rate": ABOVE_0,
    "schedule.warmup_epochs": ANY_FROM_0,
    "schedule.final_factor": SHARE,
    "schedule.power": ANY_FROM_0,
    "schedule.decay_rate": ABOVE_0,
    "schedule.milestones": ((), (0, 0), (0.5,), (0.5, 0.5), (1, 2), (2, 1), (1, 2, 3)),
    "optimizer.switch_fraction": SHARE,
    "optimizer.momentum": BELOW_1,
    "optimizer.weight_decay": ANY_FROM_0,
    "optimizer.clip_norm": ABOVE_0,
    "optimizer.layer_decay": (0.5, 1.0),
    "optimizer.head_rate": ABOVE_0,
    "ema.decay": BELOW_1,
    "early_stopping.patience": FROM_0,
    "early_stopping.min_delta": ANY_FROM_0,
    "log.every_steps": FROM_1,
    "log.profile_steps": ((), (1, 2)),
}
# `test_preprocess` and `test_bn_landscape` have these, or the test of studies below.
ELSEWHERE = ("normalize.", "landscape.", "learning_rates")

# Of which task a key is; else of classification.
TASKS = {
    "model.channels": "segmentation",
    "model.fpn_features": "detection",
    "model.anchor_base": "detection",
    "loss.aux_weight": "segmentation",
    "loss.class_weights": "segmentation",
    "loss.dice_weight": "segmentation",
    "loss.focal_gamma": "segmentation",
    "loss.ohem_threshold": "segmentation",
    "loss.ohem_min_kept": "segmentation",
    "loss.box_weight": "detection",
}
_LABEL_MAPS = {"name": "segmentation_folder", "path": "/nowhere"}

# What a key needs beside it.
BESIDE = {
    "model.channels": {"name": "upernet", "backbone": "resnet18"},
    "model.fpn_features": {"name": "retinanet", "backbone": "resnet18"},
    "model.anchor_base": {"name": "retinanet", "backbone": "resnet18"},
    "data.canvas_size": _LABEL_MAPS,
    "data.crop_size": _LABEL_MAPS,
    "data.scale_range": _LABEL_MAPS,
    "data.cat_max_ratio": _LABEL_MAPS,
    "data.classes": _LABEL_MAPS,
    "data.max_boxes": {"name": "detection_folder", "path": "/nowhere"},
    "schedule.power": {"name": "poly", "learning_rate": 0.1},
    "model.widths": {"name": "sccnet18"},
    "model.width": {"name": "vgg_a"},
    "model.base_width": {"name": "efficient_resnet"},
    "model.dropout_rate": {"name": "vgg11"},
    "model.drop_path_rate": {"name": "resnet18"},
    "model.mask_prob": {"name": "sccnet18"},
    "model.attention_kwargs.reduction": {"name": "resnet18", "attention": "cbam"},
    "model": {"name": "resnet18", "attention": "scsa"},
    "schedule.final_factor": {"name": "cosine", "learning_rate": 0.1},
    "schedule.decay_rate": {"name": "exponential", "learning_rate": 0.1},
    "schedule.milestones": {
        "name": "multi_step",
        "learning_rate": 0.1,
        "decay_rate": 0.1,
    },
    "schedule": {"name": "constant", "learning_rate": 0.1},
    "optimizer.switch_fraction": {"name": "adamw_then_sgd"},
    "optimizer": {"name": "sgd"},
    "augment": {},
    "data.val_fraction": {"name": "synthetic"},
    "data.split_seed": {"name": "synthetic"},
    "data.max_train_examples": {"name": "synthetic"},
    "data.max_eval_examples": {"name": "synthetic"},
    "data": {"name": "imagefolder", "path": "/nowhere"},
}


def numeric_keys(node, prefix=""):
    for key, value in node.items():
        kind = value if isinstance(value, type) else type(value)
        if isinstance(value, dict):
            yield from numeric_keys(value, f"{prefix}{key}.")
        elif kind in PROBES and not f"{prefix}{key}".startswith(ELSEWHERE):
            yield f"{prefix}{key}", kind


KINDS = dict(numeric_keys(recipe._update(recipe._DEFAULTS, recipe._CHOSEN)))


def with_value(key, value):
    config = smoke.get_config().to_dict()
    config["task"] = TASKS.get(key, "classification")
    if key in TASKS:
        config["loss"] = {}
    *sections, name = key.split(".")
    if sections:
        beside = BESIDE.get(key, BESIDE.get(sections[0]))
        config[sections[0]] = dict(config[sections[0]] if beside is None else beside)
    node = config
    for section in sections:
        node = node.setdefault(section, {})
    node[name] = value
    return config


def outcome(config):
    """None if the data would be read, or the folder that is not there; or the error."""
    try:
        build(config, devices=smoke.one_device())
    except DataReadError:
        return None
    except UserError as error:
        return None if "/nowhere: no such" in str(error) else str(error)
    raise AssertionError("the data were not read")


@pytest.fixture
def unread(monkeypatch):
    @functools.wraps(toy.load_synthetic)
    def read(*_, **__):
        raise DataReadError

    monkeypatch.setitem(registry.LOADERS, "synthetic", read)


def test_every_number_of_the_recipes_is_in_the_table():
    assert TAKEN.keys() == KINDS.keys()


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize("key", sorted(KINDS))
def test_what_is_out_of_range_is_one_line_that_names_the_key(key):
    for value in PROBES[KINDS[key]]:
        error = outcome(with_value(key, value))
        is_taken = any(value is v or value == v for v in TAKEN[key])
        if is_taken and not isinstance(value, bool):
            assert error is None, (value, error)
        else:
            assert error is not None, value
            assert f"{key}=" in error
            assert "must " in error
            assert "\n" not in error


@pytest.mark.parametrize("rates", [(), (math.nan,), (math.inf,), (-1.0,), ("a",), 1.0])
def test_rates_of_a_study_are_checked_before_its_runs(rates):
    with pytest.raises(UserError, match=r"^learning_rates=.*: must be numbers above 0"):
        check_study({"learning_rates": rates, "model": {}})


def test_a_run_of_more_steps_than_an_int32_counts_is_refused():
    config = smoke.get_config()
    config.num_epochs, config.batch_size = 2**31, 90
    with pytest.raises(UserError, match=r"^num_epochs=\d+: must be below 2"):
        build(config, devices=smoke.one_device())


@pytest.mark.parametrize(
    "arguments",
    [
        ("predict", "--data", "x", "--seed", "-1"),
        ("predict", "--data", "x", "--seed", "4294967296"),
        ("predict", "--data", "x", "--batch-size", "0"),
        ("evaluate", "--tta-temperature", "nan"),
        ("evaluate", "--bonus", "inf"),
        ("evaluate", "--view-weights", "1,nan"),
        ("evaluate", "--thresholds", "inf"),
        ("benchmark-latency", "--seconds", "inf"),
        ("models", "--image-size", "0"),
        ("compare", "--configs", "canet", "--root", "x", "--seeds", "-1"),
    ],
)
def test_a_number_of_an_option_is_one_line_that_names_it(capsys, arguments):
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"argument {arguments[-2]}: " in line
    assert " must be " in line


@pytest.mark.parametrize(
    ("name", "keywords"),
    [
        (5, {}),
        (None, {}),
        ("canet", {"num_classes": "10"}),
        ("canet", {"num_classes": -1}),
        ("canet", {"num_classes": 2.5}),
        ("efficient_resnet", {"base_width": "8"}),
        ("resnet18", {"attention": "cbam", "attention_kwargs": {"reduction": 0}}),
    ],
)
def test_a_network_of_wrong_values_is_refused_by_name(name, keywords):
    with pytest.raises(UserError, match=r"^[\w.]+=.*(choices|must be)"):
        create_model(name, **keywords)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build(5), r"^config: int; must be Mapping$"),
        (lambda: build("canet"), r"^config: str; must be Mapping$"),
        (lambda: build({"model": "canet"}), r"^config.model: str; must be Mapping$"),
        (lambda: build({}), r"^config.seed: required by Options$"),
        (lambda: build(smoke.get_config(), model=5), r"^model: int; must be Module$"),
        (
            lambda: build(smoke.get_config(), task=5),
            r"^task: int has no metric, .*; must be a Task$",
        ),
        (lambda: build(smoke.get_config(), data=5), r"^data: int; must be a mapping"),
        (lambda: train_and_evaluate(5, 5), r"^workdir=5: must be a path$"),
        (lambda: load_trained(5), r"^workdir=5: must be a path$"),
        (lambda: load_trained(weights=5), r"^weights=5: choices: best"),
        (lambda: Predictor(5), r"^trained: int; must be Trained$"),
        (lambda: load_data(5), r"^data.name: int; must be str$"),
    ],
)
def test_a_python_call_with_a_wrong_type_names_the_argument(call, message):
    with pytest.raises(UserError, match=message):
        call()


@pytest.mark.parametrize("name", ["synthetic", "digits"])
def test_more_than_memory_holds_is_a_line(name, tmp_path, capsys):
    workdir = tmp_path / "run"
    data = [f"--config.data.name={name}", f"--config.data.image_size={10**6}"]
    assert main(["train", "--config=quickstart", *data, f"--workdir={workdir}"]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert "out of memory" in line
    assert "smaller batch_size or data.image_size" in line
    assert not workdir.exists()
