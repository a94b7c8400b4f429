import flax.linen as nn
import jax
import pytest

from jaxattn import create_model
from jaxattn.models.cost import count_macs, count_parameters, summarize_model


class Small(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (3, 3), padding=1)(x)
        x = nn.Conv(8, (3, 3), padding=1, feature_group_count=4)(x)
        return nn.Dense(5)(x.mean((1, 2)))


def test_macs_are_the_hand_counted():
    dense = 16 * 16 * 8 * 9 * 3 + 16 * 16 * 8 * 9 * 2 + 8 * 5
    assert count_macs(Small(), (16, 16, 3)) == dense


@pytest.mark.parametrize(
    ("name", "million"),
    [
        ("canet_tiny", 68),
        ("canet_light", 269),
        ("canet", 1071),
        ("enhanced_efficient_resnet", 525),
    ],
)
def test_macs_are_the_known(name, million):
    assert round(count_macs(create_model(name), (32, 32, 3)) / 1e6) == million


def test_summary_names_modules_and_totals():
    text = summarize_model(create_model("canet_tiny"), (32, 32, 3))
    assert text.startswith("396,155 parameters, 68,")
    for name in ("res_0", "res_5", "fc2", "[1,4,4,64]"):
        assert name in text


def test_parameters_are_counted():
    params = jax.eval_shape(
        Small().init, jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 8, 3), "float32")
    )["params"]
    assert count_parameters(params) == (27 * 8 + 8) + (18 * 8 + 8) + 45
