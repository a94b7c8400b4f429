"""The PyTorch networks that ours are timed beside compute what ours compute."""

import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from benchmarks.pytorch import canet, cbam, cbam_resnet, scsa  # noqa: E402
from benchmarks.pytorch import resnet as torch_resnet  # noqa: E402
from benchmarks.pytorch import sccnet as torch_sccnet  # noqa: E402
from benchmarks.pytorch.registry import (  # noqa: E402
    create_torch_block,
    create_torch_model,
)
from jaxattn import attention, create_model, from_torch, to_torch  # noqa: E402
from jaxattn.models import Slot, resnet, sccnet  # noqa: E402
from jaxattn.models.stems import STEMS  # noqa: E402

WITH_STEMS = [
    "mobilenet_v2",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet50_scsa",
    "resnet101_scsa",
    "sccnet18",
    "sccnet34",
]
WITHOUT = [
    "canet",
    "canet_light",
    "canet_pro",
    "canet_tiny",
    "efficient_resnet",
    "enhanced_efficient_resnet",
    "shufflenet_v2_x0_5",
    "vgg11",
    "vgg_a",
    "vgg_a_bn",
    "vgg_a_dropout",
]
NARROW = {"base_width": 8}
THIN = {"widths": (8, 12, 16, 20)}
SMALL_WINDOW = {"attention_kwargs": {"window_size": 2}}
# Name, keywords in either library, height and width.
NETWORKS = [
    ("canet_tiny", {"num_classes": 7}, 24, 32),
    ("canet_light", {}, 16, 24),
    ("canet", {}, 16, 24),
    ("efficient_resnet", NARROW, 13, 16),
    ("enhanced_efficient_resnet", NARROW, 13, 16),
    ("resnet18", {"num_classes": 7}, 40, 32),
    ("resnet34", {"stem": "cifar"}, 17, 16),
    ("resnet50", {}, 40, 32),
    ("resnet50_scsa", {"stem": "cifar"}, 32, 40),
    ("resnet50_scsa", SMALL_WINDOW, 64, 96),
    ("sccnet18", THIN, 40, 32),
    *(
        ("sccnet18", {**THIN, "stem": "cifar", "downsample": downsample}, 12, 16)
        for downsample in sccnet.DOWNSAMPLES
    ),
    ("mobilenet_v2", {"stem": "cifar"}, 16, 24),
    ("shufflenet_v2_x0_5", {}, 32, 40),
    ("vgg11", {}, 33, 64),
    ("vgg_a", {"width": 8, "num_classes": 7}, 32, 40),
    ("vgg_a_bn", {"width": 8}, 32, 40),
    ("vgg_a_dropout", {"width": 8}, 32, 40),
]
SCSA_KWARGS = {"window_size": 2}
# Ours, theirs, and the channels of the input.
BLOCKS = {
    "scc": (
        attention.SCC(12, 5, 2, mask_prob=0.0),
        lambda: torch_sccnet.SCC(8, 12, 5, 2, mask_prob=0.0),
        8,
    ),
    "scsa": (
        attention.SCSA(head_num=2, window_size=3),
        lambda: scsa.SCSA(16, head_num=2, window_size=3),
        16,
    ),
    "cbam": (attention.CBAM(4, 5), lambda: cbam.CBAM(16, 4, 5), 16),
    "eca": (attention.MultiKernelECA(), canet.MultiKernelECA, 16),
    "spatial_gate": (attention.SpatialGate(5), lambda: canet.SpatialGate(5), 16),
    "competitive_attention": (
        attention.CompetitiveAttention(),
        lambda: canet.CompetitiveAttention(16),
        16,
    ),
    "att_res_block": (
        attention.AttResBlock(16, 2, spatial_kernel_size=5),
        lambda: canet.AttResBlock(8, 16, 2, 5),
        8,
    ),
    "attention_residual_block": (
        attention.AttentionResidualBlock(16, 2),
        lambda: cbam_resnet.AttentionResidualBlock(8, 16, 2),
        8,
    ),
    "channel_attention_block": (
        attention.ChannelAttentionBlock(16),
        lambda: cbam_resnet.ChannelAttentionBlock(16, 16),
        16,
    ),
    "basic_block": (
        resnet.BasicBlock(16, 2),
        lambda: torch_resnet.BasicBlock(8, 16, 2),
        8,
    ),
    "bottleneck_scsa": (
        resnet.Bottleneck(
            64,
            slot=Slot(functools.partial(attention.SCSA, **SCSA_KWARGS), "inside"),
        ),
        lambda: torch_resnet.Bottleneck(24, 64, scsa=SCSA_KWARGS),
        24,
    ),
    "scc_block": (
        sccnet.SCCBlock(12, 2, "scc3", mask_prob=0.0),
        lambda: torch_sccnet.SCCBlock(8, 12, 2, "scc3", mask_prob=0.0),
        8,
    ),
}
# A normalisation follows, which takes a constant off again.
ZERO_GRADIENTS = [("att_res_block", "downsample.1.bias")]
# What the modes of execution are tested with: small, but no stride meets a 1x1 map, of
# which PyTorch's bfloat16 kernel gradient on CPUs is wrong (2.13).
VARIANTS = {
    "canet": lambda: canet.CANet(width=16),
    "enhanced_efficient_resnet": lambda: cbam_resnet.EnhancedEfficientResNet(**NARROW),
    "resnet_scsa": lambda: torch_resnet.ResNet(
        (1, 1, 1, 1), stem="cifar", bottleneck=True, scsa=SCSA_KWARGS
    ),
    "sccnet": lambda: torch_sccnet.SCCNet((1, 1, 1, 1), stem="cifar", **THIN),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Keeps threads from waiting, busily, for one that another process keeps off."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=VARIANTS)
def variant(request):
    return randomised(VARIANTS[request.param])


def nhwc(x):
    return x.numpy().transpose(0, 2, 3, 1)


def randomised(make):
    """A module none of whose parameters or statistics has a value that does nothing."""
    torch.manual_seed(0)
    module = make()
    for part in module.modules():
        if isinstance(part, torch.nn.Conv2d) and part.groups == 1:
            torch.nn.init.kaiming_normal_(part.weight)
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.2)
            part.running_var.uniform_(0.5, 1.5)
        if isinstance(part, torch.nn.BatchNorm2d | torch.nn.GroupNorm):
            torch.nn.init.uniform_(part.weight, 0.5, 1.5)
            torch.nn.init.normal_(part.bias, 0, 0.2)
        if isinstance(part, canet.MultiKernelECA):
            torch.nn.init.uniform_(part.w, 0.5, 1.5)
    return module


