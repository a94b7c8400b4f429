"""What is drawn of a network's attention is what it multiplied with."""

import functools
import math

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiers import full_but

from jaxattn import UserError, create_model, list_models
from jaxattn.attention import (
    CBAM,
    SCC,
    SCSA,
    AttentionResidualBlock,
    AttResBlock,
    ChannelAttention,
    CompetitiveAttention,
    MultiKernelECA,
    SpatialAttention,
    SpatialGate,
)
from jaxattn.models import registry
from jaxattn.ops.conv import conv2d
from jaxattn.ops.features import FEATURE_MAP, mark_features
from jaxattn.ops.norm import BatchNorm
from jaxattn.tasks.classification.figures import title_page
from jaxattn.viz import figure_to_array, pages
from jaxattn.viz.attention_maps import (
    Attention,
    grad_cam,
    make_attend,
    panels,
    select_blocks,
)

SHAPE = (2, 8, 6, 32)


def applied(module, *, capture=False):
    """The input, the output and what the block sowed for it."""
    x = jax.random.normal(jax.random.key(0), SHAPE)
    variables = module.init(jax.random.key(1), x)
    apply = functools.partial(module.apply, variables, mutable=["intermediates"])
    out, state = apply(x, capture_intermediates=capture)
    return x, out, state["intermediates"], variables


