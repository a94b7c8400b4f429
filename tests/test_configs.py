import ast
import importlib
import inspect
import json
import re
import sys

import numpy as np
import pytest
import smoke
from ml_collections import ConfigDict
from tiers import full_but

from jaxattn import create_model
from jaxattn.config import recipe as keys
from jaxattn.config.file import list_recipes, load_config
from jaxattn.config.recipe import recipe, study
from jaxattn.data.order import TrainOrder
from jaxattn.errors import UserError
from jaxattn.models.slots import list_attention
from jaxattn.training import optim
from jaxattn.training.recipes import load_recipe
from jaxattn.training.run import build

NAMES = list_recipes()
# What `main.py` trains; the others are of studies with commands of their own.
RECIPES = [name for name in NAMES if name != "vgg_bn"]
FOLDER = smoke.ROOT / "jaxattn" / "recipes"
VARIANTS = ("tiny", "light", "base", "pro")
SCCNETS = ("18", "34", "18_cifar", "34_cifar")
SCSAS = ("resnet50", "resnet101", "mobilenet_v2", "resnet18_cifar", "resnet50_cifar")
BASELINES = (
    "resnet18", "resnet34", "resnet50", "mobilenet_v2", "shufflenet_v2_x0_5", "vgg11",
)  # fmt: skip
ALL_VARIANTS = {
    "attention_study": ("none", "scc", *list_attention()),
    "baselines": BASELINES,
    "best": ("gpu", "cpu"), "canet": VARIANTS, "own_images": ("cbam", "eca", "none"),
    "retinanet": ("bccd", "own", "coco"),
    "sccnet": (*SCCNETS, "resnet34"), "scsa": SCSAS,
    "upernet": ("camvid", "own", "ade20k"),
}  # fmt: skip
OPTIMIZER = {"optimizer.clip_norm", "optimizer.decay_mask"}  # which messages name
COMMON = {
    "seed", "num_epochs", "batch_size", "model.name", "data.name", "data.path",
    "data.val_fraction", "dtype", "data_parallel", "steps_per_dispatch",
}  # fmt: skip


def load(name):
    return importlib.import_module(f"jaxattn.recipes.{name}")


