"""Published weights, in files, on a hub, with torchvision; what starts from them."""

import functools
import json
import sys
import time
import types

import chex
import hub_server
import jax
import jax.numpy as jnp
import numpy as np
import published_states
import pytest
import smoke
from tiers import full_from

from jaxattn import UserError, create_model, from_torch, to_torch, web
from jaxattn.cli import main
from jaxattn.data import load_data
from jaxattn.data.datasets.cifar import CIFAR10_CLASSES
from jaxattn.data.preprocess import Frame, Preprocess
from jaxattn.inference import hub
from jaxattn.inference.torch_files import export_torch, import_torch
from jaxattn.models import published
from jaxattn.models.published import read_published
from jaxattn.models.safetensors_files import read_safetensors, write_safetensors
from jaxattn.training import loop
from jaxattn.training.checkpoints.pretrained import Pretrained
from jaxattn.training.checkpoints.trained import load_trained
from jaxattn.training.options import Options
from jaxattn.training.run import build
from jaxattn.weights import imagenet_classes

# The smallest network of the kind.
SMALL = {"widths": (16, 16, 16, 16)}
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
# Name and keywords of the network here that a published one is.
NETWORKS = {
    "torchvision/resnet18": ("resnet18", {}),
    "torchvision/resnet50": ("resnet50", {}),
    "torchvision/mobilenet_v2": ("mobilenet_v2", {}),
    "timm/resnet50": ("resnet50", {}),
    "timm/mobilenetv2_100": ("mobilenet_v2", {}),
    "timm/seresnet50": (
        "resnet50",
        {"attention": "se", "attention_kwargs": {"biases": True}},
    ),
    "timm/resnet18_eca": ("resnet18", {"attention": "eca"}),
}

PLAIN = [network for network, (_, kwargs) in NETWORKS.items() if not kwargs]


def small_state(num_classes=1000, **kwargs):
    """A state dict of the small network, random."""
    return published_states.fill(small_shapes(num_classes, **kwargs))


@functools.cache
def small_shapes(num_classes, **kwargs):
    module = create_model("resnet10", num_classes, **SMALL, **kwargs)
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    abstract = jax.eval_shape(module.init, jax.random.key(0), x)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), abstract)
    return {name: array.shape for name, array in to_torch(module, zeros).items()}


@pytest.fixture(scope="module")
def data():
    return load_data("synthetic", image_size=32, num_train=8, num_test=8, num_classes=7)


@pytest.fixture
def start(data, tmp_path):
    """Starts a small network from a state dict; returns what it got, and the notes."""

    def from_state(state, num_classes=7, preprocess=None, **kwargs):
        path = tmp_path / "start.safetensors"
        write_safetensors(path, state)
        model = create_model("resnet10", num_classes, **SMALL, **kwargs)
        notes = []
        pretrained = Pretrained(str(path), model, data, preprocess)
        return pretrained.read(notes.append), notes

    return from_state


def modules(leaves):
    return {path[1] for path in leaves}


# Real names and shapes --------------------------------------------------------------


def test_names_and_shapes_are_those_of_the_network():
    network = "timm/mobilenetv2_100"
    state, (name, kwargs) = published_states.random_state(network), NETWORKS[network]
    x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    variables = from_torch(create_model(name, 1000, **kwargs), state, x)
    counters = sum(key.endswith("num_batches_tracked") for key in state)
    assert len(jax.tree.leaves(variables)) == len(state) - counters


def slow_but(networks, *kept):
    """Networks as parameters: those kept in tier full, the others in slow."""
    tiers = {network: "full" if network in kept else "slow" for network in networks}
    return [pytest.param(n, marks=getattr(pytest.mark, t)) for n, t in tiers.items()]


@pytest.mark.parametrize(
    "network",
    slow_but(
        NETWORKS, "torchvision/resnet18", "timm/mobilenetv2_100", "timm/seresnet50"
    ),
)
def test_logits_are_pytorchs(network, tmp_path):
    state, (name, kwargs) = published_states.random_state(network), NETWORKS[network]
    write_safetensors(tmp_path / "a.safetensors", state)
    options = {"model": name, "model_kwargs": kwargs}
    import_torch(tmp_path / "a.safetensors", tmp_path / "run", **options)
    trained = load_trained(tmp_path / "run")
    logits = jax.jit(trained.model.apply)(trained.variables, published_states.images())
    expected = published_states.logits(network)
    # Rounding grows over some fifty layers; with SE's gates PyTorch's own float32 is
    # 1.2e-4 off these logits, which are of float64, and up to 5e-6 else.
    atol = (4e-4 if "attention" in kwargs else 2e-5) * np.abs(expected).max()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("network", slow_but(PLAIN, "torchvision/resnet50"))
