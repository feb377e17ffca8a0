"""Every method on the same work: what the cells share, their budgets, and the table of tiny ones."""

import json
import re
from pathlib import Path
from statistics import fmean

import pytest

from apollo_cli.config.config import parse
from apollo_cli.config.hydra_syntax import compose_values
from apollo_cli.report import plots, savings
from apollo_cli.report.comparison import Method, Outcome, Question, compare
from apollo_cli.report.groups import families
from apollo_cli.report.runs import Run, RunFiles, read
from apollo_cli.report.savings import Cost
from apollo_cli.training.device import choose
from apollo_cli.training.planning import make_plan
from benchmarks import methods, reproduce, results, speed
from benchmarks.methods import (
    FROM_SOURCE,
    METHODS,
    Evaluations,
    MethodCell,
    budgeted,
    cells,
    flops,
    main,
    source_of,
)
from benchmarks.reproduce import KINDS, Cell, Corpus

FREE = {"name", "optim", "schedule", "sampler", "expander", "budget"}  # in which methods may differ


@pytest.mark.parametrize("kind", KINDS)
def test_methods_share_all_that_is_not_the_method(kind: str) -> None:
    corpus = Corpus("methods", ())
    raws = {
        cell.method: dict(parse(compose_values(list(budgeted(corpus, cell).words))).raw)
        for cell in cells(kind)[: len(METHODS)]
    }
    scratch = raws["scratch"]
    assert scratch["model"]["hidden"] == 64
    assert scratch["data"]["tokenizer"] == "bytes"
    for method, raw in raws.items():
        assert all(raw[key] == scratch[key] for key in scratch if key not in FREE)
        assert raw["name"] == method
        assert raw["optim"]["lr"] == scratch["optim"]["lr"]
        assert (raw["optim"]["schedule"], raw["optim"]["knots"]) == ("wsd", None)


def test_a_rate_of_its_own_gives_way_to_the_one_that_all_share() -> None:
    assert "optim.schedule=wsd" in MethodCell("gpt", "stackbert", "4e-3", 0).words
    late = MethodCell("gpt", "one_layer", "4e-3", 0).words
    assert "optim.schedule=wsd" in late
    assert not [word for word in late if word.startswith(("optim.warmup", "optim.decay"))]  # those are its own


def test_every_method_has_the_flops_of_scratch_and_its_source_is_in_them() -> None:
    corpus = Corpus("methods", ())
    whole = flops("gpt", "scratch", methods.steps())
    for cell in cells("gpt")[: len(METHODS)]:
        if cell.method == "scratch" or cell.method in FROM_SOURCE:
            continue
        config = parse(compose_values(list(budgeted(corpus, cell).words)))
        assert config.budget.flops == whole
    (ligo,) = cells("gpt", ["ligo"])[:1]
    typed = dict(word.split("=", 1) for word in budgeted(corpus, ligo).words)
    source = parse(compose_values(list(source_of(ligo).words)))
    assert int(typed["budget.flops"]) + make_plan(source, choose(source.run)).flops == whole
    assert typed["expander.source"] == str(corpus.folder(source_of(ligo)))


def test_a_method_that_is_none_is_refused() -> None:
    with pytest.raises(SystemExit, match=r"growing: no such method; they are scratch, apollo, gstack"):
        main(["growing"])


def test_of_a_run_its_evaluations_are_kept_and_the_last_training_row_of_each_stage(tmp_path: Path) -> None:
    rows = [
        {"step": 0, "stage": 1, "eval/loss": 5.0},
        {"step": 1, "stage": 1, "train/loss": 4.0},
        {"step": 2, "stage": 1, "train/loss": 3.0},
        {"step": 2, "stage": 1, "eval/loss": 3.5},
        {"step": 3, "stage": 2, "train/loss": 2.0},
        {"step": 3, "stage": 2, "eval/loss": 2.5},
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    kept = Evaluations("methods", ()).rows(path).decode().splitlines()
    assert [json.loads(line) for line in kept] == [rows[0], *rows[2:]]


def test_seconds_follow_from_flops_and_the_pace_of_the_run_and_of_its_source() -> None:
    def cost(flops: float) -> Cost:
        return Cost(flops, 1.0)

    run = Run("wide", {"name": "wide"}, "completed", "data", 4, {}, [], source_flops=200)
    outcome = Outcome(run, savings.curve([]), None, cost(800), cost(800), None)
    method = Method("wide", (outcome,), False, cost(1000), None)
    # 600 FLOPs at twice scratch's seconds, and 200 at half of them
    assert methods.seconds_saved(method, {"wide": 2.0, "source": 0.5}) == "-30.0%"
    assert methods.seconds_saved(method, {}) == ""


def test_the_report_says_what_the_kept_rows_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "pictures", lambda comparison: [])
    text = results.RESULTS.read_text(encoding="utf-8")
    part = text.partition(f"# {methods.TITLE}\n")[2].partition("\n# ")[0]
    written = [line for line in part.splitlines() if line and not line.startswith("![")]
    assert written == [line for line in methods.lines(Evaluations("methods", ())) if line]