def leaves(section, prefix=""):
    """All keys, dotted, with their types."""
    for key in section:
        value = section[key]
        if isinstance(value, ConfigDict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", section.get_type(key)


def test_every_recipe_has_its_published_command():
    """And it is the recipe itself, not a copy."""
    files = {path.stem for path in (smoke.ROOT / "configs").glob("*.py")}
    assert files == set(NAMES)
    for name in NAMES:
        config = importlib.import_module(f"configs.{name}")
        assert config.get_config is load(name).get_config


def test_recipe_is_found_by_its_name():
    by_name, by_path = (
        load_config(recipe, ["--config.seed=7"])
        for recipe in ("canet:tiny", str(smoke.ROOT / "configs" / "canet.py:tiny"))
    )
    assert by_name.to_dict() == by_path.to_dict()
    assert (by_name.model.name, by_name.seed) == ("canet_tiny", 7)


@pytest.mark.parametrize("name", ["canett", "canett:tiny", "", "__init__"])
def test_unknown_recipe_names_the_choices(name):
    with pytest.raises(UserError, match=f"choices: {', '.join(NAMES)}$"):
        load_config(name)


@pytest.mark.parametrize(
    ("recipe", "flags", "model", "left"),
    [
        (
            "own_images",
            ["--config.model.name=canet_tiny"],
            {"name": "canet_tiny"},
            "model.attention=cbam, model.stem=imagenet: left out",
        ),
        ("own_images:none", ["--config.model.name", "vgg11"], {"name": "vgg11"}, ""),
        (  # what the other network takes, too, is the recipe's wish
            "own_images",
            ["--config.model.name=resnet10"],
            {
                "name": "resnet10",
                "stem": "imagenet",
                "attention": "cbam",
                "attention_init": None,
            },
            None,
        ),
        (  # what the user says is refused, not forgotten
            "own_images",
            ["--config.model.stem=cifar", "--config.model.name=canet_tiny"],
            {"name": "canet_tiny", "stem": "cifar"},
            "",
        ),
        ("own_images:none", [], {"name": "resnet18", "stem": "imagenet"}, None),
    ],
)
def test_another_network_drops_what_the_recipe_says_of_its_own(
    recipe, flags, model, left
):
    said = []
    config = load_recipe(recipe, flags, said.append)
    assert config.model.to_dict() == model
    assert config.is_locked
    assert (left is None) == (not said)
    assert all(left in line for line in said)


def test_a_name_of_no_network_is_refused_as_such():
    config = load_recipe("own_images", ["--config.model.name=canett"])
    with pytest.raises(UserError, match=r"model\.name='canett': did you mean 'canet'"):
        built(config)


@pytest.mark.parametrize("name", full_but(RECIPES, "canet"))
def test_config_loads_bare_and_builds(name):
    assert built(load(name).get_config()).total_steps > 0


def built(config):
    """Builds the run of a config on data that need no download."""
    if config.task != "classification":
        images = np.zeros((16, 64, 64, 3), np.uint8)
        targets = {
            "segmentation": np.zeros((16, 64, 64), np.uint8),
            "detection": {
                "boxes": [np.array([[8.0, 8.0, 40.0, 40.0]])] * 16,
                "classes": [np.zeros(1, int)] * 16,
            },
        }
        data = {"train": (images, targets[config.task])}
        return build(config, data, devices=smoke.one_device())
    config.data.name = "synthetic"
    large = config.model.get("stem") == "imagenet"
    config.data.image_size = 224 if large else 32
    config.data.val_fraction = 0.1
    config.unlock()
    config.data.num_train, config.data.num_test = 128, 10
    return build(config, devices=smoke.one_device())


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "variant"),
    [("sccnet", v) for v in SCCNETS] + [("scsa", v) for v in SCSAS],
)
def test_variant_builds_its_network(name, variant):
    config = load(name).get_config(variant)
    model = built(config).model
    stages = (3, 4, 23, 3) if "101" in variant else (3, 4, 6, 3)
    if variant.startswith(("18", "resnet18")):
        stages = (2, 2, 2, 2)
    assert getattr(model, "stage_sizes", stages) == stages
    assert model.stem == ("cifar" if variant.endswith("cifar") else "imagenet")
    if name == "scsa":
        assert model.attention == "scsa"


@pytest.mark.full
@pytest.mark.parametrize("variant", ["cbam", "multi_kernel_eca", "scsa", "scc"])
def test_attention_study_compares_networks_of_one_size_by_one_recipe(variant):
    module = load("attention_study")
    config, base = module.get_config(variant), module.get_config()
    for section in ("data", "augment", "loss", "schedule", "optimizer", "num_epochs"):
        assert config[section] == base[section]
    cost, base_cost = (built(c).cost for c in (config, base))
    assert cost.parameters == pytest.approx(base_cost.parameters, rel=0.15)
    assert cost.macs == pytest.approx(base_cost.macs, rel=0.1)


@pytest.mark.full
@pytest.mark.parametrize("variant", ["gpu", "cpu"])
def test_best_is_small(variant):
    config = load("best").get_config(variant)
    assert built(config).cost.parameters < 6.3e6


@pytest.mark.full
def test_attention_keywords_come_from_the_command_line():
    config = load("scsa").get_config("resnet101")
    config.model.attention_kwargs.window_size = 5
    kwargs = dict(built(config).model.attention_kwargs)
    assert kwargs == {"attn_drop_ratio": 0.1, "window_size": 5}


@pytest.mark.parametrize("name", ALL_VARIANTS)
def test_unknown_variant_names_the_choices(name):
    module = load(name)
    with pytest.raises(ValueError, match="config variant 'x': must be one of "):
        module.get_config("x")


def values_of(config):
    schedule, optimizer = config.schedule.to_dict(), config.optimizer.to_dict()
    return {
        "epochs": (config.num_epochs, config.batch_size),
        "schedule": {k: v for k, v in schedule.items() if k != "warmup_epochs"},
        "sgd": tuple(optimizer[k] for k in ("momentum", "nesterov", "weight_decay")),
        "clip_norm": optimizer["clip_norm"],
        "warmup": schedule["warmup_epochs"],
        "smoothing": config.loss.label_smoothing,
        "augment": config.augment.to_dict(),
        "ema": config.ema.decay,
    }


