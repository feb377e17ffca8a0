"""The reports are those of the kept rows; what a loss costs from scratch."""

import re

import pytest

from apollo_cli.report import plots, savings
from benchmarks import (
    archives,
    gpu_cells,
    long_cells,
    method_cells,
    mixing_cells,
    render_gpu,
    render_ladder,
    render_reproduction,
)
from benchmarks.archives import BenchmarkCorpus
from benchmarks.cells import KINDS
from tests.benchmarks.conftest import part, without_pictures
from tests.helpers.pages import PAGES, README


def test_the_reports_and_the_pages_have_the_tables_of_the_kept_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "draw_comparison", lambda comparison: [])
    names = {corpus.name for corpus in archives.corpora()} - {
        each.NAME for each in (gpu_cells, long_cells, method_cells, mixing_cells)
    }
    assert names == {"pydocs", "wikipedia_novels"}
    for name in names:
        assert part(f"What is saved: {name}") == without_pictures(render_reproduction.lines(name))
    assert part(render_gpu.TITLE) == without_pictures(list(render_gpu.lines()))
    pydocs = BenchmarkCorpus("pydocs")
    for kind in KINDS:
        for rows in (render_reproduction.on_depth(pydocs, kind), render_ladder.beside(pydocs, kind)):
            assert "\n".join(rows) in PAGES["docs/results.md"]


@pytest.mark.parametrize(("column", "kind"), [(-2, "bert"), (-1, "gpt")])
def test_the_readme_and_the_questions_have_the_figures_of_the_tables(column: int, kind: str) -> None:
    pydocs = BenchmarkCorpus("pydocs")
    saved = {_cells(row)[0]: _cells(row)[-1] for row in render_ladder.beside(pydocs, kind) if row.startswith("| ")}
    shown = [_cells(line) for line in README.splitlines() if re.match(r"\| `\w+`.* \| -?\d[^|]* \| ", line)]
    assert [name[0].split("`")[1] for name in shown] == ["late_zero_init_new", "apollo_late", "stackbert", "apollo"]
    for row in shown:
        assert saved[row[0].split("`")[1]] == f"{row[column]} (n = 3)"
    cosine, wsd = (
        _cells(line)[column]
        for line in PAGES["docs/faq.md"].splitlines()
        if line.startswith(("| one cosine", "| warmup, constant"))
    )
    gpt, _, bert = "\n".join(part("What is saved: pydocs")).partition("## BERT")
    assert f"Scratch under one cosine, as published, ends at {cosine}." in {"gpt": gpt, "bert": bert}[kind]
    assert _cells([*render_reproduction.on_depth(pydocs, kind)][-1])[1] == wsd


def _cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]


def curve(*losses: float) -> savings.Curve:
    """Scratch runs of 1, 2, 3, ... FLOPs."""
    points = enumerate(losses, 1)
    return savings.make_curve(savings.Point(step, savings.Cost(float(step), 1.0), loss) for step, loss in points)


@pytest.mark.parametrize(
    ("loss", "flops"),
    [(3.0, 1.0), (2.5, 2**0.5), (2.0, 2.0), (1.25, 2 * 1.5**0.75), (1.0, 3.0), (3.1, None), (0.9, None)],
)
def test_what_a_loss_costs_from_scratch_is_never_extrapolated(loss: float, flops: float | None) -> None:
    found = savings.scratch_cost(curve(3.0, 2.0, 1.0), loss, "flops")
    assert found == (flops and pytest.approx(flops))
    assert savings.scratch_cost(curve(), loss, "flops") is None
