from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from apollo_cli.growth.layer_maps import BLENDS, COPIES, LayerMap, inserted, layer_map, mixing_matrix

INSIDE = ("append", "middle", "boundary")  # part of the layers again, at one place
PAIRS = [(source, target) for target in range(1, 65) for source in range(1, target + 1)]


def stacked(source: int, target: int) -> LayerMap:
    rounds, rest = divmod(target, source)
    every_layer = list(range(source))
    return tuple(every_layer * rounds + (every_layer[-rest:] if rest else []))


def linear_rows(source: int, target: int) -> Iterator[dict[int, Fraction]]:
    for i in range(target):
        position = Fraction(i * (source - 1), target - 1) if target > 1 else Fraction(0)
        below = position.numerator // position.denominator
        share = position - below
        yield {below: 1 - share} | ({below + 1: share} if share else {})


def test_nearest_is_the_source_layer_at_the_same_height_for_every_pair() -> None:
    for source, target in PAIRS:
        indices = layer_map("nearest", source, target)
        assert len(indices) == target
        for i, j in enumerate(indices):  # the i-th of `target` parts begins within the j-th of `source`
            assert Fraction(j, source) <= Fraction(i, target) < Fraction(j + 1, source), (source, target, i)


def test_stack_repeats_all_layers_then_the_top_ones_for_every_pair() -> None:
    for source, target in PAIRS:
        assert layer_map("stack", source, target) == stacked(source, target), (source, target)


def test_linear_blends_the_two_neighbours_of_the_exact_position_for_every_pair() -> None:
    for source, target in PAIRS:
        exact = np.zeros((target, source))
        for i, row in enumerate(linear_rows(source, target)):
            exact[i, list(row)] = [float(share) for share in row.values()]
        matrix = mixing_matrix("linear", source, target)
        assert np.array_equal(matrix == 0, exact == 0), (source, target)
        np.testing.assert_allclose(matrix, exact, rtol=0, atol=2**-53)


@pytest.mark.parametrize(
    ("kind", "source", "target", "indices"),
    [
        ("nearest", 3, 8, (0, 0, 0, 1, 1, 1, 2, 2)),
        ("nearest", 6, 12, (0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5)),
        ("nearest", 1, 3, (0, 0, 0)),
        # in floats, int(18 / (18 / 14)) and others of these come out one too small
        ("nearest", 14, 18, (0, 0, 1, 2, 3, 3, 4, 5, 6, 7, 7, 8, 9, 10, 10, 11, 12, 13)),
        ("nearest", 18, 42, tuple(j for j in range(0, 18, 3) for j in (j, j, j, j + 1, j + 1, j + 2, j + 2))),
        ("stack", 3, 5, (0, 1, 2, 1, 2)),
        ("stack", 5, 12, (0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 3, 4)),
        ("stack", 3, 12, (0, 1, 2) * 4),
        ("append", 4, 6, (0, 1, 2, 3, 2, 3)),
        ("append", 3, 6, (0, 1, 2, 0, 1, 2)),
        ("middle", 6, 8, (0, 1, 2, 3, 2, 3, 4, 5)),  # blocks 01 23 45, and 23 is the middle one
        ("middle", 8, 10, (0, 1, 2, 3, 2, 3, 4, 5, 6, 7)),  # of an even number of blocks the lower middle
        ("middle", 3, 6, (0, 1, 2, 0, 1, 2)),
        ("middle", 9, 12, (0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7, 8)),
        ("middle", 3, 5, (0, 1, 0, 1, 2)),  # blocks 01 and 2
        ("boundary", 6, 8, (0, 1, 2, 2, 3, 3, 4, 5)),
        ("boundary", 6, 9, (0, 1, 2, 2, 3, 4, 3, 4, 5)),
        ("boundary", 3, 6, (0, 0, 1, 2, 1, 2)),
        ("boundary", 4, 8, (0, 1, 0, 1, 2, 3, 2, 3)),
    ],
)
def test_published_examples_of_copies(kind: str, source: int, target: int, indices: LayerMap) -> None:
    assert layer_map(kind, source, target) == indices