def plain_recipe(crop_padding_px, **differences):
    augment = {"flip_probability": 0.5, "crop_padding_px": crop_padding_px}
    return {
        "clip_norm": None, "warmup": 0.0, "smoothing": 0.0, "ema": 0.0,
        "augment": {**augment, "crop_fill": "zero"}, **differences,
    }  # fmt: skip


def test_retinanet_on_coco_learns_all_photos_and_warms_up_over_500_steps():
    config = load("retinanet").get_config("coco")
    assert config.data.val_fraction == 0
    steps = TrainOrder(118_287, config.batch_size, seed=0).steps_per_epoch
    assert config.schedule.warmup_epochs * steps == pytest.approx(500, abs=0.1)


def test_sccnet_follows_the_published_recipe():
    module = load("sccnet")
    schedule = {"name": "cosine", "learning_rate": 0.1, "final_factor": 0.001}
    for variant in SCCNETS[:2]:
        assert values_of(module.get_config(variant)) == plain_recipe(
            0, epochs=(120, 128), schedule=schedule, sgd=(0.9, False, 5e-5)
        )
    assert values_of(module.get_config("18_cifar")) == plain_recipe(
        4, epochs=(200, 128), schedule=schedule, sgd=(0.9, False, 5e-4)
    )


def test_scsa_follows_the_published_recipes():
    module = load("scsa")
    steps = {"name": "multi_step", "decay_rate": 0.1}
    for variant in SCSAS[:2]:
        assert values_of(module.get_config(variant)) == plain_recipe(
            0,
            epochs=(100, 128),
            schedule={**steps, "learning_rate": 0.05, "milestones": (30, 60, 90)},
            sgd=(0.9, False, 1e-4),
        )
    assert values_of(module.get_config("mobilenet_v2")) == plain_recipe(
        0,
        epochs=(400, 96),
        schedule={"name": "exponential", "learning_rate": 0.045, "decay_rate": 0.98},
        sgd=(0.9, False, 4e-5),
    )
    for variant in SCSAS[3:]:
        assert values_of(module.get_config(variant)) == plain_recipe(
            4,
            epochs=(200, 128),
            schedule={**steps, "learning_rate": 0.1, "milestones": (100, 150)},
            sgd=(0.9, False, 1e-4),
        )


@pytest.mark.parametrize("name", NAMES)
def test_config_has_the_keys_that_commands_rely_on(name):
    models = {"model.plain", "model.bn"} if name not in RECIPES else {"model.name"}
    wanted = COMMON - {"model.name"} | models
    wanted |= OPTIMIZER if name in RECIPES else set()
    assert dict(leaves(load(name).get_config())).keys() >= wanted


@pytest.mark.parametrize("name", NAMES)
def test_every_value_is_in_the_list_with_its_type(name):
    """A float given as 0, say, could not be set to 0.1 at the command line."""
    tables = (study(**keys._DEFAULTS), study(**keys._CHOSEN))
    listed = {key: kind for table in tables for key, kind in leaves(table)}
    module = load(name)
    variants = ALL_VARIANTS.get(name, [None])
    for arguments in ([] if variant is None else [variant] for variant in variants):
        config = dict(leaves(module.get_config(*arguments)))
        assert config.items() <= listed.items()


def test_every_key_has_a_comment():
    lines = inspect.getsource(keys).splitlines()
    rows = [line for line in lines if re.match(r' +"\w+": ', line)]
    assert len(rows) > 90
    for row in rows:
        assert "  # " in row or row.endswith(("{", "{},")), row


def test_recipe_has_the_defaults_and_what_it_names():
    config = recipe(
        batch_size=8, model={"mine": 3, "stem": None}, ema={"decay": 0.5}, dtype=None
    )
    assert config.model.to_dict() == {"name": None, "mine": 3, "stem": None}
    assert config.model.get_type("stem") is str
    assert config.ema.to_dict() == {"decay": 0.5, "batch_stats": "average"}
    assert (config.batch_size, config.num_epochs, config.seed) == (8, None, 0)
    assert config.dtype == "float32"
    left = ("clip_norm", "decay_mask", "layer_decay", "head_rate")
    assert config.optimizer.to_dict() == dict.fromkeys(left)
    assert study(seed=1).to_dict() == {"seed": 1}
    assert recipe(task="counting").loss.to_dict() == {}
    assert recipe(task="classification").loss.to_dict() == {"label_smoothing": 0.0}
    assert recipe().ema.decay == 0.0


