"""The table of the paper's claims."""

import pytest

from benchmarks import render_claims, results_page
from tests.benchmarks.conftest import part
from tests.helpers.pages import PAGES


def test_the_report_and_the_page_have_the_table_of_the_kept_rows() -> None:
    assert part(render_claims.TITLE) == [line for line in render_claims.lines() if line]
    table = results_page.table(("claim", "settings", "BERT", "GPT"), render_claims.rows())
    assert "\n".join(table) in PAGES["docs/results.md"]


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({0: 1.5, 1: 1.7, 2: 1.6}, "0.350 ± 0.124 nats (n = 3): **holds**"),  # differences 0.3, 0.4 and 0.35
        ({0: 1.0, 1: 1.2, 2: 1.1}, "-0.150 ± 0.124 nats (n = 3): **does not hold here**"),
        (
            {0: 1.5, 1: 0.9},
            "-0.050 ± 4.447 nats (n = 2): **not told apart**",
        ),  # t(1) = 12.706
        ({0: 1.6, 5: 0.0}, "0.400 nats (n = 1): **holds**"),  # t(2) s sqrt(2) = 4.303 x 0.05 x 1.414 = 0.304
        ({0: 1.5}, "0.300 nats (n = 1): **not told apart**"),
        ({4: 1.5}, "not measured"),
    ],
)
def test_a_difference_is_paired_by_seed_and_judged_by_its_interval(other: dict[int, float], says: str) -> None:
    ours = {0: 1.2, 1: 1.3, 2: 1.25}
    assert render_claims._below(ours, other) == says


def test_of_one_seed_alone_nothing_is_judged() -> None:
    assert render_claims._below({0: 1.2}, {0: 1.5, 1: 1.0}) == "0.300 nats (n = 1)"
    assert render_claims._saving({0: 0.5}, 0.1) == "50.0 % (n = 1)"


def test_a_saving_is_judged_by_what_was_claimed() -> None:
    assert render_claims._saving({0: 0.5, 1: 0.6}, 0.5) == "55.0 ± 63.5 % (n = 2): **not told apart**"
    assert render_claims._saving({0: 0.40, 1: 0.41, 2: 0.42}, 0.38) == "41.0 ± 2.5 % (n = 3): **holds**"
    assert render_claims._saving({0: 0.40, 1: 0.41, 2: 0.42}, 0.45).endswith(": **does not hold here**")
    assert render_claims._saving({0: 0.3, 1: None}, 0.45) == "beyond the scratch runs"


def test_two_savings_are_paired_by_seed() -> None:
    assert render_claims._more({0: 0.3, 1: 0.4}, {1: 0.2, 0: 0.1}) == "20.0 ± 0.0 points (n = 2): **holds**"
    assert render_claims._more({0: 0.3, 2: 0.4}, {0: 0.1, 1: 0.9}) == "20.0 points (n = 1): **not told apart**"