def test_what_surprised_us_is_in_the_rows() -> None:
    def runs(kind: str, method: str) -> list[RunFiles]:
        kept = [Evaluations("methods", ()).kept(cell) for cell in cells(kind, [method])]
        return [RunFiles(folder) for folder in kept if folder.exists()]

    def ends(kind: str, method: str) -> list[float]:
        return [run.summary["losses"]["eval/loss"] for run in runs(kind, method)]

    def jumps(method: str) -> list[float]:
        found = [run.summary["growths"] for run in runs("gpt", method)]
        return [max(growth["eval/loss_after"] - growth["eval/loss_before"] for growth in of) for of in found]

    final = {(kind, method): fmean(ends(kind, method)) for kind in KINDS for method in METHODS}
    published = set(METHODS) - {"scratch", "late_zero_init"}
    of_bert, of_gpt = (sorted(published, key=lambda method: final[kind, method]) for kind in ("bert", "gpt"))
    assert set(of_bert[:2]) == {"lidas", "midas"}
    assert set(of_gpt[:3]) == {"lidas", "midas", "stackbert"}
    for kind in KINDS:
        for method in FROM_SOURCE:
            assert min(ends(kind, method)) > max(ends(kind, "scratch"))
            for run in runs(kind, method):
                assert run.summary["totals"]["source_flops"] < 0.08 * flops(kind, "scratch", methods.steps())
    for run in runs("gpt", "lemon"):
        first, *others = [row["eval/loss"] for row in run.rows if "eval/loss" in row]
        assert max(others) - first > 0.1
    assert fmean(jumps("gstack")) == pytest.approx(1, abs=0.2)
    assert max(jumps("msg")) < 1e-3
    assert abs(final["gpt", "gstack"] - final["gpt", "msg"]) < 0.01
    assert min(ends("bert", "one_layer")) > 3
    assert min(ends("gpt", "one_layer")) - max(ends("gpt", "scratch")) > 0.1
    assert min((method for method in METHODS), key=lambda method: final["bert", method]) == "late_zero_init"
    assert abs(final["gpt", "late_zero_init"] - final["gpt", "scratch"]) < 0.01


def test_the_published_save_little_at_the_loss_of_scratch() -> None:
    for kind, most in (("gpt", 0.1), ("bert", 0.2)):
        kept = [Evaluations("methods", ()).kept(cell) for cell in cells(kind) if cell.method != "late_zero_init"]
        runs, _ = read([str(folder) for folder in kept if folder.exists()])
        (comparison,) = compare(families(runs)[0], Question("scratch"))
        saved = [method.saving("flops") for method in comparison.methods]
        assert all(saving is None or saving.mean <= most for saving in saved)
        pace = methods.known_paces(kind)
        assert max(pace[method] for method in METHODS) < 1.2
        if kind == "gpt":
            seconds = [methods.seconds_saved(method, pace) for method in comparison.methods]
            assert all(saved.startswith("-") for saved in seconds if saved)


@pytest.mark.slow
def test_a_tiny_table_is_trained_written_and_not_trained_again(
    tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("KEPT", "RUNNING"):
        monkeypatch.setattr(reproduce, name, tmp_path / name)
    monkeypatch.setattr(results, "RESULTS", tmp_path / "RESULTS.md")
    monkeypatch.setattr(plots, "pictures", lambda comparison: [])  # they have their tests
    monkeypatch.setattr(methods, "KINDS", ("gpt",))
    monkeypatch.setattr(methods, "SEEDS", (0,))
    monkeypatch.setattr(methods, "steps", lambda: 12)
    monkeypatch.setattr(methods, "SOURCE_STEPS", 8)
    monkeypatch.setattr(speed, "THINNED", 2)
    own = ("model.", "schedule.", "optim.lr", "size=", "data.vocab_size", "budget.")
    small = [word for word in tiny if not word.startswith(own)]
    words = MethodCell.words.fget  # type: ignore[attr-defined]

    def of(cell: Cell) -> tuple[str, ...]:
        size = (8, 1, 16, 2) if cell.method == "source" else (16, 2, 32, 4)
        keys = ("model.hidden", "model.heads", "model.ffn", "model.layers")
        return (*words(cell), *small, *(f"{key}={n}" for key, n in zip(keys, size, strict=True)))

    monkeypatch.setattr(MethodCell, "words", property(of))
    methods.flops.cache_clear()
    try:
        main(["scratch", "gstack", "lemon"])
        text = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
        assert "# Every method on the same work" in text
        for method in ("scratch", "gstack", "lemon"):
            assert re.search(rf"^\| {method} \| 1 \| [\d.]+ \|.*\| \d\.\d\d \|", text, re.M), text
        assert "'lemon' begins from a model that took" in text
        assert "3 cells, 3 to train, 1 sources" in capsys.readouterr().out
        main(["scratch", "gstack", "lemon"])
        assert "3 cells, 0 to train, 0 sources" in capsys.readouterr().out
    finally:
        methods.flops.cache_clear()