def test_recipe_asks_for_the_type_of_a_key_of_ones_own():
    assert recipe(model={"mine": int}).model.get_type("mine") is int
    with pytest.raises(ValueError, match="mine=None: must be a type, such as int"):
        recipe(model={"mine": None})


@pytest.mark.parametrize("name", NAMES)
def test_recipe_computes_nothing(name):
    """A number derived from another key goes stale when that key is overridden."""
    tree = ast.parse((FOLDER / f"{name}.py").read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.BinOp)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_canet_variants_name_their_model(variant):
    config = load("canet").get_config(variant)
    widths = {"tiny": 16, "light": 32, "base": 64, "pro": 128}
    assert create_model(config.model.name).width == widths[variant]


def test_canet_follows_the_published_recipe():
    """The whole table of the report's code: 70 epochs, AdamW to SGD at epoch 56, ..."""
    config = load("canet").get_config()
    assert (config.num_epochs, config.batch_size, config.seed) == (70, 256, 42)
    assert int(config.optimizer.switch_fraction * config.num_epochs) == 56
    assert config.optimizer.weight_decay == 1e-3
    assert config.schedule.to_dict() == {
        "name": "exponential", "learning_rate": 1e-3, "decay_rate": 0.96,
    }  # fmt: skip
    assert config.loss.label_smoothing == 0.1
    assert config.augment.to_dict() == {
        "flip_probability": 0.5, "crop_padding_px": 4, "crop_fill": "zero",
        "erase_probability": 0.5, "erase_area": (0.04, 0.2), "erase_aspect": (0.5, 2.0),
        "mixup_probability": 0.3, "mixup_alpha": 0.5,
        "cutmix_probability": 0.3, "cutmix_alpha": 0.5,
    }  # fmt: skip


@pytest.mark.full
@pytest.mark.parametrize("variant", BASELINES)
def test_baseline_is_its_network_for_small_images(variant):
    config = load("baselines").get_config(variant)
    only_one = ("shufflenet_v2_x0_5", "vgg11")
    assert config.model.name == variant
    stem = getattr(built(config).model, "stem", None)
    assert stem == (None if variant in only_one else "cifar")


def test_baselines_follow_canets_recipe():
    def values(name):
        config = load(name).get_config().to_dict()
        return {key: value for key, value in config.items() if key != "model"}

    assert values("baselines") == values("canet")


def test_cbam_resnet_follows_the_published_recipe():
    """The table of the project's trainer, as its code runs it."""
    config = load("cbam_resnet").get_config()
    assert (config.num_epochs, config.batch_size, config.seed) == (500, 128, 42)
    assert config.normalize.to_dict() == {
        "mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010),
    }  # fmt: skip
    assert config.augment.to_dict() == {
        "flip_probability": 0.5, "crop_padding_px": 4, "crop_fill": "reflect",
        "rotation_degrees": 15.0,
        "brightness": 0.1, "contrast": 0.1, "saturation": 0.1, "hue": 0.02,
        "perspective_probability": 0.5, "perspective_distortion": 0.1,
        "mixup_probability": 0.3, "mixup_alpha": 1.0,
        "cutmix_probability": 0.3, "cutmix_alpha": 1.0, "validation": False,
    }  # fmt: skip
    assert config.loss.label_smoothing == 0.1
    assert config.schedule.to_dict() == {
        "name": "cosine", "learning_rate": 0.1, "update_per": "epoch",
    }  # fmt: skip
    assert config.optimizer.to_dict() == {
        "name": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4,
        "clip_norm": 1.0, "decay_mask": None, "layer_decay": None, "head_rate": None,
    }  # fmt: skip
    assert config.ema.to_dict() == {"decay": 0.999, "batch_stats": "live"}


