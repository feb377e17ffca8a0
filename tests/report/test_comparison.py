"""Known curves give known savings."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apollo_cli.errors import DataError
from apollo_cli.report import plots
from apollo_cli.report.comparison import Comparison, Method, Question, compare
from apollo_cli.report.export import comparisons_json
from apollo_cli.report.groups import families
from apollo_cli.report.notes import comparison_notes, headline
from apollo_cli.report.runs import read_runs
from apollo_cli.report.tables import method_cells, target_sentence
from tests.helpers.made_runs import Evaluation, scratch, write_run

FLAT: list[Evaluation] = [(0, 0, 0.0, 9.0), (50, 500, 50.0, 4.0), (100, 1000, 100.0, 3.0)]


def compared(*places: Path, **question: Any) -> Comparison:
    runs, _ = read_runs([str(place) for place in places])
    (comparison,) = compare(families(runs)[0], Question(**question))
    return comparison


def method(comparison: Comparison, label: str) -> Method:
    return next(m for m in comparison.methods if m.label == label)


def mean(value: Any) -> Any:
    return value and value.mean


def test_savings_of_straight_curves(tmp_path: Path) -> None:
    scratch(tmp_path / "base", FLAT, name="base")
    write_run(
        tmp_path / "grown", [(50, 100, 10.0, 5.0), (100, 600, 80.0, 2.5)], [(50, 100, 10.0, 6.0)], name="grown"
    )
    grown = method(compared(tmp_path), "grown")
    assert mean(grown.cost("flops")) == 500.0
    assert mean(grown.saving("flops")) == 0.5
    assert mean(grown.speedup("flops")) == 1.0
    assert mean(grown.cost("seconds")) == pytest.approx(66.0)
    assert mean(grown.saving("seconds")) == pytest.approx(0.34)
    assert mean(grown.speedup("seconds")) == pytest.approx(100 / 66 - 1)


def test_savings_of_power_laws(tmp_path: Path) -> None:
    def curve(b: float) -> list[Evaluation]:  # loss = 2 + b / flops
        return [(i, 10.0 * i, float(i), 2 + b / (10.0 * i)) for i in range(1, 1001)]

    scratch(tmp_path / "base", curve(1000), name="base")
    write_run(tmp_path / "fast", curve(550), name="fast")
    assert mean(method(compared(tmp_path), "fast").saving("flops")) == pytest.approx(0.45, abs=1e-4)
    assert mean(method(compared(tmp_path, target_loss=2.5), "fast").saving("flops")) == pytest.approx(
        0.45, abs=1e-3
    )


def test_only_evaluations_of_the_whole_model_count_from_the_row_after_growth(tmp_path: Path) -> None:
    scratch(tmp_path / "base", FLAT, name="base")
    shallow = [(0, 0, 0.0, 9.0), (50, 100, 10.0, 2.0)]  # below the target, but not the whole model
    write_run(tmp_path / "grown", [(50, 100, 10.0, 2.9), (100, 900, 90.0, 2.5)], shallow, name="grown")
    grown = method(compared(tmp_path), "grown")
    assert mean(grown.cost("flops")) == 100
    assert mean(grown.final) == 2.5


def test_evaluations_of_a_gated_model_are_not_those_of_the_whole_model(tmp_path: Path) -> None:
    """As for the trainer: the first one counts that the exported model would have."""
    scratch(tmp_path / "base", FLAT, name="base")
    whole: list[Evaluation] = [(50, 100, 10.0, 2.9), (60, 300, 30.0, 2.8), (100, 900, 90.0, 2.5)]
    folder = write_run(tmp_path / "grown", whole, [(50, 100, 10.0, 2.9)], name="grown")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [row | ({"gated": True} if row["layers"] == 4 and row["step"] == 50 else {}) for row in rows]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    grown = method(compared(tmp_path), "grown")
    assert mean(grown.cost("flops")) == 300  # not 100, that of the row just after growth
    assert [[point.step for point in part] for part in plots._partial_curves(grown)] == [[50], [50]]


def test_without_all_runs_at_the_target_there_is_no_mean_saving(tmp_path: Path) -> None:
    scratch(tmp_path / "base", FLAT, name="base")
    for seed, end in enumerate((2.0, 2.0, 3.5)):
        write_run(tmp_path / str(seed), [(0, 1, 1.0, 9.0), (100, 500, 50.0, end)], name="grown", seed=seed)
    grown = method(compared(tmp_path), "grown")
    assert (grown.reached, len(grown.outcomes)) == (2, 3)
    assert grown.cost("flops") is None
    assert grown.saving("flops") is None


def test_the_target_is_the_mean_over_the_baselines_seeds_and_its_cost_that_of_the_mean_curve(
    tmp_path: Path,
) -> None:
    for seed, end in enumerate((3.0, 3.2)):
        scratch(tmp_path / f"base{seed}", [*FLAT[:2], (100, 1000, 90.0 + 20 * seed, end)], name="base", seed=seed)
    for seed in (0, 1):
        write_run(tmp_path / str(seed), [(0, 0, 1.0, 4.1), (9, 500 + 100 * seed, 9.0, 3.1)], name="fast", seed=seed)
    comparison = compared(tmp_path)
    assert comparison.target
    assert comparison.target.loss == pytest.approx(3.1)
    assert comparison.baseline_cost
    assert (comparison.baseline_cost.flops, comparison.baseline_cost.seconds) == (1000, 100)
    fast = method(comparison, "fast")
    saved = fast.saving("flops")
    assert saved
    assert saved.mean == pytest.approx(0.45)
    assert saved.half == pytest.approx(12.7062 * 0.05, rel=1e-4)  # t(0.975, 1) x s / sqrt(2), s = 0.1 / sqrt(2)
    assert not fast.is_paired  # 3.1 does not reach the 3.0 of seed 0
    assert "whose own variation over seeds their intervals leave out" in " ".join(comparison_notes(comparison))


def test_runs_with_the_seeds_of_the_baseline_are_measured_at_the_loss_of_their_seed(tmp_path: Path) -> None:
    """A seed that shifts both losses shifts no saving: 500 of 1000 FLOPs are saved with each of them."""
    for seed, shift in enumerate((0.0, 0.5, -0.3)):
        scratch(tmp_path / f"base{seed}", [(0, 0, 0.0, 9.0), (9, 1000, 100.0, 3 + shift)], name="base", seed=seed)
        shifted: list[Evaluation] = [(0, 0, 0.0, 4 + shift), (9, 1000, 80.0, 2 + shift)]  # loss = 4 - flops / 500
        write_run(tmp_path / f"fast{seed}", shifted, name="fast", seed=seed)
    write_run(tmp_path / "other", [(0, 0, 0.0, 4.0), (9, 1000, 80.0, 2.0)], name="other", seed=7, sampler__k=1)
    comparison = compared(tmp_path)
    fast, other = method(comparison, "fast"), method(comparison, "other")
    for axis, saved in (("flops", 0.5), ("seconds", 0.6)):
        found = fast.saving(axis)
        assert found
        assert (found.mean, found.half, found.n) == (pytest.approx(saved), pytest.approx(0, abs=1e-12), 3)
    assert fast.is_paired
    assert not other.is_paired
    assert mean(other.saving("flops")) == pytest.approx(1 - 500 * (4 - (3 + 0.2 / 3)) / 1000)  # at the mean loss
    (note,) = [note for note in comparison_notes(comparison) if note.startswith("Not paired with 'base'")]
    assert "'other'" in note
    assert "'fast'" not in note
    assert headline(comparison).startswith("GPT: other saves 53.3% of the FLOPs")


def test_pairs_of_a_typed_target_share_the_loss_and_not_the_cost(tmp_path: Path) -> None:
    for seed, factor in enumerate((1, 2)):
        scratch(tmp_path / f"base{seed}", [(0, 0, 0.0, 4.0), (9, 1000 * factor, 10.0, 2.0)], name="base", seed=seed)
        fast: list[Evaluation] = [(0, 0, 0.0, 4.0), (9, 400 * factor, 4.0, 2.0)]
        write_run(tmp_path / f"fast{seed}", fast, name="fast", seed=seed)
    found = method(compared(tmp_path, target_loss=3.0), "fast").saving("flops")
    assert found
    assert (found.mean, found.half) == (pytest.approx(0.6), pytest.approx(0, abs=1e-12))


def test_no_headline_has_an_interval_with_zero_in_it(tmp_path: Path) -> None:
    for seed, half in enumerate((250, 950)):  # saves 75 % and 5 %: 40 ± 12.7 x 35
        scratch(tmp_path / f"base{seed}", [(0, 0, 0.0, 9.0), (9, 1000, 100.0, 3.0)], name="base", seed=seed)
        write_run(tmp_path / f"wild{seed}", [(0, 0, 0.0, 9.0), (9, half, 9.0, 3.0)], name="wild", seed=seed)
    assert headline(compared(tmp_path)) == (
        "GPT: no method is shown to save FLOPs at validation loss 3.0000: every interval includes 0; more seeds "
        "narrow them"
    )
    for seed, spent in enumerate((700, 710)):  # saves 30 and 29 %: 29.5 ± 12.7 x 0.5; 91 % and 10 % of the seconds
        steady: list[Evaluation] = [(0, 0, 0.0, 9.0), (9, spent, 9.0 + 81 * seed, 3.0)]
        write_run(tmp_path / f"steady{seed}", steady, name="steady", seed=seed, optim__lr=1)
    assert headline(compared(tmp_path)) == (
        "GPT: steady saves 29.5 ± 6.4% of the FLOPs of base at validation loss 3.0000 (n = 2)"
    )


def test_no_headline_is_of_models_that_have_learned_less_than_frequencies(tmp_path: Path) -> None:
    facts = {"frequency_loss": 3.5}
    scratch(tmp_path / "base", [(0, 0, 0.0, 9.0), (9, 1000, 100.0, 4.0)], name="base", made_with=facts)
    write_run(tmp_path / "fast", [(0, 0, 0.0, 9.0), (9, 500, 50.0, 4.0)], name="fast", made_with=facts)
    assert headline(compared(tmp_path)) == (
        "GPT: no saving yet: validation loss 4.0000 is no lower than that of always answering by frequency, "
        "3.5000; train longer"
    )


def test_a_seed_that_grows_later_has_its_place_in_the_mean(tmp_path: Path) -> None:
    """With equal FLOPs seeds grow at different steps; their curves begin and end there."""
    for seed, at in enumerate((160, 164)):
        shallow: list[Evaluation] = [(150, 1500, 15.0, 5.0), (at, 10.0 * at, at / 10, 4.0 + seed)]
        whole: list[Evaluation] = [(at, 10.0 * at, at / 10, 6.0 + seed), (170, 1800, 18.0, 3.0)]
        write_run(tmp_path / str(seed), whole, shallow, name="grown", seed=seed)
    (grown,) = compared(tmp_path).methods
    assert [(p.step, p.cost.flops, p.loss) for p in grown.curve] == [(162, 1620.0, 6.5), (170, 1800.0, 3.0)]
    (part,) = plots._partial_curves(grown)
    assert [(p.step, p.cost.flops, p.loss) for p in part] == [(150, 1500.0, 5.0), (162, 1620.0, 4.5)]


def test_the_baselines_cost_ends_where_it_first_reaches_its_final_loss(tmp_path: Path) -> None:
    scratch(tmp_path / "base", [(0, 0, 0.0, 5.0), (50, 500, 50.0, 3.0), (100, 1000, 100.0, 3.0)], name="base")
    comparison = compared(tmp_path)
    assert comparison.baseline_cost
    assert comparison.baseline_cost.flops == 500
    assert "at its final loss after 5.000e+02" in " ".join(comparison_notes(comparison))


def test_losses_that_rise_above_the_target_again_are_noted(tmp_path: Path) -> None:
    scratch(tmp_path / "base", FLAT, name="base")
    noisy = [(0, 0, 0.0, 5.0), (1, 100, 10.0, 3.0), (2, 200, 20.0, 3.5), (3, 300, 30.0, 2.5)]
    write_run(tmp_path / "noisy", noisy, name="noisy")
    write_run(tmp_path / "worse", noisy[:3], name="worse", optim__lr=1)
    text = " ".join(comparison_notes(compared(tmp_path)))
    assert "'noisy' 75.0% (1 of 1 runs), 'worse' above it at the end (1 of 1 runs)" in text


def test_the_baseline_is_also_counted_from_where_it_stays_at_the_target(tmp_path: Path) -> None:
    dips: list[Evaluation] = [(0, 0, 0.0, 5.0), (1, 100, 10.0, 3.0), (2, 200, 20.0, 3.5), (4, 400, 40.0, 3.0)]
    scratch(tmp_path / "base", dips, name="base")
    write_run(tmp_path / "same", dips, name="same")
    assert "stay there: 'same' 0.0% (1 of 1 runs)" in " ".join(comparison_notes(compared(tmp_path)))
    shutil.rmtree(tmp_path / "base")
    scratch(tmp_path / "base", [*dips, (5, 500, 50.0, 3.8)], name="base")
    text = " ".join(comparison_notes(compared(tmp_path, target_loss=3.2)))
    assert "'same' while the baseline is above it at the end (1 of 1 runs)" in text


def test_unfinished_runs_count_up_to_their_last_row(tmp_path: Path) -> None:
    scratch(tmp_path / "base0", FLAT, name="base")
    scratch(tmp_path / "base1", FLAT[:2], name="base", seed=1, status="interrupted")
    write_run(tmp_path / "fast", [(0, 0, 0.0, 5.0), (9, 400, 9.0, 1.0)], name="fast", status=None)
    comparison = compared(tmp_path)
    assert comparison.target
    assert comparison.target.loss == 3.0  # an interrupted run has no final loss
    assert mean(method(comparison, "fast").saving("flops")) == pytest.approx(0.8)
    assert [p.loss for p in method(comparison, "base").curve] == [9.0, 4.0, 3.0]  # the mean of those with an end
    assert mean(method(comparison, "base").final) == 3.0  # and not its mean with where the interrupted one stands
    assert method_cells(comparison, method(comparison, "base")).final == "3.0000"
    assert method_cells(comparison, method(comparison, "fast")).final == "1.0000 so far"
    assert "the 1 completed runs of 'base', of 2" in " ".join(comparison_notes(comparison))


def test_a_baseline_without_a_completed_run_is_noted(tmp_path: Path) -> None:
    scratch(tmp_path / "base0", FLAT, name="base", status="running")
    scratch(tmp_path / "base1", FLAT[:2], name="base", seed=1, status="failed")
    comparison = compared(tmp_path)
    text = " ".join(comparison_notes(comparison))
    assert "No run of 'base' is completed" in text
    assert "end at different budgets, 5.000e+02 to 1.000e+03" in text
    assert "the mean of their ends is the cost of the target" in text
    assert "the target is their current loss and will change" in text
    assert comparison.baseline_cost
    assert comparison.baseline_cost.flops == 750
    text = " ".join(comparison_notes(compared(tmp_path, target_loss=6.0)))
    assert "No run of 'base' is completed: the cost of the target will change" in text
    assert "mean of their ends" not in text


@pytest.mark.parametrize(
    ("bases", "question", "words"),
    [
        (0, {}, "'grown' is the only method here. Add runs that train all layers from the first step."),
        (2, {}, "several train from scratch. Type --baseline with one of 'base0', 'base1'"),
        (1, {"target_loss": 0.5}, "'base0' goes from 9.0000 down to 3.0000 and does not reach 0.5000"),
        (1, {"target_loss": 9.5}, "does not reach 9.5000 at a cost that can be compared"),
    ],
)
def test_without_a_baseline_a_note_says_what_to_type(
    bases: int, question: dict[str, Any], words: str, tmp_path: Path
) -> None:
    for i in range(bases):
        scratch(tmp_path / str(i), FLAT, name=f"base{i}", optim__lr=0.1 * (i + 1))
    write_run(tmp_path / "grown", FLAT, name="grown")
    comparison = compared(tmp_path, **question)
    assert words in " ".join(comparison_notes(comparison))
    assert mean(method(comparison, "grown").final) == 3.0
    assert method(comparison, "grown").saving("flops") is None


def test_of_several_methods_that_grow_one_may_be_the_baseline(tmp_path: Path) -> None:
    for k, name in enumerate(("a", "b")):
        write_run(tmp_path / name, FLAT, name=name, sampler__k=k)
    text = " ".join(comparison_notes(compared(tmp_path)))
    assert "none trains all layers from the first step. Type --baseline with one of 'a', 'b'" in text


def test_a_baseline_without_the_whole_model_or_a_finite_loss_is_noted(tmp_path: Path) -> None:
    write_run(tmp_path / "shallow", [], [(0, 0, 0.0, 9.0)], name="shallow")
    scratch(tmp_path / "base", [*FLAT, (110, 1100, 110.0, None)], name="base")
    assert "is not finite at the end" in " ".join(comparison_notes(compared(tmp_path)))
    text = comparison_notes(compared(tmp_path, baseline="shallow"))
    assert "'shallow' has no evaluation of the whole model yet" in text[0]


def test_the_baseline_is_a_label_or_a_folder(tmp_path: Path) -> None:
    scratch(tmp_path / "a" / "0", FLAT, name="base")
    write_run(tmp_path / "b" / "0", FLAT, name="grown")
    for asked in ("grown", str(tmp_path / "b"), str(tmp_path / "b" / "0")):
        comparison = compared(tmp_path, baseline=asked)
        assert [m.label for m in comparison.methods] == ["grown", "base"]
    with pytest.raises(DataError, match="none of the methods, no words of one, and no folder of runs: base, grown"):
        compared(tmp_path, baseline="nothing")
    with pytest.raises(DataError, match="means several methods: base, grown"):
        compared(tmp_path, baseline=str(tmp_path))


def test_a_baseline_belongs_to_one_family(tmp_path: Path) -> None:
    scratch(tmp_path / "a", FLAT, name="base")
    scratch(tmp_path / "b", FLAT, name="other", data="another")
    runs, _ = read_runs([str(tmp_path)])
    one, other = compare(families(runs)[0], Question(baseline="base"))
    assert (one.baseline is None, other.baseline is None) == (False, True)
    assert "--baseline base is not among these runs" in comparison_notes(other)[0]


def test_models_of_other_depths_are_noted(tmp_path: Path) -> None:
    scratch(tmp_path / "deep", FLAT, name="deep")
    write_run(tmp_path / "flat", FLAT, name="flat", model__layers=2, schedule__layers=[2])
    text = " ".join(comparison_notes(compared(tmp_path, baseline="deep")))
    assert "settings beside growth: model.layers 4 ('deep'), 2 ('flat')." in text


def test_a_grown_run_that_the_shallow_model_beats_is_noted(tmp_path: Path) -> None:
    scratch(tmp_path / "deep", FLAT, name="deep")
    write_run(
        tmp_path / "grown", [(50, 100, 10.0, 3.2), (100, 200, 20.0, 2.5)], [(50, 100, 10.0, 3.4)], name="grown"
    )
    rows: list[Evaluation] = [(0, 0, 0.0, 5.0), (100, 100, 10.0, 3.0), (300, 300, 30.0, 2.0)]
    write_run(tmp_path / "flat", rows, name="flat", model__layers=2, schedule__layers=[2])
    (note,) = [note for note in comparison_notes(compared(tmp_path)) if "have not paid" in note]
    assert note == (
        "'grown' ends at 2.5000; 'flat', with 2 layers from the first step, is at 2.5000 for no more FLOPs: "
        "the deeper layers have not paid."
    )


def test_nothing_is_noted_of_a_grown_run_whose_last_loss_is_not_finite(tmp_path: Path) -> None:
    scratch(tmp_path / "deep", FLAT, name="deep")
    write_run(tmp_path / "grown", [(50, 100, 10.0, 3.2), (100, 200, 20.0, None)], name="grown")
    assert not [note for note in comparison_notes(compared(tmp_path)) if "have not paid" in note]


def test_other_differing_settings_are_noted(tmp_path: Path) -> None:
    scratch(tmp_path / "base", FLAT, name="base")
    for i, rate in enumerate((0.001, 0.003, 0.003, 0.003, 0.003)):
        write_run(tmp_path / f"{i}", FLAT, name=f"m{i}", optim__lr=rate, budget__steps=50, sampler__k=i)
    text = " ".join(comparison_notes(compared(tmp_path)))
    assert "budget.steps 100 ('base'), 50 ('m0', 'm1', 'm2', 'm3', 'm4')" in text
    assert "optim.lr 0.001 ('base', 'm0'), 0.003 ('m1', 'm2', 'm3', 'm4')" in text
    assert "sampler" not in text


def test_other_devices_and_commits_are_noted(tmp_path: Path) -> None:
    scratch(
        tmp_path / "base",
        FLAT,
        name="base",
        made_with={"device": "cpu", "precision": "bf16", "git_commit": "a" * 40},
    )
    for seed, device in enumerate(("cpu", "H100")):
        made = {"device": device, "precision": "bf16", "git_commit": "a" * 40}
        write_run(tmp_path / f"{seed}", FLAT, name="fast", seed=seed, made_with=made)
    text = " ".join(comparison_notes(compared(tmp_path)))
    assert (
        "differ in device, so their seconds compare the machines too: cpu ('base', 'fast'), H100 ('fast')." in text
    )
    assert "precision" not in text
    assert "commit" not in text


def test_a_run_that_paused_is_noted_and_its_seconds_leave_the_headline(tmp_path: Path) -> None:
    steady: list[Evaluation] = [(i, 100.0 * i, 10.0 * i, 9 - i / 10) for i in range(9)]
    scratch(tmp_path / "base", steady, name="base")
    write_run(tmp_path / "slow", [(i, f / 2, s / 2, x) for i, f, s, x in steady], name="slow")
    assert "50.0% of the FLOPs and 50.0% of the seconds" in headline(compared(tmp_path))
    shutil.rmtree(tmp_path / "slow")
    other: dict[str, Any] = {"made_with": {"device": "H100"}}
    write_run(tmp_path / "slow", [(i, f / 2, s / 2, x) for i, f, s, x in steady], name="slow", **other)
    assert "50.0% of the FLOPs of base" in headline(compared(tmp_path))  # its seconds are another machine's
    shutil.rmtree(tmp_path / "slow")
    write_run(tmp_path / "slow", [(i, f / 2, 2 * s, x) for i, f, s, x in steady], name="slow")
    assert "50.0% of the FLOPs of base" in headline(compared(tmp_path))  # more seconds are no saving
    shutil.rmtree(tmp_path / "slow")
    write_run(tmp_path / "slow", [(i, f / 2, s + 500 * (i > 4), x) for i, f, s, x in steady], name="slow")
    assert "50.0% of the FLOPs of base" in headline(compared(tmp_path))
    found = [note for note in comparison_notes(compared(tmp_path)) if "lost" in note]
    assert len(found) == 1
    assert "slow ('slow') lost 500 of 580 s where it was 3 times slower" in found[0]


def test_a_small_model_with_other_seconds_a_flop_has_not_paused(tmp_path: Path) -> None:
    """Each size is compared with itself: 40 s and 160 s a span, the first of each 100 s more for its warm-up."""
    shallow: list[Evaluation] = [(i, 10.0 * i, 40.0 * i + 100 * (i > 0), 9 - i / 10) for i in range(5)]
    whole: list[Evaluation] = [
        (4 + i, 40 + 1000.0 * i, 260 + 160.0 * i + 100 * (i > 0), 8 - i / 10) for i in range(9)
    ]
    scratch(tmp_path / "base", whole, name="base")
    write_run(tmp_path / "steady", whole, shallow, name="steady")
    assert not [note for note in comparison_notes(compared(tmp_path)) if "lost" in note]
    paused = [(step, flops, seconds + 300 * (step == 4), loss) for step, flops, seconds, loss in shallow]
    later = [(step, flops, seconds + 300, loss) for step, flops, seconds, loss in whole]
    write_run(tmp_path / "paused", later, paused, name="paused")
    (note,) = [note for note in comparison_notes(compared(tmp_path)) if "lost" in note]
    assert "lost 300 of 1940 s where it was 3 times slower than usual: stopped, compiling, or" in note


def test_the_default_baseline_is_as_deep_as_the_grown_models(tmp_path: Path) -> None:
    for layers in (1, 2, 4):
        whole: dict[str, Any] = {"model__layers": layers, "schedule__layers": [layers], "schedule__ends": [1]}
        write_run(tmp_path / f"s{layers}", FLAT, name="same", **whole)
    write_run(tmp_path / "grown", FLAT, name="grown")
    comparison = compared(tmp_path)
    assert comparison.baseline
    assert comparison.baseline.label == "same scratch model.layers=4"
    asked = compared(tmp_path, baseline="model.layers=2")
    assert asked.baseline
    assert asked.baseline.label == "same scratch model.layers=2"
    with pytest.raises(DataError, match="means several methods"):
        compared(tmp_path, baseline="scratch")


def test_a_running_run_has_not_missed_the_target(tmp_path: Path) -> None:
    scratch(tmp_path / "base", FLAT, name="base")
    write_run(tmp_path / "a", FLAT[:2], name="missed", sampler__k=1)
    write_run(tmp_path / "b", FLAT[:2], name="under_way", status=None)
    comparison = compared(tmp_path)
    found = {m.label: method_cells(comparison, m).costs["flops"] for m in comparison.methods}
    assert (found["missed"], found["under_way"]) == ("not reached", "not yet")


def test_a_baseline_of_one_run_is_noted_and_negative_savings_are_named(tmp_path: Path) -> None:
    scratch(tmp_path / "base", FLAT, name="base")
    write_run(tmp_path / "slow", [(0, 0, 0.0, 9.0), (9, 2000, 200.0, 3.0)], name="slow")
    comparison = compared(tmp_path)
    assert "The target is the loss of one run of 'base'" in " ".join(comparison_notes(comparison))
    assert headline(comparison).endswith("at validation loss 3.0000; the nearest, slow, needs 100.0% more")


def test_the_loss_at_an_equal_budget(tmp_path: Path) -> None:
    scratch(tmp_path / "base", FLAT, name="base")
    write_run(
        tmp_path / "late", [(50, 800, 10.0, 5.0), (100, 1000, 80.0, 2.5)], [(50, 800, 10.0, 6.0)], name="late"
    )
    comparison = compared(tmp_path, at_flops=750)
    assert mean(method(comparison, "base").at_flops) == 3.5
    assert method(comparison, "late").at_flops is None


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.randoms(use_true_random=False))
def test_the_order_of_the_arguments_does_not_matter(tmp_path: Path, rng: random.Random) -> None:
    if not any(tmp_path.iterdir()):
        for seed in (0, 1, 2):
            scratch(tmp_path / f"base{seed}", [*FLAT[:2], (100, 1000, 99.0, 3 + seed / 10)], name="base", seed=seed)
            write_run(tmp_path / f"fast{seed}", [(0, 0, 0.0, 5.0), (9, 400, 9.0, 1.0)], name="fast", seed=seed)
    places = sorted(tmp_path.iterdir())
    expected = comparisons_json([compared(*places)], [])
    rng.shuffle(places)
    assert comparisons_json([compared(*places)], []) == expected


def _from_source(folder: Path, **source: Any) -> None:
    whole: list[Evaluation] = [(50, 100, 10.0, 5.0), (100, 600, 60.0, 3.0)]
    write_run(folder, whole, name="wide", init_from__path="somewhere", schedule__layers=[4], schedule__ends=[1])
    plan = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps(plan | source))


def test_the_cost_of_the_source_is_counted_and_the_saving_without_it_noted(tmp_path: Path) -> None:
    scratch(tmp_path / "base", FLAT, name="base")
    _from_source(tmp_path / "wide", source_flops=200, source_seconds=20.0)
    comparison = compared(tmp_path)
    wide = method(comparison, "wide")
    assert mean(wide.cost("flops")) == 800.0
    assert mean(wide.saving("flops")) == pytest.approx(0.2)
    assert mean(wide.saving("seconds")) == pytest.approx(0.2)
    assert mean(wide.saving("flops", with_source=False)) == pytest.approx(0.4)
    text = (
        "'wide' is initialized from a model that cost 200.0 FLOPs; they are counted. Without them its saving is "
        "40.0% of the FLOPs and 40.0% of the seconds."
    )
    assert text in comparison_notes(comparison)


def test_a_source_of_unknown_cost_is_noted(tmp_path: Path) -> None:
    scratch(tmp_path / "base", FLAT, name="base")
    _from_source(tmp_path / "wide", source_flops=None)
    comparison = compared(tmp_path)
    assert mean(method(comparison, "wide").saving("flops")) == pytest.approx(0.4)
    assert any(
        "of unknown cost, which is not counted; set init_from.flops" in note
        for note in comparison_notes(comparison)
    )


@pytest.mark.parametrize("value", ["many", -1, float("inf"), [3]])
def test_a_run_with_an_invalid_cost_of_its_source_is_left_out(value: Any, tmp_path: Path) -> None:
    _from_source(tmp_path / "wide", source_flops=value)
    runs, (note,) = read_runs([str(tmp_path)])
    assert not runs
    assert "plan.json is damaged: source_flops: " in note


def test_runs_that_a_target_loss_ended_are_measured_at_it(tmp_path: Path) -> None:
    """Each ends a little below it, somewhere else: 3.5 is reached after 750 FLOPs here and after 300 there."""
    words: dict[str, Any] = {"budget__target_loss": 3.5}
    scratch(tmp_path / "base", FLAT, name="base", **words)
    write_run(tmp_path / "grown", [(0, 100, 10.0, 4.5), (50, 500, 50.0, 2.5)], name="grown", **words)
    comparison = compared(tmp_path)
    assert comparison.target
    assert comparison.target.loss == 3.5
    assert target_sentence(comparison).endswith("3.5000 nats, budget.target_loss of base")
    assert target_sentence(compared(tmp_path, target_loss=3.5)).endswith("3.5000 nats, as typed")
    assert mean(method(comparison, "grown").saving("flops")) == pytest.approx(1 - 300 / 750)
    assert compared(tmp_path, target_loss=4.0).target.loss == 4.0  # type: ignore[union-attr]


def test_a_target_loss_that_the_baseline_did_not_reach_is_no_target(tmp_path: Path) -> None:
    scratch(tmp_path / "base", FLAT, name="base", budget__target_loss=2.0)
    assert compared(tmp_path).target.loss == 3.0  # type: ignore[union-attr]


def test_a_run_that_was_extended_is_noted(tmp_path: Path) -> None:
    scratch(tmp_path / "base", FLAT, name="base")
    write_run(tmp_path / "long", FLAT, name="long", budget__extended_from=[60])
    (note,) = (note for note in comparison_notes(compared(tmp_path)) if "extended:" in note)
    assert "'long'" in note
    assert "planned with [60] steps" in note
