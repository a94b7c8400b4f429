"""Convolutions by oneDNN, against XLA's and the authors' arrays."""

import functools
import itertools
import os
import shutil
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import pytest
import smoke
import test_attention as goldens
from tiers import full_but

from jaxattn import create_model
from jaxattn.cli import main
from jaxattn.models.cost import measure_cost
from jaxattn.ops import conv, cpu_build, cpu_kernels, onednn
from jaxattn.training.run import build


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def lax_conv(x, kernel, stride, padding, dilation, groups):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((padding, padding), (padding, padding)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


WINDOWS = {
    "1x1": (1, 1, 0, 1, 1),
    "1x1 stride 2": (1, 2, 0, 1, 1),
    "2x2 stride 2": (2, 2, 0, 1, 1),
    "3x3": (3, 1, 1, 1, 1),
    "3x3 stride 2": (3, 2, 1, 1, 1),
    "5x5 dilated": (5, 1, 4, 2, 1),
    "3x3 in groups": (3, 1, 1, 1, 2),
    "5x5 stride 2 dilated in groups": (5, 2, 4, 2, 3),
    "depthwise": (3, 2, 1, 1, 6),
    "7x7": (7, 1, 3, 1, 1),
}


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("batch", full_but([1, 5], 5))
@pytest.mark.parametrize("window", WINDOWS)
def test_values_and_gradients_are_xlas(window, batch):
    size, *window = WINDOWS[window]
    x = normal(0, batch, 13, 12, 6)
    kernel = normal(1, size, size, 6 // window[-1], 12)
    expected = lax_conv(x, kernel, *window)
    g = normal(2, *expected.shape)

    def gradients(f):
        loss = lambda x, kernel: jnp.sum(f(x, kernel, *window) * g)  # noqa: E731
        return jax.jit(jax.grad(loss, (0, 1)))(x, kernel)

    own = jax.jit(lambda x, kernel: onednn.conv2d(x, kernel, *window))(x, kernel)
    chex.assert_trees_all_close(own, expected, atol=5e-5)
    chex.assert_trees_all_close(
        gradients(onednn.conv2d), gradients(lax_conv), atol=3e-4
    )


# Of bfloat16 also those that are matrix products: narrow maps, large kernels.
PRODUCTS = {
    "narrow": ((2, 4, 3, 40, 136), (3, 1, 1, 1, 1)),
    "narrow dilated": ((2, 4, 4, 40, 136), (5, 1, 4, 2, 1)),
    "narrow stride 2": ((2, 8, 7, 40, 136), (3, 2, 1, 1, 1)),
    "one position": ((3, 1, 1, 136, 40), (3, 1, 1, 1, 1)),
    "large 1x1": ((2, 2, 3, 264, 1000), (1, 1, 0, 1, 1)),
    "large stride 2": ((2, 5, 6, 264, 136), (3, 2, 1, 1, 1)),
}
IN_BFLOAT16 = {
    **{name: ((3, 13, 12, 6, 12), window) for name, window in WINDOWS.items()},
    **PRODUCTS,
}
has_bfloat16 = pytest.mark.skipif(
    not onednn.has_bfloat16(), reason="the processor has no bfloat16"
)


def bfloat16(seed, *shape):
    return normal(seed, *shape).astype(jnp.bfloat16)


def assert_rounded(actual, exact):
    """One rounding of a float32 sum, whose own error is relative to what it adds up."""
    assert actual.dtype == jnp.bfloat16
    atol = 1e-5 * float(jnp.max(jnp.abs(exact)))
    chex.assert_trees_all_close(
        actual.astype(jnp.float32), exact, rtol=jnp.finfo(jnp.bfloat16).eps, atol=atol
    )


@has_bfloat16
@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    "name",
    full_but(
        IN_BFLOAT16,
        *("3x3", "3x3 stride 2", "5x5 dilated", "depthwise"),
        *("narrow dilated", "large stride 2"),
    ),
)
def test_bfloat16_is_float32_rounded_once(name):
    (N, H, W, C, O), (size, *window) = IN_BFLOAT16[name]  # noqa: E741
    x, kernel = bfloat16(0, N, H, W, C), bfloat16(1, size, size, C // window[-1], O)
    own = lambda x, kernel: onednn.conv2d(x, kernel, *window)  # noqa: E731
    plain = lambda x, kernel: lax_conv(x, kernel, *window)  # noqa: E731

    def both(f, *operands):
        y, gradients = jax.vjp(f, *operands)
        g = bfloat16(2, *y.shape).astype(y.dtype)
        return (y, *gradients(g))

    actual = jax.jit(functools.partial(both, own))(x, kernel)
    wide = (v.astype(jnp.float32) for v in (x, kernel))
    for a, exact in zip(actual, both(plain, *wide), strict=True):
        assert_rounded(a, exact)


@has_bfloat16
@pytest.mark.usefixtures("library")
def test_bfloat16_can_be_mapped_and_derived_again():
    x, kernels = bfloat16(0, 2, 6, 5, 4), bfloat16(1, 3, 3, 3, 4, 8)
    own = lambda kernel: onednn.conv2d(x, kernel, 1, 1, 1, 1)  # noqa: E731
    mapped = jax.jit(jax.vmap(own))(kernels)
    chex.assert_trees_all_equal(mapped, jnp.stack([own(k) for k in kernels]))

    def norm_of_gradient(kernel):
        gradient = jax.grad(lambda k: jnp.sum(own(k).astype(jnp.float32) ** 2))(kernel)
        return jnp.sum(gradient.astype(jnp.float32) ** 2)

    second = jax.grad(norm_of_gradient)(kernels[0])
    assert second.dtype == jnp.bfloat16
    assert bool(jnp.all(jnp.isfinite(second)))


@has_bfloat16
@pytest.mark.usefixtures("enabled")
def test_learning_in_bfloat16_is_that_in_float32():
    """Of a kernel from what another one makes, in float32 parameters."""
    x, wanted = normal(0, 16, 8, 8, 4), normal(1, 3, 3, 4, 4) / 6
    y = conv.conv2d(x, wanted, padding=1)

    def losses(dtype):
        def loss(kernel):
            own = conv.conv2d(x.astype(dtype), kernel.astype(dtype), padding=1)
            return jnp.mean(jnp.square(own.astype(jnp.float32) - y))

        def step(kernel, _):
            value, gradient = jax.value_and_grad(loss)(kernel)
            assert gradient.dtype == jnp.float32
            return kernel - 0.8 * gradient, value

        return jax.jit(lambda k: jax.lax.scan(step, k, length=30)[1])(wanted * 0)

    wide, half = losses(jnp.float32), losses(jnp.bfloat16)
    assert wide[-1] < 0.01 * wide[0]
    # Of the values that rounding has moved by 2 ** -9 of their size.
    chex.assert_trees_all_close(half, wide, rtol=0.02, atol=1e-4)


@pytest.mark.usefixtures("library")
def test_many_at_once_are_right_every_time():
    """XLA runs them at the same time; they share primitives and memory by thread."""
    x, kernel = normal(0, 16, 16, 16, 8), normal(1, 3, 3, 8, 8)

    @jax.jit
    def run(x, kernel):
        scaled = [x * i for i in range(1, 9)]
        loss = lambda k: sum(  # noqa: E731
            jnp.sum(onednn.conv2d(s, k, 1, 1, 1, 1) ** 2) for s in scaled
        )
        return [onednn.conv2d(s, kernel, 1, 1, 1, 1) for s in scaled], jax.grad(loss)(
            kernel
        )

    first, gradient = run(x, kernel)
    for i, y in enumerate(first, 1):
        chex.assert_trees_all_close(
            y, lax_conv(x * i, kernel, 1, 1, 1, 1), rtol=1e-4, atol=1e-3
        )
    for _ in range(20):
        chex.assert_trees_all_equal(run(x, kernel), (first, gradient))


@pytest.mark.usefixtures("enabled")
def test_conv2d_uses_it():
    x, kernel = normal(0, 2, 8, 8, 4), normal(1, 3, 3, 4, 4)
    grad = jax.grad(lambda x, k: jnp.sum(conv.conv2d(x, k, padding=1)), (0, 1))
    text = jax.jit(grad).lower(x, kernel).as_text()
    assert "jaxattn_conv_input_gradient" in text
    assert "jaxattn_conv_kernel_gradient" in text
    assert "stablehlo.convolution" not in text


@pytest.mark.usefixtures("library")
def test_other_dtypes_and_several_devices_do_not(monkeypatch):
    x, kernel = normal(0, 2, 8, 8, 4), normal(1, 3, 3, 4, 4)
    plain = functools.partial(conv.conv2d, padding=1)
    assert jax.device_count() == 8
    assert "onednn_conv" not in str(jax.make_jaxpr(plain)(x, kernel))
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    half = x.astype(jnp.float16), kernel.astype(jnp.float16)
    assert "onednn_conv" not in str(jax.make_jaxpr(plain)(*half))
    with cpu_kernels.disabled():
        assert "onednn_conv" not in str(jax.make_jaxpr(plain)(x, kernel))


@pytest.mark.usefixtures("enabled")
@pytest.mark.parametrize("able", [False, True])
def test_bfloat16_is_onednns_where_the_processor_has_it(able, monkeypatch):
    monkeypatch.setattr(onednn, "has_bfloat16", lambda: able)
    operands = bfloat16(0, 2, 8, 8, 4), bfloat16(1, 3, 3, 4, 4)
    text = str(jax.make_jaxpr(functools.partial(conv.conv2d, padding=1))(*operands))
    assert ("onednn_conv" in text) == able
    assert conv.is_fast_in_loops(jnp.bfloat16) == able
    assert conv.is_faster_in_bfloat16() == able


@pytest.mark.parametrize("able", [False, True])
def test_the_faster_dtype_is_chosen_and_recorded(able, monkeypatch):
    monkeypatch.setattr("jaxattn.training.options.is_faster_in_bfloat16", lambda: able)
    config, told = smoke.get_config(), []
    build(config, devices=smoke.one_device(), tell=told.append)
    assert not [line for line in told if "dtype" in line]
    config.dtype = "auto"
    run = build(config, devices=smoke.one_device(), tell=told.append)
    dtype = "bfloat16" if able else "float32"
    assert run.record["dtype"] == run.options.dtype == dtype
    assert jnp.dtype(run.model.dtype) == dtype
    assert f"dtype: {dtype}, the faster one here (dtype=auto)" in told


@pytest.mark.full
@pytest.mark.usefixtures("enabled")
@pytest.mark.parametrize("name", ["att_res_block_s2", "enhanced_resnet_bw8"])
def test_blocks_are_the_authors(golden, name):
    arrays = golden(name)
    module, x = goldens.MODULES[name], goldens.nhwc(arrays["input"])
    state = goldens.section(arrays, "state/")
    case = module, goldens.from_torch(module, state, x), x, arrays
    goldens.test_eval_output_is_the_authors(case)
    goldens.test_train_output_statistics_and_gradient_are_the_authors(case)


@pytest.mark.full
@pytest.mark.usefixtures("enabled")
def test_steps_in_a_loop_are_those_outside_bit_for_bit():
    run = build(smoke.get_config(), devices=smoke.one_device())
    assert run.steps_per_dispatch in (3, 4)
    loader = run.loaders["train"]
    store = run.parallel.replicate(loader.store)
    dispatch = run.parallel.compile_train(run.train_step, loader.fetch)

    def train(size):
        state, feeds = run.init_state(), loader.train_feeds(run.order, 0, 12)
        while chunk := list(itertools.islice(feeds, size)):
            state, _ = dispatch(state, store, run.parallel.place_stacked(chunk))
        return jax.device_get(state)

    chex.assert_trees_all_equal(train(4), train(1))


@pytest.mark.usefixtures("enabled")
def test_cost_is_counted_all_the_same():
    model = create_model("canet_tiny")
    with cpu_kernels.disabled():
        expected = measure_cost(model, (32, 32, 3))
    assert measure_cost(model, (32, 32, 3)) == expected


def test_command_builds_the_library_and_names_it(built, library):
    folder, said = built
    assert library.name in said
    assert list(folder.glob("*.so")) == [library]


def double(x):
    kernel = 2 * jnp.eye(3).reshape(1, 1, 3, 3)
    return jax.jit(conv.conv2d)(x, kernel)


@pytest.mark.parametrize("folder", ["cache", "another"])
def test_a_second_library_in_a_process_is_used(folder, enabled, tmp_path, monkeypatch):
    """XLA refuses a second function of one name; the first program still runs."""
    x = normal(0, 1, 4, 4, 3)
    first = jax.jit(lambda x: double(x)).lower(x).compile()
    if folder == "another":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        (tmp_path / "jaxattn").mkdir()
    path = cpu_build.compiled_path()
    other = path.with_suffix(".new")
    shutil.copy(enabled, other)
    other.replace(path)  # as `build` does: another file of the same name
    cpu_kernels._registered_suffix.cache_clear()
    jax.clear_caches()
    second = jax.jit(lambda x: double(x)).lower(x)
    assert "jaxattn_conv_forward" in second.as_text()
    chex.assert_trees_all_close(second.compile()(x), 2 * x)
    chex.assert_trees_all_close(first(x), 2 * x)


def test_what_a_process_builds_it_uses(tmp_path, monkeypatch, library):
    """Though it has looked for a library before, and found none."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cpu_kernels._registered_suffix.cache_clear()
    assert not cpu_kernels.is_enabled()
    monkeypatch.setattr(
        cpu_build.subprocess, "run", lambda command, **_: copy(library, command[-1])
    )
    cpu_kernels.build()
    assert cpu_kernels.is_enabled()
    cpu_kernels._registered_suffix.cache_clear()


def copy(library, path):
    """Stands in for the compiler."""
    shutil.copy(library, path)
    return subprocess.CompletedProcess([], 0)


@pytest.mark.usefixtures("enabled")
def test_variable_refuses_the_library(monkeypatch):
    monkeypatch.setenv("JAXATTN_CPU_KERNELS", "0")
    monkeypatch.setattr(cpu_build, "load", None)
    cpu_kernels._registered_suffix.cache_clear()
    assert not cpu_kernels.is_enabled()
    monkeypatch.setenv("JAXATTN_CPU_KERNELS", "")
    with pytest.raises(TypeError):  # the loading that the variable has prevented
        cpu_kernels.is_enabled()


def test_variable_refuses_to_build(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("JAXATTN_CPU_KERNELS", "0")
    assert main(["build-cpu-kernels"]) == 2
    assert "JAXATTN_CPU_KERNELS=0: never built; unset" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("library")
def test_variable_demands_the_library(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXATTN_CPU_KERNELS", "1")
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert cpu_kernels.is_enabled()
    with cpu_kernels.disabled():
        assert not cpu_kernels.is_enabled()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cpu_kernels._registered_suffix.cache_clear()
    with pytest.raises(
        cpu_kernels.UserError, match="JAXATTN_CPU_KERNELS=1: there is no"
    ) as caught:
        cpu_kernels.is_enabled()
    assert "\n" not in str(caught.value)


def test_variable_has_two_values(monkeypatch):
    monkeypatch.setenv("JAXATTN_CPU_KERNELS", "yes")
    with pytest.raises(
        cpu_kernels.UserError, match="JAXATTN_CPU_KERNELS='yes': choices: 0, 1"
    ):
        cpu_kernels.is_enabled()


def test_a_process_finds_it_and_says_so(library):
    """In a process of its own, which has one device and reads the cache."""
    code = (
        "import jax; import jax.numpy as jnp\n"
        "from jaxattn.training.records import report\n"
        "from jaxattn.ops.conv import conv2d\n"
        "y = jax.jit(conv2d)(jnp.ones((2, 4, 4, 3)), jnp.ones((1, 1, 3, 5)))\n"
        "print(float(y.sum()), report.versions()['convolutions'])"
    )
    cache = str(library.parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "XDG_CACHE_HOME": cache, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["480.0", "oneDNN"], done.stderr


@pytest.mark.parametrize(
    ("compiler", "message"),
    [
        (None, "no C++ compiler: install"),
        ("echo 'fatal error: oneapi/dnnl/dnnl.hpp: No such file' >&2", "no oneDNN:"),
        ("echo 'x.cc:1: error: unknown -std' >&2", "the C++ compiler: x.cc:1: error"),
    ],
)
def test_what_is_missing_is_said(compiler, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    script = tmp_path / "compiler"
    if compiler:
        script.write_text(f"#!{shutil.which('sh')}\n{compiler}\nexit 1\n")
        script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    monkeypatch.delenv("JAXATTN_CPU_KERNELS")
    assert main(["build-cpu-kernels"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list((tmp_path / "jaxattn").glob("*.so"))


def test_a_version_has_a_path_of_its_own(monkeypatch):
    before = cpu_build.compiled_path()
    monkeypatch.setattr(cpu_build.metadata, "version", lambda _: "0.0.1")
    assert cpu_build.compiled_path() != before