def gates_of(sown):
    return {k: v[0] for k, v in sown.items() if k.endswith("_gate")}


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (ChannelAttention(), {"channel_gate"}),
        (MultiKernelECA(), {"channel_gate"}),
        (SpatialAttention(), {"spatial_gate"}),
        (SpatialGate(5), {"spatial_gate"}),
        (SCSA(window_size=2), {"height_gate", "width_gate", "channel_gate"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_output_is_input_times_the_gates(module, names):
    x, out, sown, _ = applied(module)
    gates = gates_of(sown)
    assert gates.keys() == names
    # Rounding: the block multiplies its gates in another order.
    chex.assert_trees_all_close(x * math.prod(gates.values()), out, rtol=1e-5)


def test_cbam_is_input_times_the_gates_of_both_halves():
    x, out, sown, _ = applied(CBAM())
    channel = sown["channel_attention"]["channel_gate"][0]
    spatial = sown["spatial_attention"]["spatial_gate"][0]
    chex.assert_trees_all_close(x * channel * spatial, out, rtol=1e-6)


@pytest.mark.full
def test_competitive_attention_is_the_sum_over_both_unit_gates():
    x, out, sown, _ = applied(CompetitiveAttention())
    u1, u2 = sown["spatial_unit_gate"][0], sown["channel_unit_gate"][0]
    chex.assert_trees_all_close(x * u1 + x * u2, out, rtol=1e-5, atol=1e-6)


@pytest.mark.full
def test_residual_block_multiplies_its_branch_with_both_gates():
    x, out, sown, _ = applied(AttentionResidualBlock(32), capture=True)
    branch = sown["bn2"]["__call__"][0]
    spatial = sown["spatial_attention"]["spatial_gate"][0]
    gated = branch * sown["channel_gate"][0] * spatial
    chex.assert_trees_all_close(nn.relu(gated + x), out, rtol=1e-5, atol=1e-6)


@pytest.mark.full
def test_canets_unit_gates_multiply_its_branches():
    _, out, sown, variables = applied(AttResBlock(32), capture=True)
    branches = [nn.relu(sown[name]["__call__"][0]) for name in ("bn1", "bn2")]
    shortcut = sown["downsample.1"]["__call__"][0]
    u1, u2 = sown["spatial_unit_gate"][0], sown["channel_unit_gate"][0]
    added = u1 * branches[0] + u2 * branches[1] + shortcut
    own = {k: v["bn3"] for k, v in variables.items() if k != "intermediates"}
    normalised = BatchNorm().apply(own, added, train=False)
    chex.assert_trees_all_close(nn.relu(normalised), out, rtol=1e-5, atol=1e-5)


def test_winner_is_the_branch_that_gave_the_output():
    x, out, sown, variables = applied(SCC(16, kernel_size=5))
    params, winner = variables["params"], sown["winner"][0]
    affine = {k: params[k].reshape(3, 16) for k in ("bias", "alpha", "beta")}
    for i in range(3):
        kernel = params["kernel"][2 - i : 3 + i, 2 - i : 3 + i]
        value = conv2d(x, kernel, padding=i) + affine["bias"][i].reshape(1, 1, 1, -1)
        gain = 1 + jnp.tanh(affine["alpha"][i])
        expected = value * gain.reshape(1, 1, 1, -1)
        expected += affine["beta"][i].reshape(1, 1, 1, -1)
        won = np.asarray(winner == i)
        assert won.any()
        # Convolutions of other shapes sum in another order.
        chex.assert_trees_all_close(out[won], expected[won], rtol=1e-4, atol=1e-4)


# Networks --------------------------------------------------------------------------


def one_of_each_network():
    names = {registry._MODELS[name].network: name for name in reversed(list_models())}
    return sorted(names.values())


def small(name):
    """A network that traces fast, of any family."""
    keywords = registry.model_keywords(name)
    kwargs = {"stem": "cifar"} if "stem" in keywords else {}
    if "attention" in keywords and "scsa" not in name:
        kwargs["attention"] = "cbam"
    return create_model(name, 5, **kwargs)


IMAGE = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)


@pytest.mark.parametrize("name", full_but(one_of_each_network(), "canet"))
def test_every_network_marks_the_map_it_pools(name):
    module = create_model(name, 5)
    init = functools.partial(module.init_with_output, mutable=True)
    _, variables = jax.eval_shape(init, jax.random.key(0), IMAGE)
    (feature_map,) = variables["intermediates"][FEATURE_MAP]
    assert feature_map.ndim == 4
    assert "perturbations" not in variables


@pytest.mark.parametrize(
    "name",
    full_but(
        ["canet_tiny", "enhanced_efficient_resnet", "sccnet18", "resnet18"],
        "canet_tiny",
    ),
)
def test_sowing_is_free_where_it_is_not_asked_for(name, monkeypatch):
    """The same program, to the letter, as without a line that sows or marks."""
    module = small(name)
    variables = jax.eval_shape(module.init, jax.random.key(0), IMAGE)

    def program():
        apply = functools.partial(module.apply, train=False)  # traced anew
        return jax.jit(apply).lower(variables, IMAGE).as_text()

    sowing = program()
    monkeypatch.setattr(nn.Module, "sow", lambda *_, **__: False)
    monkeypatch.setattr(nn.Module, "has_variable", lambda *_: False)
    assert program() == sowing


@pytest.fixture(scope="module")
def canet():
    module = create_model("canet_tiny", 5)
    x = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    variables = jax.jit(module.init)(jax.random.key(1), x)
    return module, variables, x, make_attend(module)(variables, x)


@pytest.mark.full
def test_looking_changes_no_numbers(canet):
    module, variables, x, attention = canet
    expected = nn.softmax(jax.jit(module.apply)(variables, x))
    # Another program: its fusions round differently.
    chex.assert_trees_all_close(attention.probabilities, expected, atol=1e-6)


def test_gates_come_in_the_order_of_the_network(canet):
    layers = [f"res_{i}{part}" for i in range(6) for part in ("/sa", "/se", "")]
    assert list(canet[-1].gates) == layers


def test_default_page_has_the_last_block_of_every_stage(canet):
    """Sides 16, 16, 8, 8, 4, 2 of the six blocks."""
    blocks = select_blocks(canet[-1].gates)
    assert list(blocks) == ["res_1", "res_3", "res_4", "res_5"]
    assert blocks["res_1"] == ["res_1/sa", "res_1/se", "res_1"]


def test_pattern_chooses_layers(canet):
    assert select_blocks(canet[-1].gates, "res_[02]/s?") == {
        "res_0": ["res_0/sa", "res_0/se"],
        "res_2": ["res_2/sa", "res_2/se"],
    }


@pytest.mark.parametrize(
    ("count", "pattern", "message"),
    [
        (3, "layer*", r"--layers='layer\*': must be of block_0, block_1, block_2"),
        (17, "*", r"--layers='\*': must be of at most 16 blocks, .*; 17 match"),
    ],
)
def test_pattern_that_does_not_fit_a_page_is_refused(count, pattern, message):
    gates = {f"block_{i}": {"a_gate": np.ones((1, 1, 1, 4))} for i in range(count)}
    with pytest.raises(UserError, match=message):
        select_blocks(gates, pattern)


def test_layer_called_twice_is_shown_twice():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x, *, train=False):
            gate = SpatialAttention(3, name="gate")
            x = mark_features(self, gate(gate(x, train=train), train=train))
            return x.mean((1, 2))

    x = jax.random.normal(jax.random.key(0), (1, 4, 4, 3))
    variables = Twice().init(jax.random.key(0), x)
    gates = make_attend(Twice())(variables, x).gates
    assert list(gates) == ["gate (1)", "gate (2)"]