def test_cbam_resnets_learning_rate_is_the_logged_one():
    config = load("cbam_resnet").get_config()
    length = optim.RunLength(config.num_epochs, 10)
    schedule = optim.make_schedule(length=length, **config.schedule)
    assert float(schedule(499 * 10 + 9)) == pytest.approx(9.87e-7, rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_recipe_is_values_only(name):
    allowed = {"typing", "ml_collections", "jaxattn.config.recipe", "jaxattn.recipes"}
    for node in ast.walk(ast.parse((FOLDER / f"{name}.py").read_text())):
        assert not isinstance(node, ast.Import)
        assert not isinstance(node, ast.ImportFrom) or node.module in allowed


# What stands on a command line


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["--config.data.path=x", "--config.data.path=None"], None),
        (["--config.data.path=None", "--config.data.path=x"], "x"),
        (["--config.data.path=None"], None),
        (["--config.data.path", "None", "--config.seed", "3"], None),
    ],
)
def test_the_last_value_of_a_key_counts_none_included(overrides, expected):
    assert load_config("canet", overrides).data.path == expected


def test_none_takes_back_what_a_recipe_says():
    config = load_config("cbam_resnet", ["--config.optimizer.clip_norm=None"])
    assert config.optimizer.clip_norm is None
    assert config.optimizer.get_type("clip_norm") is float
    assert config.is_locked
    assert config.optimizer.is_locked


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("augment", r"^--config.augment=None: a section, must be one of its keys$"),
        ("sed", r"^--config.sed: no such key; did you mean 'seed'"),
        ("seed.x", r"^--config.seed.x: no such key"),
    ],
)
def test_none_of_no_key_is_refused(key, message):
    with pytest.raises(UserError, match=message):
        load_config("canet", [f"--config.{key}=None"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("import no_such_module", "line 1: ModuleNotFoundError: No module named 'no_"),
        ("\ndef get_config(:", "line 2: SyntaxError"),
        ("x = 1", "has no function get_config"),
        ("def get_config():\n    return {}['a']", "line 2: KeyError: 'a'"),
        ("def get_config():\n    return 1", "get_config returns int, must be a Config"),
        ("def get_config():\n    raise ValueError('one\\ntwo')", "one$"),
        ("import os\nos.remove('/nowhere/x')", "line 2: FileNotFoundError"),
    ],
)
def test_an_error_of_a_users_file_is_one_line_that_says_where(
    content, message, tmp_path
):
    path = tmp_path / "local.py"
    path.write_text(content)
    with pytest.raises(UserError, match=f"^--config={path}: {message}") as raised:
        load_config(str(path))
    assert "\n" not in str(raised.value)


def test_a_users_file_imports_what_lies_beside_it(tmp_path, monkeypatch):
    (tmp_path / "beside_it.py").write_text("SEED = 5")
    (tmp_path / "local.py").write_text(
        "import beside_it\nfrom jaxattn.config.recipe import recipe\n"
        "def get_config(): return recipe(seed=beside_it.SEED)"
    )
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert load_config("local.py").seed == 5
    assert sys.path == before


def test_a_run_starts_from_the_config_of_another(two_epochs):
    """The whole config is that of the run, so the losses are."""
    path = two_epochs / "config.json"
    config = load_config(str(path), ["--config.data.path=None"])
    expected = smoke.get_config()
    expected.num_epochs = 2
    assert config.to_dict() == expected.to_dict()
    assert load_config(str(path), ["--config.log.every_steps=7"]).log.every_steps == 7
    assert load_config(str(path), ["--config.init_from=w"]).init_from == "w"


@pytest.mark.parametrize(
    ("version", "name"),
    [(None, "multi_kernel_eca"), ("0.1.0", "multi_kernel_eca"), ("0.2.0", "eca")],
)
def test_eca_of_an_early_run_is_that_of_three_kernels(version, name, tmp_path):
    """And stays what it says where it is of ECA-Net."""
    record = {"model": {"name": "resnet18", "attention": "eca"}, "dataset": {}}
    record |= {"versions": {"jaxattn": version}} if version else {}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(record))
    config = load_config(str(path))
    assert config.model.to_dict() == {"name": "resnet18", "attention": name}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("[]", "not a run's config"),
        ("{", "Expecting property name"),
        ('{"dataset": {}, "own": {"model": "m"}}', "its run was built with objects of"),
        ('{"dataset": {}, "imported_from": "a"}', "imported weights, which no run"),
    ],
)
def test_a_json_that_is_no_runs_config_is_one_line(record, message, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(record)
    with pytest.raises(UserError, match=f"^--config={path}: {message}"):
        load_config(str(path))
