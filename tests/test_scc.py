"""SCC and SCCNet against their authors' numbers."""

import functools
import json
import math
import pathlib

import chex
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiers import full_but

from jaxattn import from_torch, to_torch
from jaxattn.attention.scc import SCC
from jaxattn.models.cost import count_parameters
from jaxattn.models.sccnet import DOWNSAMPLES, SCCBlock, SCCNet
from jaxattn.ops.pool import max_pool

GOLDEN = pathlib.Path(__file__).parent / "golden"
CASES = sorted(path.stem for path in GOLDEN.glob("scc*.npz"))
# Whole networks compile for long; their blocks stand for them.
SMALL = [name for name in CASES if not name.startswith("sccnet")]
STAGES = {"sccnet18": (2, 2, 2, 2), "sccnet34": (3, 4, 6, 3)}
# The source's own counts, 1000 classes.
PARAMETERS = {
    "sccnet18": (11712552, 13088808, 15841320, 11715240, 13094184, 15849384),
    "sccnet34": (21842984, 23219240, 25971752, 21845672, 23224616, 25979816),
}


def nhwc(x):
    return x.transpose(0, 2, 3, 1) if x.ndim == 4 else x


def section(arrays, prefix):
    n = len(prefix)
    return {k[n:]: v for k, v in arrays.items() if k.startswith(prefix)}


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def random_variables(module, x):
    """Variables of order 1, without the compilations that `init` takes."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    draw = lambda leaf: rng.uniform(-1, 1, leaf.shape).astype(np.float32)  # noqa: E731
    variables = jax.tree.map(draw, shapes)
    if stats := variables.get("batch_stats"):
        variables["batch_stats"] = jax.tree.map(lambda v: abs(v) + 0.5, stats)
    return variables


def assert_close(actual, expected, relative):
    """Within `relative` of the largest absolute value."""
    atol = relative * np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)


def relative_l2(actual, expected):
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


def build(config):
    """The module of a golden file, by the arguments it was built with."""
    args = dict(config["build"])
    rule = {
        "mask_prob": config.get("mask_prob", 0.005),
        "forcing": "constant" if config["source"].startswith("README") else "uniform",
    }
    op, kernel_size = args.pop("op"), args.pop("kernel_size")
    if op == "scc_conv":
        args.pop("in_channels")
        return SCC(args.pop("out_channels"), kernel_size, **args, **rule)
    kind, size = args["downsample"] or ("scc", 5)
    downsample = f"{kind}{size}"
    if op == "scc_basic_block":
        return SCCBlock(args["out_channels"], args["stride"], downsample, **rule)
    assert op == "sccnet"
    return SCCNet(args["blocks"], args["widths"], args["classes"], downsample, **rule)


def replay(arrays, mask_prob, forcing):
    """Gives every SCC, in the order of the calls, what the authors' call drew.

    They draw a uniform number for each branch and element; the first branch whose
    number passes is the one that is forced.
    """
    draws = iter(sorted(section(arrays, "rand/").items(), key=lambda kv: int(kv[0])))

    def forced(branches):
        result = None
        for i in range(branches):
            p = mask_prob / (1 - i * mask_prob) if forcing == "uniform" else mask_prob
            fired = np.floor(nhwc(next(draws)[1]) + np.float32(p)) == 1
            result = np.full(fired.shape, -1) if result is None else result
            result[fired & (result < 0)] = i
        return jnp.asarray(result)

    def interceptor(next_fun, args, kwargs, context):
        scc = context.module
        if isinstance(scc, SCC) and context.method_name == "__call__":
            kwargs = {**kwargs, "forced": forced(scc.kernel_size // 2 + 1)}
        return next_fun(*args, **kwargs)

    return interceptor, draws


@functools.cache
def load(name):
    with np.load(GOLDEN / f"{name}.npz") as archive:
        arrays = dict(archive)
    config = json.loads(str(arrays["config"]))
    module = build(config)
    x = nhwc(arrays["input"])
    variables = from_torch(module, section(arrays, "state/"), x)
    return module, variables, x, arrays, config["mode"] == "train"


def forward(name, params, x):
    """The authors' call, with our parameters: its output and updated collections."""
    module, variables, _, arrays, train = load(name)
    variables = {**variables, "params": params}
    if not train:
        return module.apply(variables, x, mutable=["intermediates"])
    interceptor, draws = replay(arrays, module.mask_prob, module.forcing)
    mutable = ["batch_stats", "intermediates"]
    with nn.intercept_methods(interceptor):
        result = module.apply(variables, x, train=True, mutable=mutable)
    assert next(draws, None) is None
    return result