def test_published_network_starts_one_with_attention(network, data, tmp_path):
    state, (name, _) = published_states.random_state(network), NETWORKS[network]
    write_safetensors(tmp_path / "a.safetensors", state)
    model, notes = create_model(name, 7, attention="cbam"), []
    origin = str(tmp_path / "a.safetensors")
    leaves = Pretrained(origin, model, data).read(notes.append)
    counters = sum(key.endswith("num_batches_tracked") for key in state)
    assert len(leaves) == len(state) - counters - 2  # of the head
    assert "the head starts anew" in notes[0]
    assert "it is not there: " in notes[1]
    blocks = {key.rpartition(".bn2.")[0] for key in state if ".bn2." in key}
    if name != "mobilenet_v2":
        assert notes[1].count(".attn") == len(blocks - {""})


# What starts from weights -----------------------------------------------------------


def test_what_is_new_is_left_out_and_named(start):
    leaves, notes = start(small_state(), attention="cbam")
    assert not any("attn" in path for path in leaves)
    assert "fc" not in modules(leaves)
    assert modules(leaves) == {"conv1", "bn1", *(f"layer{i}.0" for i in (1, 2, 3, 4))}
    assert notes[0].endswith("for the classes here are 0, 1, 2, ...")
    assert notes[1] == (
        "starting as initialised, for it is not there: layer1.0.attn, layer2.0.attn,"
        " layer3.0.attn, layer4.0.attn"
    )
    assert len(notes) == 2


def test_attention_that_is_there_is_taken(start):
    leaves, notes = start(small_state(7, attention="cbam"), attention="cbam")
    assert sum("attn" in path for path in leaves) == 4 * 3
    assert notes == [notes[0]]
    assert notes[0].endswith("its head too")


@pytest.mark.full
def test_attention_of_some_blocks_is_taken(start):
    state = small_state(7, attention="cbam")
    for name in [n for n in state if n.startswith("layer2.0.attn")]:
        del state[name]
    leaves, notes = start(state, attention="cbam")
    assert sum("attn" in path for path in leaves) == 3 * 3
    assert notes[1].endswith(": layer2.0.attn")


def test_weights_without_a_head_are_taken(start):
    state = {k: v for k, v in small_state(7).items() if not k.startswith("fc.")}
    leaves, notes = start(state)
    assert "fc" not in modules(leaves)
    assert "the head starts anew" in notes[0]


@pytest.mark.parametrize(
    ("change", "kwargs", "message"),
    full_from(
        2,
        [
            # A part of a module is no module.
            (
                lambda s: s.pop("layer1.0.attn.spatial_attention.conv.weight"),
                {},
                "1 differ, such as",
            ),
            (
                lambda s: s.pop("layer1.0.bn1.bias"),
                {},
                r"missing: layer1\.0\.bn1\.bias",
            ),
            (
                lambda s: s,
                {"attention": None},
                r"unexpected: layer1\.0\.attn\.channel_attention",
            ),
            (lambda s: s.update(x=np.ones(1)), {}, "unexpected: x"),
            (
                lambda s: s.update({"conv1.weight": np.ones((16, 1, 7, 7))}),
                {},
                r"wrong shape: conv1.weight \(16, 1, 7, 7\), not \(16, 3, 7, 7\)",
            ),
        ],
    ),
)
def test_all_else_must_fit(start, change, kwargs, message):
    state = small_state(7, attention="cbam")
    change(state)
    with pytest.raises(UserError, match=message) as caught:
        start(state, **{"attention": "cbam", **kwargs})
    assert "\n" not in str(caught.value)
    assert "init_from=" in str(caught.value)


def test_other_normalisation_is_told(start, tmp_path):
    config = {"architecture": "resnet10", "pretrained_cfg": {
        "input_size": [3, 224, 224], "crop_pct": 0.95, **IMAGENET,
    }}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    frame = Frame((32, 32, 3))
    mean, std = IMAGENET["mean"], IMAGENET["std"]
    same = Preprocess(frame=frame, mean=mean, std=std)
    assert len(start(small_state(), preprocess=same)[1]) == 1
    other = Preprocess(frame=frame, mean=(0.5,), std=std)
    _, notes = start(small_state(), preprocess=other)
    assert notes[1:] == [
        "normalize.mean is (0.5, 0.5, 0.5), and was (0.485, 0.456, 0.406) where the"
        " weights are from: --config.normalize.mean='(0.485, 0.456, 0.406)' is as it"
        " was"
    ]


