"""PyTorch checkpoint files; most tests need PyTorch and are skipped without it."""

import json
import pickle
import sys

import jax
import numpy as np
import pytest

from jaxattn import UserError, create_model, to_torch
from jaxattn.inference import torch_files
from jaxattn.inference.torch_files import export_torch, import_torch
from jaxattn.models.torch_weights import read_state_dict
from jaxattn.training.checkpoints.trained import load_trained

NAMES = tuple(f"class {i}" for i in range(10))
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
OPTIONS = {
    "model": "enhanced_efficient_resnet",
    "class_names": NAMES,
    "mean": MEAN,
    "std": STD,
    "model_kwargs": {"base_width": 8},
}


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.fixture
def arrays(golden):
    return golden("enhanced_resnet_bw8")


@pytest.fixture
def state_dict(torch, arrays):
    n = len("state/")
    return {
        name[n:]: torch.from_numpy(array)
        for name, array in arrays.items()
        if name.startswith("state/")
    }


def nhwc(x):
    return x.transpose(0, 2, 3, 1)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"epoch": 3, "state_dict": state, "lr": 0.1},
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {"model": {f"module.{k}": v for k, v in state.items()}},
    ],
    ids=["plain", "state_dict", "module", "model and module"],
)
def test_imported_logits_are_the_authors(torch, state_dict, arrays, tmp_path, wrap):
    torch.save(wrap(state_dict), tmp_path / "a.pth")
    count = import_torch(tmp_path / "a.pth", tmp_path / "run", **OPTIONS)
    assert count == 336_482
    trained = load_trained(tmp_path / "run")
    x = nhwc(arrays["input"])
    logits = trained.model.apply(trained.variables, x, train=False)
    scale = np.abs(arrays["output"]).max()
    np.testing.assert_allclose(logits, arrays["output"], rtol=0, atol=2e-5 * scale)
    assert trained.class_names == NAMES
    assert trained.step == 0


def test_half_precision_weights_are_accepted(torch, state_dict, tmp_path):
    half = {k: v.half() if v.is_floating_point() else v for k, v in state_dict.items()}
    torch.save(half, tmp_path / "a.pth")
    assert read_state_dict(tmp_path / "a.pth")["fc.weight"].dtype == np.float32


def test_export_gives_back_what_was_imported(torch, state_dict, tmp_path):
    torch.save(state_dict, tmp_path / "a.pth")
    import_torch(tmp_path / "a.pth", tmp_path / "run", **OPTIONS)
    export_torch(load_trained(tmp_path / "run"), tmp_path / "new" / "b.pth")
    exported = torch.load(tmp_path / "new" / "b.pth", weights_only=True)
    assert exported.keys() == state_dict.keys()
    for name, value in state_dict.items():
        assert torch.equal(exported[name], value)


def test_pytorch_computes_the_same_logits(torch):
    """A block that PyTorch builds from its own layers, loaded strictly."""
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self, i, o, stride):
            super().__init__()
            self.conv1 = nn.Conv2d(i, o, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(o)
            self.conv2 = nn.Conv2d(o, o, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(o)
            h = o // max(o // 16, 4)
            self.attention = nn.Sequential(
                nn.Conv2d(o, h, 1, bias=False),
                nn.ReLU(),
                nn.Conv2d(h, o, 1, bias=False),
            )
            self.shortcut = nn.Sequential()
            if stride > 1 or i != o:
                conv = nn.Conv2d(i, o, 1, stride, bias=False)
                self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(o))

        def forward(self, x):
            y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
            pooled = y.mean((2, 3), keepdim=True), y.amax((2, 3), keepdim=True)
            gate = sum(self.attention(p).sigmoid() for p in pooled)
            return (y * gate + self.shortcut(x)).relu()

    class Net(nn.Module):
        def __init__(self, w):
            super().__init__()
            self.conv1 = nn.Conv2d(3, w, 3, padding=1, bias=False)
            self.bn1 = nn.BatchNorm2d(w)
            self.layer1 = nn.Sequential(Block(w, 2 * w, 1), Block(2 * w, 2 * w, 1))
            self.layer2 = nn.Sequential(Block(2 * w, 4 * w, 2), Block(4 * w, 4 * w, 1))
            self.layer3 = nn.Sequential(Block(4 * w, 8 * w, 2), Block(8 * w, 8 * w, 1))
            self.fc = nn.Linear(8 * w, 10)

        def forward(self, x):
            x = self.bn1(self.conv1(x)).relu()
            x = self.layer3(self.layer2(self.layer1(x)))
            return self.fc(x.mean((2, 3)))

    model = create_model("efficient_resnet", base_width=8)
    x = np.array(jax.random.normal(jax.random.key(1), (2, 13, 16, 3)))
    variables = model.init(jax.random.key(0), x)
    net, state = Net(8).eval(), to_torch(model, variables)
    net.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in state.items()})
    with torch.no_grad():
        expected = net(torch.from_numpy(x.transpose(0, 3, 1, 2))).numpy()
    logits = model.apply(variables, x, train=False)
    np.testing.assert_allclose(logits, expected, atol=1e-5)


class Malicious:
    def __reduce__(self):
        return print, ("executed",)


def write_malicious(torch, path):
    torch.save({"fc.weight": Malicious()}, path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (write_malicious, "not a PyTorch file of plain weights"),
        (lambda _, p: p.write_bytes(pickle.dumps(Malicious())), "not a PyTorch"),
        (lambda _, p: p.write_bytes(b""), "not a PyTorch file"),
        (lambda _, p: p.write_bytes(b"PK\3\4 torn"), "not a PyTorch file"),
        (lambda torch, p: torch.save([1, 2], p), "holds no state dict"),
        (
            lambda torch, p: torch.save({"epoch": 3}, p),
            "'epoch' is a int, not a tensor",
        ),
        (lambda *_: None, "cannot be read"),
        (
            lambda torch, p: torch.save({"a": torch.ones(1)}, p),
            "missing: .*conv1.weight",
        ),
    ],
)
def test_bad_file_is_one_line_and_runs_no_code(torch, tmp_path, capsys, write, message):
    write(torch, tmp_path / "a.pth")
    with pytest.raises(UserError, match=message) as caught:
        import_torch(tmp_path / "a.pth", tmp_path / "run", **OPTIONS)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "a.pth") in str(caught.value)
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_overwritten(torch, state_dict, tmp_path):
    torch.save(state_dict, tmp_path / "a.pth")
    (tmp_path / "config.json").write_text(json.dumps({"model": {}}))
    with pytest.raises(UserError, match="holds a run already"):
        import_torch(tmp_path / "a.pth", tmp_path, **OPTIONS)


def test_without_pytorch_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"pip install torch$"):
        read_state_dict(tmp_path / "a.pth")


def test_normalization_of_published_weights():
    assert torch_files.published_normalization("enhanced_efficient_resnet")[0] == MEAN
    assert torch_files.published_normalization("canet")[0] == (0.485, 0.456, 0.406)
    assert torch_files.published_normalization("vgg_a_bn")[0] == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": (123.675, 116.28, 103.53)}, r"mean=.*divide by 255, \(0\.485, "),
        ({"std": (58.395, 57.12, 57.375)}, r"std=.*divide by 255, \(0\.229, "),
        ({"std": (0.2, 0.2)}, r"std=\(0\.2, 0\.2\): must be one number, or 3"),
    ],
)
def test_normalization_of_other_pixels_is_refused(change, message, tmp_path):
    with pytest.raises(UserError, match=message):
        import_torch(tmp_path / "no.pth", tmp_path / "run", **{**OPTIONS, **change})
