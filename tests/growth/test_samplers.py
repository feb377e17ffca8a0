import re
from collections import Counter
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import floor, nextafter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apollo_cli.growth.rng import Purpose, generator, uniforms
from apollo_cli.growth.samplers import LVPS, SAMPLERS, DepthSampler, Edge, Full, Prefixes, Shallow, Subset, Uniform

PAIRS = [(1, 12), (3, 12), (6, 12), (11, 12), (1, 2), (5, 7), (2, 24), (7, 24)]
ALL_PAIRS = [(layers, target) for target in range(1, 25) for layers in range(1, target + 1)]
ANY = [LVPS(), LVPS(k=0.0), LVPS(k=1.0), LVPS(k=3.5), Edge(), Uniform(), Full(), Shallow()]


@st.composite
def pairs(draw: st.DrawFn) -> tuple[int, int]:
    target = draw(st.integers(1, 96))
    return draw(st.integers(1, target)), target


def samplers() -> st.SearchStrategy[DepthSampler]:
    lower, overshoot = st.floats(0.05, 1.0), st.floats(0.01, 2.0)
    return st.one_of(
        st.builds(LVPS, st.floats(0, 50), lower, overshoot),
        st.builds(Edge, lower, overshoot, st.floats(1, 100)),
        st.sampled_from([Uniform(), Full(), Shallow()]),
    )


def integrated(k: float, lower: float, overshoot: float, layers: int, target: int) -> dict[int, float]:
    """P(depth) by quadrature of the density y^-k, bin by bin of floor(y N)."""

    def mass(a: float, b: float) -> float:
        from scipy import integrate

        return integrate.quad(lambda y: y**-k, a, b, epsabs=0, epsrel=1e-12)[0]

    top = target / layers + overshoot
    edges = [lower, *(depth / layers for depth in range(layers + 1, target + 1)), top]
    masses = [mass(a, b) for a, b in pairwise(edges)]
    return {depth: m / sum(masses) for depth, m in enumerate(masses, layers)}


def mean_depth(sampler: DepthSampler, layers: int, target: int) -> float:
    return sum(depth * p for depth, p in sampler.probabilities(layers, target).items())


def transformed(sampler: Edge, layers: int, target: int, points: int = 400_000) -> np.ndarray:
    """P(depth) by pushing a fine grid of x through the definition."""
    x = (np.arange(points) + 0.5) / points
    height = target / layers + sampler.overshoot - sampler.lower
    y = height / (1 + np.exp(sampler.steepness * (x - 0.5))) + sampler.lower
    depths = np.clip(np.floor(y * layers), layers, target).astype(int)
    return np.bincount(depths, minlength=target + 1)[layers:] / points


@pytest.mark.parametrize("k", [0.0, 0.5, 0.9999, 1.0, 1.0001, 1.5, 2.0, 3.5, 8.0])
@pytest.mark.parametrize(("layers", "target"), PAIRS)
def test_lvps_is_the_integral_of_its_density(k: float, layers: int, target: int) -> None:
    expected = integrated(k, 0.6, 0.4, layers, target)
    assert LVPS(k=k).probabilities(layers, target) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("lower", "overshoot"), [(0.3, 0.4), (1.0, 0.05), (0.6, 2.0)])
def test_lvps_follows_its_options(lower: float, overshoot: float) -> None:
    expected = integrated(2.5, lower, overshoot, 3, 12)
    assert LVPS(2.5, lower, overshoot).probabilities(3, 12) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("sampler", [Edge(), Edge(lower=0.3, overshoot=1.0, steepness=7.0)])
@pytest.mark.parametrize(("layers", "target"), PAIRS)
def test_edge_is_its_formula_over_uniform_x(sampler: Edge, layers: int, target: int) -> None:
    computed = list(sampler.probabilities(layers, target).values())
    np.testing.assert_allclose(computed, transformed(sampler, layers, target), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("layers", "target"), [*PAIRS, (12, 12)])
def test_uniform_full_and_shallow_by_hand(layers: int, target: int) -> None:
    span = range(layers, target + 1)
    assert Uniform().probabilities(layers, target) == pytest.approx({depth: 1 / len(span) for depth in span})
    assert Full().probabilities(layers, target) == {target: 1}
    assert Shallow().probabilities(layers, target) == {layers: 1}