@pytest.mark.full
def test_published_network_is_fine_tuned_on_photos(tmp_path):
    smoke.write_photos(tmp_path / "photos")
    start = tmp_path / "start"
    start.mkdir()
    write_safetensors(start / "model.safetensors", small_state())
    config = smoke.get_config("folder")
    attention = {"attention": "cbam", "attention_init": "identity"}
    config.unlock()
    config.model = {"name": "resnet10", **SMALL, **attention}
    config.lock()
    config.data.path = str(tmp_path / "photos")
    config.num_epochs = 1
    config.init_from = str(start)
    run = build(config, devices=smoke.one_device())
    state = run.init_state()
    given = from_torch(
        create_model("resnet10", 1000, **SMALL),
        small_state(),
        jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32),
    )
    for name, leaves in given["params"].items():
        if name != "fc":
            started = {k: v for k, v in state.params[name].items() if k in leaves}
            chex.assert_trees_all_equal(started, leaves)
    results = loop.train_and_evaluate(
        config, tmp_path / "run", devices=smoke.one_device()
    )
    assert 0 <= results["test_accuracy"] <= 1
    trained = load_trained(tmp_path / "run", weights="last")
    for block in ("layer1.0", "layer4.0"):
        assert trained.variables["params"][block]["attn_scale"]["gamma"] != 0


# Importing --------------------------------------------------------------------------


def write_small(tmp_path, num_classes=1000, config=None):
    write_safetensors(tmp_path / "a.safetensors", small_state(num_classes))
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path / "a.safetensors"


def imported(path, tmp_path, **options):
    import_torch(path, tmp_path / "run", model_kwargs=SMALL, **options)
    return load_trained(tmp_path / "run")


@pytest.mark.parametrize(
    ("num_classes", "names"),
    full_from(
        1, [(1000, imagenet_classes()), (10, CIFAR10_CLASSES), (3, ("0", "1", "2"))]
    ),
    ids=["ImageNet", "CIFAR-10", "other"],
)
def test_classes_and_images_are_guessed(tmp_path, num_classes, names):
    path = write_small(tmp_path, num_classes)
    trained = imported(path, tmp_path, model="resnet10")
    assert trained.class_names == names
    assert trained.preprocess.frame == Frame((224, 224, 3), 256)
    assert list(trained.preprocess.mean) == IMAGENET["mean"]


def test_given_values_come_before_guesses(tmp_path):
    path = write_small(tmp_path, 3)
    options = {"class_names": "abc", "image_size": 64, "std": (0.5,)}
    trained = imported(path, tmp_path, model="resnet10", **options)
    assert trained.class_names == ("a", "b", "c")
    assert trained.preprocess.frame == Frame((64, 64, 3), 73)
    assert list(trained.preprocess.std) == [0.5]


@pytest.mark.full
def test_network_for_small_images_gets_them(tmp_path):
    path = write_small(tmp_path, 3)
    kwargs = {"model_kwargs": {**SMALL, "stem": "cifar"}}
    state = small_state(3, stem="cifar")
    write_safetensors(path, state)
    import_torch(path, tmp_path / "run", model="resnet10", **kwargs)
    assert load_trained(tmp_path / "run").preprocess.frame == Frame((32, 32, 3))


def test_description_of_timm_is_read(tmp_path):
    described = {"input_size": [3, 288, 288], "mean": [0.5] * 3, "std": [0.25] * 3}
    config = {"architecture": "resnet10", "pretrained_cfg": {**described}}
    trained = imported(write_small(tmp_path, config=config), tmp_path)
    assert trained.config["model"]["name"] == "resnet10"
    assert trained.preprocess.frame == Frame((288, 288, 3), 329)
    assert list(trained.preprocess.mean) == [0.5] * 3
    timms = published._from_timm("mobilenetv2_100", {**described})
    assert timms["model"] == {"name": "mobilenet_v2"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "model=None: must be given"),
        ({"architecture": "rexnet", "pretrained_cfg": {}}, "does not describe weights"),
        ({"model_type": "resnet"}, "model=None: must be given"),  # of others
    ],
)
def test_unknown_network_must_be_named(tmp_path, config, message):
    with pytest.raises(UserError, match=message):
        imported(write_small(tmp_path, config=config), tmp_path)
    assert not (tmp_path / "run").exists()