@pytest.fixture(scope="module", params=full_but(CASES, *SMALL))
def call(request):
    """A golden file's name; our output, new collections and gradients of its call."""
    name = request.param
    _, variables, x, arrays, _ = load(name)
    cotangent = nhwc(arrays["cotangent"])

    def loss(params, x):
        y, updated = forward(name, params, x)
        return jnp.sum(y * cotangent), (y, updated)

    gradient = jax.jit(jax.grad(loss, (0, 1), has_aux=True))
    (dparams, dx), (y, updated) = gradient(variables["params"], x)
    return name, y, updated, dparams, dx


def test_output_is_the_authors(call):
    name, y, *_ = call
    # Of the largest value: twenty times what float32 itself is away from float64. A
    # selection that flipped would be off by far more; these files have none.
    assert_close(y, nhwc(load(name)[3]["output"]), 2e-5)


def test_gradients_are_the_authors(call):
    name, _, _, dparams, dx = call
    module, _, _, arrays, _ = load(name)
    expected = section(arrays, "grad/")
    actual = to_torch(module, {"params": dparams})
    assert actual.keys() == expected.keys()
    # Float32 itself is 1e-6 away from float64, in whole nets with their maxima too.
    errors = {k: relative_l2(actual[k], expected[k]) for k in expected}
    errors["input"] = relative_l2(dx, nhwc(arrays["grad_input"]))
    assert {k: e for k, e in errors.items() if not e < 1e-4} == {}


def test_statistics_afterwards_are_the_authors(call):
    name, _, updated, _, _ = call
    module, variables, _, arrays, train = load(name)
    after = to_torch(module, {**variables, **updated})
    # Evaluation leaves them as they are.
    expected = section(arrays, "state_after/" if train else "state/")
    assert bool(expected) == (not train or isinstance(module, SCCBlock | SCCNet))
    for key in expected:
        if "running" in key:
            assert_close(after[key], expected[key], 1e-5)


def test_winners_are_the_authors(call):
    name, _, updated, _, _ = call
    module, _, _, arrays, _ = load(name)
    # Recorded for the plain convolutions alone.
    assert ("branch" in arrays) == isinstance(module, SCC)
    if "branch" in arrays:
        (branch,) = updated["intermediates"]["winner"]
        chex.assert_type(branch, jnp.uint8)
        np.testing.assert_array_equal(branch, nhwc(arrays["branch"]))


@pytest.mark.parametrize("name", CASES)
def test_state_dict_survives_the_round_trip(name):
    module, variables, _, arrays, _ = load(name)
    expected = section(arrays, "state/")
    for key in expected:
        if key.endswith("num_batches_tracked"):
            expected[key] = np.int64(0)  # a counter that nothing of ours keeps
    chex.assert_trees_all_equal(to_torch(module, variables), expected)


@pytest.mark.parametrize("name", [name for name in CASES if "train" in name])
def test_forcing_changes_the_authors_training_calls(name):
    """Or the comparisons above would not tell whether forcing is right."""
    module, variables, x, arrays, _ = load(name)
    y = jax.jit(module.apply)(variables, x)
    same = np.allclose(y, nhwc(arrays["output"]), atol=1e-4)
    assert same == (module.mask_prob == 0)


