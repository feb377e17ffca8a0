"""CompleteP's promise (Dey 2025, arXiv 2505.01618): activations and their changes do not depend on the size."""

import pytest

from apollo_cli.models.model_config import Kind
from benchmarks.run_coordinates import BASE_HIDDEN, DEPTHS, WIDTHS, coordinates, spreads

BAND = 1.5
BY_WIDTH, BY_DEPTH = [(width, 4) for width in WIDTHS], [(BASE_HIDDEN, depth) for depth in DEPTHS]


@pytest.mark.parametrize("kind", ["bert", "gpt"])
@pytest.mark.parametrize("grid", [[(64, 2), (256, 2)], [(64, 2), (64, 8)]], ids=["width", "depth"])
def test_completep_stays_in_the_band_that_the_standard_leaves(grid: list[tuple[int, int]], kind: Kind) -> None:
    found = spreads([coordinates(kind, *sizes, "completep") for sizes in grid])
    assert max(found.values()) < BAND, found
    standard = spreads([coordinates(kind, *sizes, "standard") for sizes in grid])
    assert max(standard.values()) > BAND


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("kind", ["bert", "gpt", "llama"])
@pytest.mark.parametrize("grid", [BY_WIDTH, BY_DEPTH], ids=["width", "depth"])
def test_completep_stays_in_the_band_over_the_whole_grid(
    grid: list[tuple[int, int]], kind: Kind, optimizer: str
) -> None:
    found = spreads([coordinates(kind, *sizes, "completep", optimizer) for sizes in grid])
    assert max(found.values()) < BAND, found
    standard = spreads([coordinates(kind, *sizes, "standard", optimizer) for sizes in grid])
    assert max(standard.values()) > BAND