def arrays(module):
    return {name: value.numpy().copy() for name, value in module.state_dict().items()}


def assert_close(actual, expected, relative):
    """Within `relative` of the largest absolute value."""
    atol = relative * np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)


@pytest.mark.parametrize(("name", "kwargs", "height", "width"), NETWORKS)
def test_logits_are_ours(name, kwargs, height, width):
    theirs = randomised(lambda: create_torch_model(name, **kwargs)).eval()
    x, ours = torch.randn(2, 3, height, width), create_model(name, **kwargs)
    with torch.inference_mode():
        expected = theirs(x).numpy()
    variables = from_torch(ours, arrays(theirs), nhwc(x))
    logits = jax.jit(functools.partial(ours.apply, train=False))(variables, nhwc(x))
    # The logits are about the image.
    assert np.abs(expected[0] - expected[1]).max() > 0.01 * np.abs(expected).max()
    # Rounding differs by 3e-6. A single tensor that is off by 2 % moves the logits by
    # 1e-4, or in a network of 50 layers by 1e-5; the blocks are tested by themselves.
    assert_close(logits, expected, 2e-5)


@pytest.mark.parametrize("block", BLOCKS)
def test_training_gradients_are_ours(block):
    ours, make, channels = BLOCKS[block]
    theirs, x = randomised(make).train(), torch.randn(2, channels, 8, 10)
    variables = from_torch(ours, arrays(theirs), nhwc(x))
    x.requires_grad = True
    y = theirs(x)
    cotangent = torch.randn(y.shape)
    (y * cotangent).sum().backward()

    @jax.jit
    def gradients(variables, x):
        def loss(params, x):
            y, updated = ours.apply(
                {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
            )
            return jnp.sum(y * nhwc(cotangent)), (y, updated)

        return jax.grad(loss, (0, 1), has_aux=True)(variables["params"], x)

    (params, x_gradient), (output, updated) = gradients(variables, nhwc(x.detach()))
    assert_close(output, nhwc(y.detach()), 2e-5)
    assert_close(x_gradient, nhwc(x.grad), 1e-4)
    actual = to_torch(ours, {"params": params})
    expected = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        if (block, name) not in ZERO_GRADIENTS:
            assert np.abs(gradient).max() > 1e-3, name
            assert_close(actual[name], gradient, 1e-4)
    statistics = to_torch(ours, {"params": params, **updated}).items()
    for name, value in statistics:
        if "running" in name:
            assert_close(value, arrays(theirs)[name], 1e-5)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        *((name, {}) for name in WITHOUT),
        *((name, {"stem": stem}) for name in WITH_STEMS for stem in STEMS),
    ],
)
def test_names_and_shapes_are_ours(name, kwargs):
    with torch.device("meta"):
        state = create_torch_model(name, num_classes=100, **kwargs).state_dict()
    state = {k: np.broadcast_to(np.float32(0), v.shape) for k, v in state.items()}
    size = 32 if name.startswith("vgg") else 224
    example = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    from_torch(create_model(name, num_classes=100, **kwargs), state, example)