def plain_scc(params, x, module, forced=None):
    """The definition, written without regard to cost, for autodiff."""
    K, maps = module.kernel_size, []
    for i in range(K // 2 + 1):
        cut = slice(K // 2 - i, K // 2 + i + 1)
        pad = i * module.dilation
        y = jax.lax.conv_general_dilated(
            x,
            params["kernel"][cut, cut],
            (module.stride, module.stride),
            ((pad, pad), (pad, pad)),
            rhs_dilation=(module.dilation, module.dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=module.groups,
        )
        maps.append(y + params["bias"][i][None, None, None])
    maps = jnp.stack(maps)
    winner = jnp.argmax(maps, 0)
    winner = winner if forced is None else jnp.where(forced < 0, winner, forced)
    gain = (1 + jnp.tanh(params["alpha"]))[:, None, None, None, :, 0, 0]
    outs = maps * gain + params["beta"][:, None, None, None, :, 0, 0]
    return jnp.take_along_axis(outs, winner[None], 0)[0]


SCCS = [
    (5, SCC(6, 1)),
    (4, SCC(20, 3)),
    (20, SCC(4, 3, 2)),
    (8, SCC(6, 5, 2, dilation=2, groups=2)),
    (4, SCC(6, 7)),
]


@pytest.mark.parametrize("forces", full_but([False, True], True))
@pytest.mark.parametrize(("channels", "module"), full_but(SCCS, SCCS[1], SCCS[3]))
def test_gradient_is_autodiffs(module, channels, forces):
    x = normal(0, 2, 9, 10, channels)
    params = random_variables(module, x)["params"]
    y = plain_scc(params, x, module)
    key, branches = jax.random.key(2), module.kernel_size // 2 + 1
    forced = jax.random.randint(key, y.shape, -1, branches) if forces else None
    cotangent = normal(3, *y.shape)

    def ours(params, x):
        return module.apply({"params": params}, x, train=True, forced=forced)

    def gradient(f):
        return jax.jit(jax.grad(lambda *a: jnp.sum(f(*a) * cotangent), (0, 1)))

    if not forces:
        module = module.clone(mask_prob=0.0)
    plain = functools.partial(plain_scc, module=module, forced=forced)
    # The same sums in another order.
    assert_close(ours(params, x), plain(params, x), 1e-5)
    errors = jax.tree.map(
        relative_l2, gradient(ours)(params, x), gradient(plain)(params, x)
    )
    assert max(jax.tree.leaves(errors)) < 1e-5


def with_bias(module, x, bias):
    """Variables whose map i is `bias[i]` everywhere."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes["params"])
    rows = jnp.broadcast_to(jnp.array(bias)[:, None], params["bias"].shape)
    return {"params": {**params, "bias": rows}}


def branches_of(module, variables, x, *, train=False, seed=0):
    @jax.jit
    def call(variables, x):
        rngs = {"forcing": jax.random.key(seed)}
        return module.apply(
            variables, x, train=train, rngs=rngs, mutable=["intermediates"]
        )[1]

    return np.asarray(call(variables, x)["intermediates"]["winner"][0])


@pytest.mark.parametrize("favourite", ["first", "last"])
@pytest.mark.parametrize(
    ("kernel_size", "mask_prob"), [(1, 0.3), (3, 0.1), (5, 0.1), (5, 1 / 3)]
)
@pytest.mark.parametrize("forcing", ["uniform", "constant"])
def test_forcing_has_the_published_frequencies(
    forcing, kernel_size, mask_prob, favourite
):
    """Every free element goes to the favourite, so that all other wins are forced."""
    p, r = mask_prob, kernel_size // 2
    x = jnp.zeros((16, 32, 32, 1))
    module = SCC(16, kernel_size, mask_prob=p, forcing=forcing)
    chosen = 0 if favourite == "first" else r
    variables = with_bias(module, x, [float(i == chosen) for i in range(r + 1)])
    branch = branches_of(module, variables, x, train=True, seed=5)
    q = [p if forcing == "uniform" else p * (1 - p) ** i for i in range(r + 1)]
    q[chosen] += 1 - sum(q)
    counts = np.bincount(branch.ravel(), minlength=r + 1)
    for count, share in zip(counts, q, strict=True):
        sigma = math.sqrt(branch.size * max(share * (1 - share), 0))
        assert abs(count - branch.size * share) <= 5 * sigma + 1e-6


def test_every_element_is_forced_on_its_own():
    """Of two neighbours along any axis both are forced with probability p * p."""
    x = jnp.zeros((32, 32, 32, 1))
    module = SCC(16, 3, mask_prob=0.2)
    variables = with_bias(module, x, [1.0, 0.0])
    hit = branches_of(module, variables, x, train=True, seed=6) == 1
    for axis in range(4):
        n = hit.shape[axis] // 2
        halves = np.take(hit, range(n), axis), np.take(hit, range(n, 2 * n), axis)
        both = np.mean(halves[0] & halves[1])
        assert abs(both - 0.04) < 5 * math.sqrt(0.04 * 0.96 / halves[0].size)


def test_ties_keep_the_smaller_branch():
    x = normal(0, 1, 4, 4, 2)
    module = SCC(3, 5)
    assert not branches_of(module, with_bias(module, x, [0.5, 0.5, 0.5]), x).any()
    branch = branches_of(module, with_bias(module, x, [0.0, 0.5, 0.5]), x)
    np.testing.assert_array_equal(branch, 1)


@pytest.fixture
def tiny():
    module = SCCNet((1, 1), (6, 8), mask_prob=0.05, stem="cifar")
    x = normal(0, 2, 8, 8, 3)
    return module, random_variables(module, x), x


def test_evaluation_draws_nothing(tiny):
    module, variables, x = tiny
    evaluate = jax.jit(module.apply)
    chex.assert_trees_all_equal(evaluate(variables, x), evaluate(variables, x))


def test_training_needs_its_stream(tiny):
    module, variables, x = tiny
    with pytest.raises(flax.errors.InvalidRngError, match="forcing"):
        module.apply(variables, x, train=True, mutable=["batch_stats"])


@pytest.fixture
def scc():
    module, x = SCC(8, 5, mask_prob=0.1), normal(0, 2, 6, 6, 4)
    return module, random_variables(module, x), x


def test_training_follows_its_key(scc):
    module, variables, x = scc

    @jax.jit
    def train(seed):
        rngs = {"forcing": jax.random.key(seed)}
        return module.apply(variables, x, train=True, rngs=rngs)

    chex.assert_trees_all_equal(train(0), train(0))
    assert not np.allclose(train(0), train(1))


def test_training_without_forcing_is_evaluation(scc):
    module, variables, x = scc
    y = module.clone(mask_prob=0.0).apply(variables, x, train=True)
    chex.assert_trees_all_equal(y, module.apply(variables, x, train=False))


def test_bfloat16_maps_are_compared_in_float32():
    """1 and 1.001 are equal in bfloat16, and branch 0 would win."""
    x = jnp.zeros((1, 4, 4, 2), jnp.bfloat16)
    module = SCC(3, 3, dtype=jnp.bfloat16)
    branch = branches_of(module, with_bias(module, x, [1.0, 1.001]), x)
    np.testing.assert_array_equal(branch, 1)


def test_bfloat16_gradients_are_near_float32s():
    x = normal(0, 4, 8, 8, 16)
    module = SCC(16, 5)
    params = random_variables(module, x)["params"]
    # The same winners: elsewhere rounding flips some.
    forced = jax.random.randint(jax.random.key(2), x.shape, 0, 3)
    cotangent = normal(3, *x.shape)

    def gradient(dtype):
        def loss(params, x):
            scc = module.clone(dtype=dtype)
            y = scc.apply({"params": params}, x, forced=forced)
            return jnp.sum(y.astype(jnp.float32) * cotangent)

        return jax.jit(jax.grad(loss, (0, 1)))(params, x)

    low, full = gradient(jnp.bfloat16), gradient(jnp.float32)
    chex.assert_trees_all_equal_dtypes(low, full)
    # bfloat16 rounds by up to 2**-9, here a few times over.
    assert max(jax.tree.leaves(jax.tree.map(relative_l2, low, full))) < 1e-2


def test_scc_starts_within_its_bounds():
    params = SCC(64, 5).init(jax.random.key(0), jnp.zeros((1, 5, 5, 16)))["params"]
    bounds = {"kernel": 0.2, "bias": 2, "alpha": 2, "beta": 2}
    for name, bound in bounds.items():
        assert 0.9 * bound < jnp.abs(params[name]).max() < bound
        assert params[name].min() < 0


@pytest.fixture(scope="module")
def block_params():
    block = SCCBlock(64, 2, "conv3")
    return block.init(jax.random.key(0), jnp.zeros((1, 4, 4, 32)))["params"]


def test_scc_of_a_network_starts_within_1(block_params):
    for leaf in jax.tree.leaves(block_params["conv1"]):
        assert 0.8 < jnp.abs(leaf).max() < 1


def test_plain_convolutions_start_from_kaimings_fan_out(block_params):
    kernel = block_params["downsample.0"]["kernel"]
    # The error of an estimated deviation is 1 / sqrt(2 n), here 0.5 %.
    assert abs(kernel.std() / math.sqrt(2 / (64 * 9)) - 1) < 0.02


@functools.cache
def abstract_params(name, downsample, num_classes):
    net = SCCNet(STAGES[name], num_classes=num_classes, downsample=downsample)
    x = jnp.zeros((1, 32, 32, 3))
    return jax.eval_shape(net.init, jax.random.key(0), x)["params"]


@pytest.mark.parametrize("downsample", full_but(DOWNSAMPLES, "conv3"))
@pytest.mark.parametrize("name", full_but(STAGES, "sccnet18"))
def test_parameters_are_as_many_as_the_authors(name, downsample):
    counts = [
        count_parameters(abstract_params(name, downsample, classes))
        for classes in (1000, 10)
    ]
    published = PARAMETERS[name][DOWNSAMPLES.index(downsample)]
    assert counts == [published, published - 990 * 513]


@pytest.mark.parametrize(("stem", "sides"), [("imagenet", (8, 4)), ("cifar", (32, 16))])
def test_features_are_the_stages_maps(stem, sides):
    net = SCCNet((1, 1), (6, 8), stem=stem)
    x = normal(0, 2, 32, 32, 3)
    variables = random_variables(net, x)

    @jax.jit
    def maps_and_logits(variables, x):
        maps = net.apply(variables, x, return_features=True)
        return maps, net.apply(variables, x)

    maps, logits = maps_and_logits(variables, x)
    shapes = [m.shape for m in maps]
    assert shapes == [(2, s, s, w) for s, w in zip(sides, (6, 8), strict=True)]
    head = variables["params"]["head"]
    expected = maps[-1].mean((1, 2)) @ head["kernel"] + head["bias"][None]
    assert_close(logits, expected, 1e-5)


def test_network_computes_in_its_dtype():
    net = SCCNet((1, 1), (6, 8), dtype=jnp.bfloat16)
    x = jnp.zeros((2, 32, 32, 3))
    variables = jax.eval_shape(net.init, jax.random.key(0), x)
    assert {v.dtype for v in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    features = functools.partial(net.apply, return_features=True)
    assert jax.eval_shape(net.apply, variables, x).dtype == jnp.float32
    dtypes = {m.dtype for m in jax.eval_shape(features, variables, x)}
    assert dtypes == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"kernel_size": 4}, "kernel_size=4: must be odd"),
        ({"kernel_size": -1}, "kernel_size=-1: must be odd"),
        ({"forcing": "random"}, "forcing='random': must be 'uniform' or 'constant'"),
        ({"mask_prob": -0.1}, r"mask_prob=-0.1: must be in \[0, 0.5\]"),
        ({"mask_prob": 0.51}, r"mask_prob=0.51: must be in \[0, 0.5\]"),
        ({"mask_prob": math.nan}, r"mask_prob=nan: must be in \[0, 0.5\]"),
        ({"mask_prob": 0.4, "kernel_size": 5}, r"must be in \[0, 0.3333\]"),
        ({"mask_prob": 1.1, "forcing": "constant"}, r"must be in \[0, 1\]"),
        ({"groups": 4}, "groups=4: must divide the 4 input channels and features=6"),
        ({"groups": 3}, "groups=3: must divide the 4 input channels and features=6"),
    ],
)
def test_scc_refuses(kwargs, message):
    with pytest.raises(ValueError, match=message):
        SCC(6, **kwargs).init(jax.random.key(0), jnp.zeros((1, 5, 5, 4)))


def test_scc_refuses_forced_branches_of_another_shape():
    module, x = SCC(6, stride=2), jnp.zeros((1, 5, 5, 4))
    forced = jnp.zeros((1, 5, 5, 6), jnp.int32)
    with pytest.raises(ValueError, match=r"\(1, 5, 5, 6\): must be \(1, 3, 3, 6\)"):
        module.init(jax.random.key(0), x, forced=forced)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"downsample": "conv7"}, "downsample='conv7': did you mean 'conv[15]'.*scc5"),
        ({"stem": "mnist"}, "stem='mnist': choices: imagenet, cifar"),
        ({"widths": (8, 8)}, r"stage_sizes=\(1,\) and widths=\(8, 8\)"),
        ({"mask_prob": 0.6}, r"mask_prob=0.6: must be in \[0, 0.5\]"),
        ({"forcing": "random"}, "forcing='random'"),
    ],
)
def test_network_refuses(kwargs, message):
    net = SCCNet(**{"stage_sizes": (1,), "widths": (8,), **kwargs})
    with pytest.raises(ValueError, match=message):
        net.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


@pytest.mark.parametrize("sides", [(8, 8), (7, 10)])
def test_max_pool_pads_both_sides_with_what_never_wins(sides):
    x = -1 - jnp.abs(normal(0, 2, *sides, 3))
    pads = ((0, 0), (1, 1), (1, 1), (0, 0))
    padded = np.pad(np.asarray(x), pads, constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    expected = windows[:, ::2, ::2].max((-1, -2))
    chex.assert_trees_all_equal(max_pool(x, 3, stride=2, padding=1), expected)


def test_max_pool_gives_its_gradient_to_the_first_maximum():
    def loss(x):
        return jnp.sum(max_pool(x, 3, stride=2, padding=1))

    dx = jax.grad(loss)(jnp.ones((1, 4, 4, 1)))[0, :, :, 0]
    # Windows start at -1 and 1 along each axis.
    expected = np.zeros((4, 4))
    for i in (0, 1):
        for j in (0, 1):
            expected[i, j] += 1
    np.testing.assert_array_equal(dx, expected)
