"""The table of every method: seconds saved, and that the text agrees with the kept rows."""

import re
from statistics import fmean

import pytest

from apollo_cli.report import plots, savings
from apollo_cli.report.comparison import Method, Outcome, Target
from apollo_cli.report.runs import Run, read_rows
from apollo_cli.report.savings import Cost
from apollo_cli.run_directory import RunDirectory
from benchmarks import render_methods
from benchmarks.archives import BenchmarkCorpus, growth_costs
from benchmarks.cells import KINDS
from benchmarks.method_cells import FROM_SOURCE, METHODS, NAME, flops, method_cells, scratch_steps
from tests.benchmarks.conftest import part, without_pictures
from tests.helpers.pages import PAGES

CORPUS = BenchmarkCorpus(NAME)


def test_the_report_has_the_table_of_the_kept_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "draw_comparison", lambda comparison: [])
    assert part(render_methods.TITLE) == without_pictures(list(render_methods.lines(CORPUS)))


def test_the_page_of_methods_has_the_losses_of_the_table() -> None:
    page = PAGES["docs/methods.md"]
    rows = dict(re.findall(r"^\| `(\w+)`.* \| (\d\.\d{4} \| \d\.\d{4}) \|$", page, flags=re.MULTILINE))
    gpt, _, bert = "\n".join(part(render_methods.TITLE)).partition("## BERT")
    found = [dict(re.findall(r"^\| (\w+) \| \d \| (\S+) ", text, flags=re.MULTILINE)) for text in (bert, gpt)]
    scratch = [losses.pop("scratch") for losses in found]
    assert "where scratch ends at {} (BERT) and {} (GPT)".format(*scratch) in page
    names = {"apollo_bert" if name == "apollo" else name: name for name in found[0]}
    assert rows == {shown: " | ".join(losses[name] for losses in found) for shown, name in names.items()}


def test_seconds_saved_use_the_pace_of_the_run_and_of_its_source() -> None:
    def cost(flops: float) -> Cost:
        return Cost(flops, 1.0)

    run = Run("wide", {"name": "wide"}, "completed", "data", 4, {}, [], source_flops=200)
    target = Target(3.0, None, cost(1000), cost(1000))
    method = Method("wide", (Outcome(run, savings.make_curve([]), target, cost(800), cost(800), None),))
    # 600 FLOPs at twice scratch's seconds, and 200 at half of them
    assert render_methods.seconds_saved(method, {"wide": 2.0, "source": 0.5}) == "-30.0%"
    assert render_methods.seconds_saved(method, {}) == ""


def test_what_surprised_us_is_in_the_rows() -> None:
    def runs(kind: str, method: str) -> list[RunDirectory]:
        return [RunDirectory(CORPUS.kept(cell)) for cell in CORPUS.complete(method_cells(kind, [method]))]

    def ends(kind: str, method: str) -> list[float]:
        return [run.summary()["losses"]["eval/loss"] for run in runs(kind, method)]

    def jumps(method: str) -> list[float]:
        return [max(growth_costs(run.summary())) for run in runs("gpt", method)]

    final = {(kind, method): fmean(ends(kind, method)) for kind in KINDS for method in METHODS}
    published = set(METHODS) - {"scratch", "late_zero_init"}
    of_bert, of_gpt = (sorted(published, key=lambda method: final[kind, method]) for kind in ("bert", "gpt"))
    assert set(of_bert[:2]) == {"lidas", "midas"}
    assert set(of_gpt[:3]) == {"lidas", "midas", "stackbert"}
    for kind in KINDS:
        for method in FROM_SOURCE:
            assert min(ends(kind, method)) > max(ends(kind, "scratch"))
            for run in runs(kind, method):
                assert run.summary()["totals"]["source_flops"] < 0.08 * flops(kind, "scratch", scratch_steps())
    for run in runs("gpt", "lemon"):
        first, *others = [row["eval/loss"] for row in read_rows(run.metrics_file) if "eval/loss" in row]
        assert max(others) - first > 0.1
    assert fmean(jumps("gstack")) == pytest.approx(1, abs=0.2)
    assert max(jumps("msg")) < 1e-3
    assert abs(final["gpt", "gstack"] - final["gpt", "msg"]) < 0.01
    assert min(ends("bert", "one_layer")) > 3
    assert min(ends("gpt", "one_layer")) - max(ends("gpt", "scratch")) > 0.1
    assert min(METHODS, key=lambda method: final["bert", method]) == "late_zero_init"
    assert abs(final["gpt", "late_zero_init"] - final["gpt", "scratch"]) < 0.01


def test_the_published_save_little_at_the_loss_of_scratch() -> None:
    for kind, most in (("gpt", 0.1), ("bert", 0.2)):
        cells = [cell for cell in method_cells(kind) if cell.method != "late_zero_init"]
        comparison = CORPUS.compared(map(CORPUS.kept, CORPUS.complete(cells)), "scratch")
        saved = [method.saving("flops") for method in comparison.methods]
        assert all(saving is None or saving.mean <= most for saving in saved)
        pace = render_methods.known_paces(CORPUS, kind)
        assert max(pace[method] for method in METHODS) < 1.2
        if kind == "gpt":
            seconds = [render_methods.seconds_saved(method, pace) for method in comparison.methods]
            assert all(saved.startswith("-") for saved in seconds if saved)
