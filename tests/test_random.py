import jax
import numpy as np
import pytest

from jaxattn.ops.random import hashed_uniform

KEYS = jax.random.split(jax.random.key(0), 16)
N = 1 << 16


def draws():
    """`[keys, N]`."""
    return np.stack([np.asarray(hashed_uniform(key, (N,))) for key in KEYS])


def test_numbers_are_uniform():
    """Chi-square over 64 bins of a million numbers: 63 +- 11.2, and so below 119."""
    u = draws()
    assert u.dtype == np.float32
    assert u.min() >= 0
    assert u.max() < 1
    counts = np.histogram(u, 64, (0, 1))[0]
    expected = u.size / 64
    assert np.sum((counts - expected) ** 2) / expected < 63 + 5 * 11.2


@pytest.mark.parametrize("distance", [1, 2, 3, 64, 4096])
def test_numbers_do_not_know_their_neighbours(distance):
    """The correlation of a million pairs is within 5 of its deviations, 0.001."""
    u = draws() - 0.5
    pairs = np.mean(u[:, distance:] * u[:, :-distance]) * 12
    assert abs(pairs) < 0.005


def test_keys_have_numbers_of_their_own():
    correlation = np.corrcoef(draws())
    assert np.abs(correlation - np.eye(len(KEYS))).max() < 5 / np.sqrt(N)


def test_every_bit_is_as_often_set_as_not():
    """24 bits of a million numbers: 0.5 +- 0.0005 each."""
    bits = (draws() * 2**24).astype(np.uint32)
    share = [np.mean((bits >> i) & 1) for i in range(24)]
    np.testing.assert_allclose(share, 0.5, atol=0.0025)


def test_devices_share_the_numbers_of_one():
    mesh = jax.make_mesh((8,), ("data",), devices=jax.devices()[:8])
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    draw = lambda key: hashed_uniform(key, (16, 8))  # noqa: E731
    shared = jax.jit(draw, out_shardings=spread)(KEYS[0])
    np.testing.assert_array_equal(shared, draw(KEYS[0]))


def test_more_numbers_than_the_hash_has_are_refused():
    with pytest.raises(ValueError, match=r"shape=\(65536, 65537\): more than"):
        hashed_uniform(KEYS[0], (65536, 65537))