def test_deeper_scsa_has_its_recipes_dropout():
    with torch.device("meta"):
        net = create_torch_model("resnet101_scsa", **SMALL_WINDOW)
    blocks = [m for m in net.modules() if isinstance(m, scsa.SCSA)]
    assert {m.dropout.p for m in blocks} == {0.1}
    assert len(blocks) == 33


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("SCC 3x3", attention.SCC(32, 3)),
        ("SCC 5x5", attention.SCC(32, 5)),
        ("SCSA", attention.SCSA()),
        ("CBAM", attention.CBAM()),
        ("MultiKernelECA", attention.MultiKernelECA()),
        ("SpatialGate", attention.SpatialGate()),
        ("CompetitiveAttention", attention.CompetitiveAttention()),
        ("AttResBlock", attention.AttResBlock(32)),
        ("AttentionResidualBlock", attention.AttentionResidualBlock(32)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_block_by_name_is_ours_by_default(name, ours):
    theirs = randomised(lambda: create_torch_block(name, 32)).eval()
    x = torch.randn(2, 32, 8, 10)
    with torch.inference_mode():
        expected = nhwc(theirs(x))
    variables = from_torch(ours, arrays(theirs), nhwc(x))
    output = jax.jit(functools.partial(ours.apply, train=False))(variables, nhwc(x))
    assert_close(output, expected, 2e-5)


def test_plain_block_is_a_convolution_of_its_size():
    block = create_torch_block("conv 5x5", 6)
    assert block[0].weight.shape == (6, 6, 5, 5)
    assert block(torch.zeros(2, 6, 4, 4)).shape == (2, 6, 4, 4)


def test_unknown_name_names_the_choices():
    with pytest.raises(ValueError, match=r"name='resnet19': choices: .*resnet18"):
        create_torch_model("resnet19")
    with pytest.raises(ValueError, match=r"name='ECA': choices: .*MultiKernelECA"):
        create_torch_block("ECA", 16)


@pytest.mark.parametrize("largest", [0, 1, 2])
def test_forcing_is_uniform_over_branches(largest):
    scc = torch_sccnet.SCC(1, 4, 5, mask_prob=0.1).train()
    with torch.no_grad():
        for parameter in scc.parameters():
            parameter.zero_()
        scc.bias[largest] = 1  # wins where nothing is forced
        scc.alpha.fill_(-torch.inf)  # leaves beta, the number of the branch
        scc.beta.copy_(torch.arange(3).reshape(3, 1, 1, 1))
        torch.manual_seed(0)
        branch = scc(torch.zeros(4, 1, 100, 100)).flatten().long()
    shares = torch.bincount(branch, minlength=3) / len(branch)
    expected = torch.full((3,), 0.1)
    expected[largest] = 0.8
    # The deviation of a share of 160,000 is at most 0.001.
    torch.testing.assert_close(shares, expected, rtol=0, atol=0.005)


def test_layout_does_not_matter(variant):
    x = torch.randn(2, 3, 16, 16)
    with torch.inference_mode():
        expected = variant.eval()(x)
        variant.to(memory_format=torch.channels_last)
        logits = variant(x.contiguous(memory_format=torch.channels_last))
    assert_close(logits.numpy(), expected.numpy(), 2e-5)


def test_trains_under_autocast(variant):
    variant.train()
    with torch.autocast("cpu", torch.bfloat16):
        logits = variant(torch.randn(4, 3, 16, 16))
        loss = torch.nn.functional.cross_entropy(logits, torch.arange(4))
    loss.backward()
    assert logits.dtype == torch.bfloat16
    for parameter in variant.parameters():
        assert parameter.grad.isfinite().all()
        assert parameter.grad.dtype == torch.float32


def test_is_one_graph_to_the_compiler(variant):
    x = torch.randn(4, 3, 16, 16)
    compiled = torch.compile(variant.eval(), backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), variant(x))
    variant.train()
    compiled(x).sum().backward()