@pytest.mark.parametrize(
    ("kind", "source", "target", "rows"),
    [("nearest", 3, 6, (1, 3, 5)), ("nearest", 1, 3, (1, 2)), ("stack", 3, 5, (3, 4)), ("stack", 4, 4, ())],
)
def test_new_layers_of_a_copying_map(kind: str, source: int, target: int, rows: LayerMap) -> None:
    assert inserted(mixing_matrix(kind, source, target)) == rows


@pytest.mark.parametrize("kind", INSIDE)
def test_every_layer_stays_and_a_block_of_them_is_repeated(kind: str) -> None:
    for source, target in PAIRS:
        if target <= 2 * source:
            indices = layer_map(kind, source, target)
            twice = [i for i in range(source) if indices.count(i) == 2]
            assert set(indices) == set(range(source))
            assert len(indices) == target == source + len(twice)
            assert twice == list(range(twice[0], twice[0] + len(twice))) if twice else target == source


@pytest.mark.parametrize("kind", INSIDE)
def test_layers_are_doubled_first_where_they_more_than_double(kind: str) -> None:
    doubled = layer_map(kind, 3, 6)
    assert layer_map(kind, 3, 8) == tuple(doubled[i] for i in layer_map(kind, 6, 8))


@pytest.mark.parametrize("kind", [*COPIES, *BLENDS])
def test_rows_of_every_matrix_sum_to_one(kind: str) -> None:
    for source, target in PAIRS:
        matrix = mixing_matrix(kind, source, target)
        assert matrix.shape == (target, source)
        assert matrix.dtype == np.float64
        assert (matrix >= 0).all()
        np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=1e-15)


@pytest.mark.parametrize("kind", COPIES)
def test_matrix_of_a_copy_is_one_hot_at_the_indices(kind: str) -> None:
    for source, target in PAIRS:
        matrix = mixing_matrix(kind, source, target)
        assert np.array_equal(np.count_nonzero(matrix, axis=1), np.ones(target))
        assert (matrix[range(target), layer_map(kind, source, target)] == 1).all()


@pytest.mark.parametrize("kind", [*COPIES, *BLENDS])
def test_equal_depths_copy_every_layer_to_itself(kind: str) -> None:
    for layers in range(1, 65):
        assert np.array_equal(mixing_matrix(kind, layers, layers), np.eye(layers))


@pytest.mark.parametrize("stages", [(1, 3, 6, 12), (1, 2, 4, 8), (2, 6, 24), (5, 15, 60)])
def test_sharing_before_growth_equals_sharing_after_growth_at_full_depth(stages: tuple[int, ...]) -> None:
    full = stages[-1]
    for before, after in pairwise(stages):
        grown = layer_map("nearest", before, after)
        shared = layer_map("nearest", before, full)
        assert tuple(grown[i] for i in layer_map("nearest", after, full)) == shared


def test_sharing_survives_growth_at_every_depth_when_each_layer_is_multiplied() -> None:
    for before, after in PAIRS:
        if after % before == 0:
            grown = layer_map("nearest", before, after)
            for depth in range(after, 65):
                composed = tuple(grown[i] for i in layer_map("nearest", after, depth))
                assert composed == layer_map("nearest", before, depth), (before, after, depth)


@pytest.mark.parametrize("kind", ["bilinear", "", "Nearest"])
def test_unknown_map_is_refused_with_the_alternatives(kind: str) -> None:
    with pytest.raises(
        ValueError, match=rf"unknown layer map '{kind}': choose one of nearest, stack, append, middle, boundary$"
    ):
        layer_map(kind, 1, 3)
    with pytest.raises(
        ValueError,
        match=rf"unknown layer map '{kind}': choose one of nearest, stack, append, middle, boundary, linear$",
    ):
        mixing_matrix(kind, 1, 3)


def test_blending_map_cannot_share() -> None:
    with pytest.raises(
        ValueError, match=r"unknown layer map 'linear': choose one of nearest, stack, append, middle, boundary$"
    ):
        layer_map("linear", 1, 3)


@pytest.mark.parametrize(("source", "target"), [(0, 3), (-1, 3), (4, 3)])
def test_impossible_numbers_of_layers_are_refused(source: int, target: int) -> None:
    message = f"a layer map needs 1 <= source <= target, not {source} -> {target}"
    with pytest.raises(ValueError, match=message):
        layer_map("nearest", source, target)
    with pytest.raises(ValueError, match=message):
        mixing_matrix("linear", source, target)