@pytest.mark.parametrize(
    ("layers", "shallowest", "expected_depth"), [(1, 0.7356, 1.7668), (3, 0.6368, 4.2256), (6, 0.6476, 7.1354)]
)
def test_lvps_gives_the_published_figures(layers: int, shallowest: float, expected_depth: float) -> None:
    assert LVPS(k=2.0).probabilities(layers, 12)[layers] == pytest.approx(shallowest, abs=5e-5)
    assert mean_depth(LVPS(k=2.0), layers, 12) == pytest.approx(expected_depth, abs=5e-5)


def test_lvps_of_one_layer_is_the_hyperbola_worked_by_hand() -> None:
    # S(y) = (1/y - 1/2.4) / (1/0.6 - 1/2.4) on [0.6, 2.4]: S(2) = (1/12) / (5/4) = 1/15
    assert LVPS(k=2.0).probabilities(1, 2) == pytest.approx({1: 14 / 15, 2: 1 / 15})
    # flat on the same support: S(2) = 0.4 / 1.8
    assert LVPS(k=0.0).probabilities(1, 2) == pytest.approx({1: 7 / 9, 2: 2 / 9})


def test_edge_has_the_published_mass_at_both_ends() -> None:
    probabilities = Edge().probabilities(3, 12)
    assert probabilities[3] == pytest.approx(0.428, abs=5e-4)
    assert probabilities[12] == pytest.approx(0.393, abs=5e-4)


@pytest.mark.parametrize("sampler", ANY, ids=str)
def test_last_stage_runs_the_target_depth(sampler: DepthSampler) -> None:
    assert sampler.probabilities(12, 12) == {12: 1}
    assert mean_depth(sampler, 12, 12) == 12
    assert set(sampler.depths(uniforms(0, Purpose.DEPTH, 0, 1000), 12, 12)) == {12}


@pytest.mark.parametrize("sampler", [*(LVPS(k=k) for k in (0.0, 1.0, 2.0, 3.5)), Edge(), Uniform()], ids=str)
def test_every_depth_of_every_pair_is_reached(sampler: DepthSampler) -> None:
    for layers, target in ALL_PAIRS:
        probabilities = sampler.probabilities(layers, target)
        assert list(probabilities) == list(range(layers, target + 1))
        assert min(probabilities.values()) > 0, (layers, target)
        assert probabilities[target] > 1e-7, (layers, target)
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-12)


@settings(deadline=None)
@given(samplers(), pairs())
def test_every_sampler_is_a_distribution_over_the_possible_depths(
    sampler: DepthSampler, pair: tuple[int, int]
) -> None:
    layers, target = pair
    probabilities = sampler.probabilities(layers, target)
    depths, masses = list(probabilities), list(probabilities.values())
    assert depths == sorted(set(depths))
    assert layers <= depths[0] <= depths[-1] <= target
    assert min(masses) >= 0
    assert sum(masses) == pytest.approx(1, abs=1e-12)
    assert mean_depth(sampler, layers, target) == pytest.approx(np.dot(depths, masses))


@settings(deadline=None)
@given(samplers(), pairs(), st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=20))
def test_one_draw_equals_many_and_inverts_the_distribution(
    sampler: DepthSampler, pair: tuple[int, int], u: list[float]
) -> None:
    layers, target = pair
    u = sorted([0.0, *u, nextafter(1.0, 0.0)])
    depths = sampler.depths(np.array(u), layers, target)
    assert depths.dtype == np.int64
    assert depths.tolist() == [sampler.depths(np.array([x]), layers, target).item() for x in u]
    assert depths.tolist() == sorted(depths)
    probabilities = sampler.probabilities(layers, target)
    for x, depth in zip(u, depths.tolist(), strict=True):
        below = sum(p for d, p in probabilities.items() if d < depth)
        assert below - 1e-12 <= x <= below + probabilities[depth] + 1e-12


def test_number_at_a_bound_belongs_to_the_deeper_side() -> None:
    bounds = [0.0, 0.25, 0.5, 0.75]
    assert Uniform().depths(np.array(bounds), 1, 4).tolist() == [1, 2, 3, 4]
    assert Uniform().depths(np.nextafter(bounds[1:], 0), 1, 4).tolist() == [1, 2, 3]