def test_network_without_a_marked_map_is_refused():
    class Unmarked(nn.Module):
        def __call__(self, x, *, train=False):
            del train
            return x.mean((1, 2))

    with pytest.raises(UserError, match="Unmarked: marks no feature map for Grad-CAM"):
        make_attend(Unmarked())({}, jnp.ones((1, 4, 4, 8)))


# Grad-CAM --------------------------------------------------------------------------


class Linear(nn.Module):
    """Pools the image and multiplies with a matrix: everything is known."""

    @nn.compact
    def __call__(self, x, *, train=False):
        del train
        x = mark_features(self, x)
        return nn.Dense(3, use_bias=False, name="head")(x.mean((1, 2)))


def test_grad_cam_of_a_linear_network_is_the_one_computed_by_hand():
    """d logit_k / d x[i, j, c] is head[c, k] / (H * W)."""
    x = jax.random.normal(jax.random.key(0), (4, 3, 5, 2))
    head = np.array([[1.0, -2.0, 0.5], [-1.0, 1.0, 3.0]], np.float32)
    variables = {"params": {"head": {"kernel": jnp.asarray(head)}}}
    attention = make_attend(Linear())(variables, x)
    predicted = np.argmax(attention.probabilities, -1)
    weights = head[:, predicted].T / 15  # [N, C]
    expected = np.maximum(np.einsum("nhwc,nc->nhw", x, weights), 0)
    chex.assert_trees_all_close(attention.grad_cam, expected, atol=1e-6)
    assert len(set(predicted)) > 1  # each image has its own class


@pytest.mark.full
def test_grad_cam_differentiates_the_marked_map(canet):
    """Against finite differences of the network behind the map."""
    module, variables, x, attention = canet
    state = module.apply(variables, x, mutable=["intermediates"])[1]
    (feature_map,) = state["intermediates"][FEATURE_MAP]
    added = jnp.zeros_like(feature_map)

    @jax.jit
    def logit(added):
        inputs = {**variables, "perturbations": {FEATURE_MAP: added}}
        return jnp.max(module.apply(inputs, x), -1)

    weights = []
    for c in range(feature_map.shape[-1]):
        step = added.at[..., c].set(1e-2)
        weights.append((logit(step) - logit(-step)) / 2e-2 / 4)  # mean of 2 x 2
    cam = jnp.einsum("nhwc,cn->nhw", feature_map, jnp.stack(weights))
    # Float32 differences of the step's size.
    chex.assert_trees_all_close(attention.grad_cam, nn.relu(cam), atol=1e-4)


def test_grad_cam_shows_no_position_that_speaks_against_the_class():
    feature_map = jnp.array([-1.0, 2.0]).reshape(1, 1, 2, 1)
    cam = grad_cam(feature_map, jnp.ones_like(feature_map))
    assert cam.tolist() == [[[0.0, 2.0]]]


# Pages -----------------------------------------------------------------------------


def drawn(attention, i=0, **kwargs):
    """What a page shows: the array of the top picture of each titled panel."""
    images = np.zeros((2, 16, 16, 3), np.uint8)
    names = list("abcde")
    known = zip(attention.probabilities, ("x", "y"), (0, None), strict=True)
    titles = [title_page(*each, names) for each in known]
    figure = pages.plot_pages(attention, images, titles, **kwargs)
    return figure[i], {
        axes.get_title(loc="left").rsplit("\n", 1)[0]: axes
        for axes in figure[i].axes
        if axes.get_title(loc="left")
    }


def test_page_shows_the_gates_that_multiplied(canet):
    _, _, _, attention = canet
    _, axes = drawn(attention, 1, pattern="res_1*")
    gates = attention.gates
    shown = np.asarray(axes["res_1/sa\nspatial gate"].images[-1].get_array())
    chex.assert_trees_all_equal(shown, gates["res_1/sa"]["spatial_gate"][1, ..., 0])
    bars = axes["res_1/se\nchannel gate"].patches[0].get_data().values
    chex.assert_trees_all_equal(bars, gates["res_1/se"]["channel_gate"][1, 0, 0])
    unit = np.asarray(axes["res_1\nspatial unit gate, mean"].images[-1].get_array())
    expected = gates["res_1"]["spatial_unit_gate"][1].mean(-1)
    chex.assert_trees_all_equal(unit, expected)


