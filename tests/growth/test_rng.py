import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apollo_cli.growth.rng import Purpose, generator, generators, uniforms

SEEDS = (0, 1, 2, 2**53, 2**53 + 1, 2**63 - 2, 2**63 - 1)


def philox4x64(key: tuple[int, int], counter: int) -> list[int]:
    """Philox4x64-10 written from Salmon et al. (SC 2011)."""
    mask = 2**64 - 1
    word, (k0, k1) = [counter & mask, counter >> 64, 0, 0], key
    for _ in range(10):
        high = 0xD2E7470EE14C6C93 * word[0], 0xCA5A826395121157 * word[2]
        word = [
            (high[1] >> 64) ^ word[1] ^ k0,
            high[1] & mask,
            (high[0] >> 64) ^ word[3] ^ k1,
            high[0] & mask,
        ]
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & mask, (k1 + 0xBB67AE8584CAA73B) & mask
    return word


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("purpose", Purpose)
def test_the_numbers_are_those_of_philox_and_so_of_every_machine(seed: int, purpose: Purpose) -> None:
    words = [word for block in range(1, 4) for word in philox4x64((seed, int(purpose)), block)]
    assert uniforms(seed, purpose, 0, 12).tolist() == [(word >> 11) / 2**53 for word in words]


@settings(deadline=None)
@given(st.integers(0, 2**63 - 1), st.integers(0, 10**15), st.integers(0, 30))
def test_a_block_equals_its_numbers_drawn_one_by_one(seed: int, start: int, count: int) -> None:
    block = uniforms(seed, Purpose.MASK, start, count)
    assert block.shape == (count,)
    assert block.tolist() == [uniforms(seed, Purpose.MASK, start + i, 1)[0] for i in range(count)]


@pytest.mark.parametrize("start", [0, 1, 2, 3, 4, 5, 999, 1000])
@pytest.mark.parametrize("count", [1, 3, 4, 5, 1000])
def test_a_block_is_a_slice_of_the_whole_stream(start: int, count: int) -> None:
    whole = uniforms(7, Purpose.DEPTH, 0, 2000)
    assert np.array_equal(uniforms(7, Purpose.DEPTH, start, count), whole[start : start + count])


def test_drawing_reads_and_moves_no_global_generator() -> None:
    np.random.seed(0)
    torch.manual_seed(0)
    expected, numpy_next, torch_next = uniforms(3, Purpose.DEPTH, 10, 100), np.random.random(), torch.rand(())
    np.random.seed(0)
    torch.manual_seed(0)
    uniforms(4, Purpose.MASK, 0, 17)
    assert (np.random.random(), torch.rand(())) == (numpy_next, torch_next)
    assert np.array_equal(uniforms(3, Purpose.DEPTH, 10, 100), expected)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("purpose", Purpose)
def test_numbers_are_uniform_on_the_half_open_unit_interval(seed: int, purpose: Purpose) -> None:
    u = uniforms(seed, purpose, 12_345, 20_000)
    assert u.dtype == np.float64
    assert u.min() >= 0
    assert u.max() < 1
    from scipy import stats  # takes a second

    assert stats.kstest(u, "uniform").pvalue > 1e-4
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.04  # over 5 standard deviations of 1 / sqrt(20,000)


def test_seeds_and_purposes_have_independent_streams() -> None:
    streams = [uniforms(seed, purpose, 0, 20_000) for seed in SEEDS for purpose in Purpose]
    correlation = np.corrcoef(streams) - np.eye(len(streams))
    assert np.abs(correlation).max() < 0.04
    assert len(np.unique(np.concatenate(streams))) == len(streams) * 20_000  # none is another one shifted


def test_a_generator_that_is_set_to_an_index_draws_as_a_new_one_whatever_was_drawn_before() -> None:
    for index, rng in zip((3, 0, 2**40, 3), generators(7, Purpose.MASK, (3, 0, 2**40, 3)), strict=True):
        new = generator(7, Purpose.MASK, index)
        assert rng.integers(260, size=3).tolist() == new.integers(260, size=3).tolist()  # an odd number of halves
        assert rng.permutation(9).tolist() == new.permutation(9).tolist()
