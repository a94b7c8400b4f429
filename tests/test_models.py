import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn
from jaxattn import UserError, create_model, from_torch, list_models, to_torch

PARAMETERS = {
    "canet_tiny": 396_155,
    "canet_light": 1_576_244,
    "canet": 6_289_574,
    "canet_pro": 25_128_842,
}


def abstract_variables(module, size=32):
    init = lambda x: module.init(jax.random.key(0), x)  # noqa: E731
    return jax.eval_shape(init, jnp.zeros((1, size, size, 3)))


def count(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count_is_the_published_one(name):
    assert count(abstract_variables(create_model(name))["params"]) == PARAMETERS[name]


def test_every_model_has_a_published_count():
    assert sorted(PARAMETERS) == list_models()


def test_num_classes_is_honoured():
    variables = abstract_variables(create_model("canet_tiny", num_classes=7))
    # 27 hidden units, 3 classes fewer: 28 parameters each.
    assert count(variables["params"]) == PARAMETERS["canet_tiny"] - 3 * 28


def test_logits_are_float32_at_bfloat16_compute():
    model = create_model("canet_tiny", dtype=jnp.bfloat16)
    variables = abstract_variables(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {
        jnp.dtype(jnp.float32)
    }
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    assert jax.eval_shape(model.apply, variables, x).dtype == jnp.float32


def test_bfloat16_reaches_the_convolutions():
    model = create_model("canet_tiny", dtype=jnp.bfloat16)
    variables = abstract_variables(model)
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    lowered = jax.jit(model.apply).lower(variables, x).as_text()
    convolutions = [s for s in lowered.splitlines() if "stablehlo.convolution" in s]
    assert convolutions
    assert all("bf16" in s and "f32" not in s for s in convolutions)


@pytest.mark.parametrize("size", [8, 24, 40])
def test_any_multiple_of_eight_is_classified(size):
    model = create_model("canet_tiny")
    x = jax.ShapeDtypeStruct((2, size, size + 8, 3), jnp.float32)
    variables = abstract_variables(model, size)
    assert jax.eval_shape(model.apply, variables, x).shape == (2, 10)


def test_other_sizes_are_refused():
    with pytest.raises(
        ValueError, match="height 30 and width 30 must be multiples of 8"
    ):
        abstract_variables(create_model("canet_tiny"), 30)


def test_unknown_model_names_the_choices():
    with pytest.raises(UserError, match=r"did you mean 'canet_tiny'.*canet_pro"):
        create_model("canet_tin")


def test_unknown_keyword_names_the_choices():
    with pytest.raises(
        UserError, match=r"model.widht: canet takes no such key; choices: .*dtype"
    ):
        create_model("canet", widht=3)


def test_fixed_width_cannot_be_changed():
    with pytest.raises(UserError, match=r"model.width: canet_tiny takes no such key"):
        create_model("canet_tiny", width=3)


@pytest.fixture(scope="module")
def tiny_state():
    model = create_model("canet_tiny")
    x = jnp.zeros((1, 32, 32, 3))
    return model, x, to_torch(model, model.init(jax.random.key(0), x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("fc2.bias"), "missing: fc2.bias"),
        (lambda s: s.update(fc9=np.zeros(1)), "unexpected: fc9"),
        (
            lambda s: s.update({"fc2.weight": np.zeros((10, 26))}),
            r"wrong shape: fc2.weight \(10, 26\), not \(10, 27\)",
        ),
    ],
)
def test_ill_fitting_state_dict_is_named(tiny_state, change, message):
    model, x, state = tiny_state
    state = dict(state)
    change(state)
    with pytest.raises(ValueError, match=message):
        from_torch(model, state, x)


def test_initial_weights_have_torchs_distribution(tiny_state):
    _, _, state = tiny_state
    kernel = state["res_5.conv4.weight"]  # 64 x 64 x 3 x 3
    bound = 1 / np.sqrt(64 * 9)
    assert np.abs(kernel).max() <= bound
    assert abs(kernel.std() / (bound / np.sqrt(3)) - 1) < 0.02  # 36,864 draws
    assert np.abs(state["fc1.bias"]).max() <= 1 / np.sqrt(256)
    assert state["fc1.bias"].std() > 0
    assert np.abs(state["res_0.se.conv1.weight"]).max() <= 1 / np.sqrt(3)


def test_the_package_exports_its_names():
    for name in ("create_model", "from_torch", "list_models", "to_torch"):
        assert name in jaxattn.__all__