def test_page_says_what_was_predicted_and_what_is_true(canet):
    _, _, _, attention = canet
    order = np.argsort(-attention.probabilities[0])
    shares = [f"{'abcde'[i]} {attention.probabilities[0, i]:.1%}" for i in order]
    verdict = "right" if order[0] == 0 else "wrong, true: a"
    title = drawn(attention)[0].get_suptitle()
    assert title == f"x\npredicted {', '.join(shares[:3])}: {verdict}"
    assert ":" not in drawn(attention, 1)[0].get_suptitle()  # unknown


@pytest.mark.parametrize(
    ("name", "bars", "words"),
    [("spatial_gate", 1, "Maps"), ("height_gate", 2, "SCSA"), (None, 1, "Grad-CAM")],
)
def test_page_says_how_to_read_it(name, bars, words):
    shape = {"spatial_gate": (2, 4, 4, 1), "height_gate": (2, 4, 1, 3)}
    gates = {"attn": {name: np.full(shape[name], 0.5)}} if name else {}
    if name == "height_gate":
        gates["attn"]["width_gate"] = np.full((2, 1, 4, 3), 0.5)
    attention = Attention(np.full((2, 5), 0.2), np.ones((2, 2, 2)), gates)
    figure, _ = drawn(attention)
    colours = [axes for axes in figure.axes if axes.get_label() == "<colorbar>"]
    assert len(colours) == bars
    least, _ = colours[0].get_xticklabels()
    assert least.get_text() == "least of the panel"
    assert words in figure.get_supxlabel()
    figure_to_array(figure)  # lays it out
    (text,) = [
        text for text in figure.texts if text.get_text() != figure.get_suptitle()
    ]
    extent = text.get_window_extent()
    assert extent.x0 >= 0
    assert extent.x1 <= figure.bbox.width
    assert extent.y0 >= 0
    assert all(extent.y1 <= axes.get_tightbbox().y0 for axes in colours)


def test_title_of_long_names_stays_on_a_narrow_page():
    verdict = "predicted Welsh springer spaniel, 12.3%: wrong, true: mouse"
    title = f"n02102040_ILSVRC2012_val_0000012….JPEG.png\n{verdict}"
    page = pages.plot_page(np.zeros((8, 8, 3), np.uint8), np.ones((2, 2)), [], title)
    page.draw_without_rendering()
    (text,) = [t for t in page.texts if t.get_text() == page.get_suptitle()]
    extent = text.get_window_extent()
    assert extent.x0 >= 0
    assert extent.x1 <= page.bbox.width


def test_network_without_attention_has_grad_cam_alone():
    attention = Attention(np.full((2, 5), 0.2), np.ones((2, 2, 2)), {})
    figure, axes = drawn(attention, pattern="layer4*")
    assert list(axes) == ["image", "Grad-CAM"]
    chex.assert_rank(figure_to_array(figure), 3)


def test_strips_are_drawn_as_their_product_and_by_channel():
    rng = np.random.default_rng(0)
    height, width = rng.random((1, 4, 1, 8)), rng.random((1, 1, 3, 8))
    gates = {"attn": {"height_gate": height, "width_gate": width}}
    product, rows, columns = panels(gates, "attn", 0)
    assert [product.kind, rows.kind, columns.kind] == ["map", "rows", "columns"]
    np.testing.assert_allclose(product.values, (height * width)[0].mean(-1))
    np.testing.assert_allclose(rows.values, (height - height.mean(1))[0, :, 0])
    np.testing.assert_allclose(columns.values, (width[0] - width.mean(2))[0].T)


def test_winners_are_drawn_as_each_branchs_share_of_the_channels():
    winner = np.array([[0, 0, 1, 2], [2, 2, 2, 2]], np.uint8).reshape(1, 1, 2, 4)
    shares = list(panels({"conv1": {"winner": winner}}, "conv1", 0))
    values = [panel.values.tolist() for panel in shares]
    assert values == [[[0.5, 0]], [[0.25, 0]], [[0.25, 1]]]
    assert shares[2].label == "conv1\n5x5 wins 62%\n25% to 100%"