@settings(deadline=None)
@given(st.floats(1e-13, 1e-3), st.sampled_from([-1, 1]), pairs())
def test_lvps_at_k_one_is_the_limit_from_both_sides(distance: float, side: int, pair: tuple[int, int]) -> None:
    at_one, beside = (LVPS(k=k).probabilities(*pair) for k in (1.0, 1.0 + side * distance))
    # |d P / d k| is bounded by the spread of log y over the support, below log(96.4 / 0.6) < 5.1
    assert beside == pytest.approx(at_one, rel=0, abs=5.1 * distance + 1e-9)


@pytest.mark.parametrize("k", [50.0, 1e3, 1e6, 1e300])
@pytest.mark.parametrize(("layers", "target"), [(1, 12), (11, 12), (1, 1000), (12, 12)])
def test_huge_k_stays_shallow_without_overflow(k: float, layers: int, target: int) -> None:
    probabilities = LVPS(k=k).probabilities(layers, target)
    assert np.isfinite(list(probabilities.values())).all()
    assert sum(probabilities.values()) == pytest.approx(1)
    assert probabilities[layers] == pytest.approx(1, abs=1e-9)
    assert LVPS(k=k).depths(np.array([0.5]), layers, target).tolist() == [layers]


@pytest.mark.parametrize(("layers", "target"), PAIRS)
def test_larger_k_is_shallower(layers: int, target: int) -> None:
    expected = [mean_depth(LVPS(k=k), layers, target) for k in (0, 0.5, 1, 1.5, 2, 3, 5, 10)]
    assert expected == sorted(expected, reverse=True)
    assert len(set(expected)) == len(expected)


@pytest.mark.parametrize("k", [0.0, 1.0, 2.0, 5.0])
def test_lvps_draws_the_depths_of_the_authors_formula(k: float) -> None:
    u, layers, target = uniforms(5, Purpose.DEPTH, 0, 2000), 3, 12
    a, b, p = 0.6, target / layers + 0.4, 1 - k
    y = a * (b / a) ** u if k == 1 else (a**p + u * (b**p - a**p)) ** (1 / p)
    direct = [min(max(floor(ratio * layers), layers), target) for ratio in y]
    assert LVPS(k=k).depths(u, layers, target).tolist() == direct


@pytest.mark.parametrize("sampler", ANY, ids=str)
@pytest.mark.parametrize(("layers", "target"), [(1, 12), (3, 12), (6, 12), (5, 7), (2, 24)])
@pytest.mark.parametrize("seed", [0, 1])
def test_draws_have_the_stated_distribution(sampler: DepthSampler, layers: int, target: int, seed: int) -> None:
    draws = 100_000
    depths = sampler.depths(uniforms(seed, Purpose.DEPTH, 0, draws), layers, target)
    probabilities = sampler.probabilities(layers, target)
    observed, expected = [0.0], [0.0]
    for depth, probability in probabilities.items():  # cells of fewer than 10 expected draws are merged
        observed[-1] += np.count_nonzero(depths == depth)
        expected[-1] += draws * probability
        if expected[-1] >= 10:
            observed.append(0.0)
            expected.append(0.0)
    observed[-2:], expected[-2:] = [sum(observed[-2:])], [sum(expected[-2:])]
    assert sum(observed) == draws
    if len(observed) > 1:
        from scipy import stats

        assert stats.chisquare(observed, expected).pvalue > 1e-4


def test_registry_names_every_sampler() -> None:
    by_depth = {"lvps": LVPS, "uniform": Uniform, "edge": Edge, "full": Full, "shallow": Shallow}
    assert by_depth | {"subset": Subset, "prefixes": Prefixes} == SAMPLERS


