from collections import Counter

import numpy as np
import pytest

from apollo_cli.data.row_order import RowOrder, allotted, most_needed

ORDER = RowOrder((500, 4000, 90), (0.6, 0.3, 0.1))
BOUNDS = np.array([0, 500, 4500, 4590])


def part_of(rows: np.ndarray) -> np.ndarray:
    return np.searchsorted(BOUNDS, rows, side="right") - 1


@pytest.mark.parametrize(
    ("count", "weights", "expected"),
    [(10, (1, 1), [5, 5]), (10, (1, 1, 1), [4, 3, 3]), (0, (1, 2), [0, 0]), (7, (0.5, 0.25, 0.25), [3, 2, 2])],
)
def test_a_number_is_divided_into_whole_shares(count: int, weights: tuple[float, ...], expected: list[int]) -> None:
    assert allotted(count, weights) == expected


def test_a_corpus_without_weights_has_every_row_once_an_epoch() -> None:
    order = RowOrder((30, 12, 5))
    rows = order.row_numbers(3, np.arange(3 * 47))
    assert [sorted(rows[i : i + 47]) for i in (0, 47, 94)] == [list(range(47))] * 3
    assert np.array_equal(rows, RowOrder((47,)).row_numbers(3, np.arange(3 * 47)))


def test_every_block_has_each_part_by_its_weight() -> None:
    parts = part_of(ORDER.row_numbers(0, np.arange(30_000)))
    for block in parts.reshape(3, 10_000):
        assert Counter(block.tolist()) == {0: 6000, 1: 3000, 2: 1000}
    from scipy.stats import chisquare

    assert chisquare(np.bincount(parts[:500], minlength=3), [300, 150, 50]).pvalue > 0.001


def test_each_part_goes_through_its_rows_epoch_by_epoch() -> None:
    rows = ORDER.row_numbers(1, np.arange(20_000))
    parts = part_of(rows)
    for part, size in enumerate(ORDER.rows):
        mine = rows[parts == part] - BOUNDS[part]
        for first in range(0, len(mine) - size + 1, size):
            assert sorted(mine[first : first + size]) == list(range(size))


def test_the_rows_of_a_mixture_can_be_computed_one_by_one() -> None:
    whole = ORDER.row_numbers(5, np.arange(25_000))
    asked = np.array([24_999, 0, 9_999, 10_000, 17, 17])
    assert np.array_equal(ORDER.row_numbers(5, asked), whole[asked])
    assert np.array_equal(np.concatenate([ORDER.row_numbers(5, np.array([i])) for i in range(50)]), whole[:50])


def test_seeds_mix_differently() -> None:
    assert not np.array_equal(ORDER.row_numbers(0, np.arange(100)), ORDER.row_numbers(1, np.arange(100)))


@pytest.mark.parametrize("samples", [1, 100, 9_999, 10_000, 23_456])
def test_no_part_gives_more_rows_than_the_bound(samples: int) -> None:
    large = RowOrder((10**6, 10**6, 10**6), ORDER.weights)
    assert ORDER.weights
    most = most_needed(samples, ORDER.weights)
    counts = np.bincount(large.row_numbers(0, np.arange(samples)) // 10**6, minlength=3)
    assert (counts <= most).all()
    assert sum(most) <= samples + 20_000