def test_imagenet_has_a_thousand_names():
    names = imagenet_classes()
    assert len(set(names)) == 1000
    assert (names[0], names[207], names[999]) == (
        "tench", "golden retriever", "toilet tissue",
    )  # fmt: skip


# Files ------------------------------------------------------------------------------


@pytest.fixture
def no_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)


@pytest.mark.usefixtures("no_torch")
def test_safetensors_go_out_and_in_without_pytorch(tmp_path):
    path = write_small(tmp_path, 3)
    options = {"class_names": ("cat", "dog", "eel"), "mean": (0.5,), "image_size": 64}
    trained = imported(path, tmp_path, model="resnet10", **options)
    out = tmp_path / "out" / "model.safetensors"
    export_torch(trained, out)
    before, after = read_safetensors(path), read_safetensors(out)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[key], after[key]) for key in before)
    import_torch(out, tmp_path / "again")
    again = load_trained(tmp_path / "again")
    assert again.class_names == ("cat", "dog", "eel")
    assert again.preprocess == trained.preprocess
    assert again.model == trained.model


def test_file_says_that_it_is_for_pytorch(tmp_path):
    write_safetensors(tmp_path / "a.safetensors", {"x": np.ones(2, np.float32)})
    content = (tmp_path / "a.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert header["__metadata__"] == {"format": "pt"}


def stored(kind, content):
    header = {"x": {"dtype": kind, "shape": [2], "data_offsets": [0, len(content)]}}
    encoded = json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + content


@pytest.mark.parametrize(
    ("kind", "dtype"), [("BF16", jnp.bfloat16), ("F16", np.float16), ("F64", "f8")]
)
def test_every_precision_is_read_as_float32(tmp_path, kind, dtype):
    content = np.array([1.5, -2], dtype).tobytes()
    (tmp_path / "a.safetensors").write_bytes(stored(kind, content))
    array = read_safetensors(tmp_path / "a.safetensors")["x"]
    assert array.dtype == np.float32
    assert array.tolist() == [1.5, -2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a file of safetensors"),
        (b"PK\3\4 no such file", "not a file of safetensors"),
        (stored("F32", b"1234"), "not a file of safetensors"),
        (stored("F8_E4M3", b"12"), "holds numbers of type F8_E4M3, not weights"),
        (None, "cannot be read"),
    ],
)
def test_damaged_file_is_one_line(tmp_path, content, message):
    if content is not None:
        (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_safetensors(tmp_path / "a.safetensors")
    assert "\n" not in str(caught.value)


def test_without_safetensors_the_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(UserError, match=r"pip install safetensors$"):
        read_safetensors(tmp_path / "a.safetensors")


def test_config_of_a_run_is_not_overwritten(tmp_path):
    trained = imported(write_small(tmp_path, 3), tmp_path, model="resnet10")
    before = (tmp_path / "run" / "config.json").read_text()
    with pytest.raises(UserError, match="is there already, and of another kind"):
        export_torch(trained, tmp_path / "run" / "model.safetensors")
    assert (tmp_path / "run" / "config.json").read_text() == before
    for name, file_format in (("a.pt", "safetensors"), ("a.pth", "gguf")):
        with pytest.raises(UserError, match=r"must be a name|choices: pth"):
            export_torch(trained, tmp_path / "new" / name, file_format)


# A hub ------------------------------------------------------------------------------


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A hub on this machine, whose cache is a folder."""
    constants = pytest.importorskip("huggingface_hub.constants")
    with hub_server.serving() as serving:
        template = serving.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", serving.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", "token")
        yield serving


@pytest.fixture
def files(tmp_path):
    """What a repository with the small network holds."""
    content = write_small(tmp_path).read_bytes()
    config = {"architecture": "resnet10", "pretrained_cfg": {
        "input_size": [3, 224, 224], **IMAGENET,
    }}  # fmt: skip
    return {
        "model.safetensors": content,
        "config.json": json.dumps(config).encode(),
        "half/weights.safetensors": content,
    }


def test_repository_is_read_once(server, files, data):
    server.repositories["me/net"] = files
    model = create_model("resnet10", 7, attention="cbam", **SMALL)
    pretrained = Pretrained("hf:me/net", model, data)
    first = pretrained.read(lambda _: None)
    server.asked.clear()
    server.shutdown()
    again = pretrained.read(lambda _: None)
    assert server.asked == []
    assert all(np.array_equal(first[path], again[path]) for path in first)
    config = read_published("hf:me/net").config
    assert config["dataset"] == {"image_shape": [224, 224, 3], "resize_px": 256}


def test_file_of_a_repository_is_read(server, files, tmp_path):
    server.repositories["me/net"] = files
    state = read_published("hf:me/net/half/weights.safetensors").state
    assert state.keys() == small_state().keys()
    import_torch("hf:me/net", tmp_path / "run", model_kwargs=SMALL)
    assert load_trained(tmp_path / "run").class_names == imagenet_classes()


@pytest.mark.parametrize(
    ("origin", "message"),
    [
        ("hf:me/none", "the hub has no such repository, or hides it"),
        ("hf:me/net/a.safetensors", r"holds no a\.safetensors; .*choices: model\.safe"),
        ("hf:me/empty", "holds no model.safetensors or pytorch_model.bin"),
    ],
)
def test_what_a_hub_lacks_is_one_line(server, files, tmp_path, origin, message):
    server.repositories |= {"me/net": files, "me/empty": {"README.md": b""}}
    with pytest.raises(UserError, match=message) as caught:
        import_torch(origin, tmp_path / "run", model="resnet10")
    assert str(caught.value).startswith(f"{origin}: ")
    assert "\n" not in str(caught.value)


def test_hub_out_of_reach_is_said_in_time(server, data, monkeypatch):
    server.shutdown()  # which keeps the socket, and never answers
    monkeypatch.setattr(web, "ANSWER_TIMEOUT_S", 0.1)
    start = time.monotonic()
    model = create_model("resnet10", 7, **SMALL)
    message = r"^init_from=hf:me/net: not in the cache, and the hub cannot be reached"
    with pytest.raises(UserError, match=message):
        Pretrained("hf:me/net", model, data).read(print)
    assert time.monotonic() - start < 5


def test_without_the_hubs_library_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install huggingface_hub$"):
        read_published("hf:me/net")


def test_pushed_network_comes_back(server, tmp_path):
    path = write_small(tmp_path, 3)
    names = ("cat", "dog", "eel")
    trained = imported(path, tmp_path, model="resnet10", class_names=names)
    folder = tmp_path / "hub"
    hub.write_repository(trained, folder, "hf:me/new")
    (folder / "secret.txt").write_text("not for others")
    url = hub.push(folder, "hf:me/new", private=True)
    assert url.startswith(f"{server.address}/me/new/commit/")
    files = server.repositories["me/new"]
    assert set(files) == {"model.safetensors", "config.json", "README.md"}
    assert server.created["visibility"] == "private"
    import_torch("hf:me/new", tmp_path / "again")
    again = load_trained(tmp_path / "again")
    assert again.class_names == names
    for mine, theirs in zip(
        jax.tree.leaves(trained.variables),
        jax.tree.leaves(again.variables),
        strict=True,
    ):
        np.testing.assert_array_equal(mine, theirs)
    assert str(tmp_path) not in files["config.json"].decode()


def test_commands_take_a_network_out_and_in(server, tmp_path, capsys):
    imported(write_small(tmp_path, 3), tmp_path, model="resnet10")
    run, out = str(tmp_path / "run"), str(tmp_path / "out" / "a.safetensors")
    assert main(["export-torch", "--workdir", run, "--out", out]) == 0
    assert main(["push", "--workdir", run, "--to", "hf:me/new"]) == 0
    assert f"uploaded: {server.address}/me/new/commit/" in capsys.readouterr().out
    again = str(tmp_path / "again")
    assert main(["import-torch", "hf:me/new", "--workdir", again]) == 0
    assert capsys.readouterr().out == (
        f"resnet10, 21,987 parameters, in {again}; 3 classes: 0, 1, 2; images are 224 x"
        " 224 pixels, normalised by mean (0.485, 0.456, 0.406) and std (0.229, 0.224,"
        " 0.225)\n"
    )
    assert main(["push", "--workdir", run, "--to", "me/new"]) == 2
    assert "--to=me/new: must be hf:OWNER/NAME" in capsys.readouterr().err


def test_card_has_what_a_hub_asks_for(tmp_path):
    trained = imported(write_small(tmp_path, 3), tmp_path, model="resnet10")
    trained.config.update(data={"name": "photos"}, seed=3)
    hub.write_repository(trained, tmp_path / "hub", "hf:me/a", {"test_accuracy": 0.5})
    assert read_published(str(tmp_path / "hub")).config["model"]["name"] == "resnet10"
    _, head, body = (tmp_path / "hub" / "README.md").read_text().split("---\n", 2)
    assert "library_name: jaxattn\npipeline_tag: image-classification\n" in head
    assert "--config.init_from=hf:me/a`" in body
    assert "Data set `photos`, 0 steps, seed 3." in body
    assert "Test accuracy 50.00 %" in body


@pytest.mark.usefixtures("server")
def test_refused_upload_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "")
    (tmp_path / "README.md").write_text("")
    with pytest.raises(
        UserError, match=r"the hub refuses it .*401.*`hf auth login`"
    ) as e:
        hub.push(tmp_path, "hf:me/new")
    assert "\n" not in str(e.value)


# torchvision ------------------------------------------------------------------------


@pytest.fixture
def torchvision(monkeypatch, tmp_path):
    """A stand-in: PyTorch need not be here."""

    class Tensor:
        def __init__(self, array):
            self.array = array

        def numpy(self):
            return self.array

    class Weights:
        url = "http://localhost/resnet10-0123.pth"

        def get_state_dict(self, **_):
            return {name: Tensor(array) for name, array in small_state().items()}

        def transforms(self):
            return types.SimpleNamespace(crop_size=[224], resize_size=[232], **IMAGENET)

    def get_weight(name):
        if name != "ResNet10_Weights.V1":
            raise KeyError(name.partition(".")[2])
        return Weights()

    models = types.ModuleType("torchvision.models")
    models.list_models = lambda _: ["resnet10", "vit_b_16"]
    models.get_model_weights = lambda _: types.SimpleNamespace(DEFAULT=Weights())
    models.get_weight = get_weight
    torch = types.ModuleType("torch")
    torch.hub = types.SimpleNamespace(get_dir=lambda: str(tmp_path))
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torch", torch)
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints" / "resnet10-0123.pth"


@pytest.mark.parametrize("name", full_from(1, ["resnet10", "ResNet10_Weights.V1"]))
def test_weights_of_torchvision_are_read(torchvision, tmp_path, name):
    torchvision.touch()  # else the server is asked
    trained = imported(f"torchvision:{name}", tmp_path)
    assert trained.config["model"]["name"] == "resnet10"
    assert trained.class_names == imagenet_classes()
    assert trained.preprocess.frame == Frame((224, 224, 3), 232)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet", "did you mean 'resnet10'.* choices: resnet10$"),
        ("ResNet10_Weights.V2", "torchvision has no such weights"),
        ("resnet10", "resnet10-0123.pth cannot be reached"),
    ],
)
@pytest.mark.usefixtures("torchvision")
def test_what_torchvision_lacks_is_one_line(tmp_path, monkeypatch, name, message):
    monkeypatch.setattr(published, "unreachable", lambda _: "no route")
    with pytest.raises(UserError, match=message):
        import_torch(f"torchvision:{name}", tmp_path / "run")


@pytest.mark.usefixtures("torchvision")
def test_without_torchvision_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(UserError, match=r"pip install torchvision$"):
        read_published("torchvision:resnet18")


# Addresses --------------------------------------------------------------------------


@pytest.mark.parametrize("origin", ["hf:me", "hf:me/", "hf:/a/b", "gs://bucket/run"])
def test_wrong_address_is_refused_before_data_are_read(origin):
    with pytest.raises(UserError, match=f"^init_from={origin}: must be"):
        Options(seed=0, num_epochs=1, batch_size=1, init_from=origin)


def test_addresses_are_accepted_unread():
    for origin in (
        "hf:timm/resnet18.a1_in1k",
        "hf:a/b/c/d.pth",
        "torchvision:resnet50",
    ):
        Options(seed=0, num_epochs=1, batch_size=1, init_from=origin)


def test_from_torch_itself_accepts_no_lack():
    state = small_state(7)
    del state["fc.bias"]
    module = create_model("resnet10", 7, **SMALL)
    with pytest.raises(ValueError, match=r"missing: fc\.bias"):
        from_torch(module, state, jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))