def test_a_subset_has_the_first_the_last_and_random_layers_between() -> None:
    sampler = Subset((4, 6)).in_stage(0)
    assert sampler.probabilities(6, 6) == {4: 1.0}
    assert sampler.in_stage(1).probabilities(6, 6) == {6: 1.0}
    parts = Counter(sampler.layers_run(4, 6, partial(generator, 0, Purpose.FORWARD_PATH, i)) for i in range(3000))
    assert set(parts) == {(0, a, b, 5) for a in range(1, 5) for b in range(a + 1, 5)}
    assert all(400 < count < 600 for count in parts.values())  # 500 each, four deviations are 82
    assert sampler.layers_run(6, 6, lambda: pytest.fail("it draws numbers")) == (0, 1, 2, 3, 4, 5)
    assert sampler.layers_run(2, 6, lambda: generator(0, Purpose.FORWARD_PATH, 0)) == (0, 5)


def test_prefixes_by_hand() -> None:
    sampler = Prefixes()
    assert sampler.in_stage(0) is sampler
    assert sampler.in_stage(1) == Shallow()
    assert sampler.probabilities(12, 12) == {3: 0.25, 6: 0.25, 9: 0.25, 12: 0.25}
    assert sampler.probabilities(2, 2) == {2: 1.0}
    assert sampler.layers_run(6, 12, lambda: pytest.fail("it draws numbers")) == (0, 1, 2, 3, 4, 5)
    assert [sampler.frozen(depth) for depth in (3, 6, 9, 12)] == [0, 3, 6, 9]
    assert sampler.stage_problems([12, 8]) == []  # in the second stage all layers run
    assert sampler.stage_problems([2, 12]) == []
    (problem,) = sampler.stage_problems([8, 8])
    assert problem.endswith("the top 2 of 8 stored layers would never run; type one of 1, 2")  # 3 layers train


@pytest.mark.parametrize("sampler", [LVPS(), Uniform(), Edge(), Full(), Shallow()])
def test_other_samplers_share_the_stored_layers_and_train_all(sampler: DepthSampler) -> None:
    assert sampler.in_stage(3) is sampler
    assert sampler.layers_run(8, 3, lambda: pytest.fail("it draws numbers")) == (0, 0, 0, 1, 1, 1, 2, 2)
    assert sampler.frozen(8) == 0


@dataclass(frozen=True)
class Given(DepthSampler):
    distribution: dict[int, float]

    def probabilities(self, layers: int, target: int) -> dict[int, float]:
        return self.distribution


@pytest.mark.parametrize(
    ("distribution", "problem"),
    [
        ({6: -1.0, 12: 2.0}, "P(6)=-1 is not a probability"),
        ({6: float("nan"), 12: 1.0}, "P(6)=nan is not a probability"),
        ({6: 0.25, 12: 0.25}, "the probabilities sum to 0.5, not 1"),
        ({}, "the probabilities sum to 0, not 1"),
        ({5: 0.5, 12: 0.5}, "depth 5 is not from 6 to 12"),
        ({6: 0.5, 13: 0.5}, "depth 13 is not from 6 to 12"),
        ({12: 0.5, 6: 0.5}, "the depths do not rise"),
        ({6: 10**400}, "P(6)=10000000000000000000 is not a probability"),
        ({6: "1"}, "P(6)=1 is not a probability: it is a str, make it a float"),
        ({6: 1j}, "P(6)=1j is not a probability: it is a complex, make it a float"),
        ({6.5: 0.5, 12: 0.5}, "depth 6.5 is no int"),
        ({"6": 1.0}, "depth '6' is no int"),
        (None, "its probabilities are NoneType, not a dict of depths"),
        ([0.5, 0.5], "its probabilities are list, not a dict of depths"),
    ],
)
def test_what_is_no_distribution_of_the_depth_is_named(distribution: dict[int, float], problem: str) -> None:
    assert Given(distribution).probability_problems(6, 12)[0] == problem


def test_a_sampler_that_raises_is_named_with_its_line() -> None:
    class Broken(Given):
        def probabilities(self, layers: int, target: int) -> dict[int, float]:
            return {layers: 1 / (layers - 6)}

    (problem,) = Broken({}).probability_problems(6, 12)
    assert re.fullmatch(r"test_samplers\.py, line \d+, raises ZeroDivisionError: .*", problem)


@given(samplers(), pairs())
def test_every_shipped_distribution_passes(sampler: DepthSampler, sizes: tuple[int, int]) -> None:
    assert sampler.probability_problems(*sizes) == []
