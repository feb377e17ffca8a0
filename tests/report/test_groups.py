from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from apollo_cli.config.schema import flat
from apollo_cli.report.groups import Family, families
from apollo_cli.report.runs import Run, one_line
from tests.helpers.made_runs import CONFIG

SCRATCH: dict[str, Any] = {"schedule.layers": [4], "schedule.ends": [1]}


def run(
    place: str = "run", *, data: str | None = "d1", rows: int = 4, status: str = "completed", **more: Any
) -> Run:
    """A run without a directory; __ stands for the dot of a key."""
    config = flat(CONFIG) | {key.replace("__", "."): value for key, value in more.items()}
    row = {"step": 1, "flops": 10, "train_seconds": 1.0, "layers": 4, "eval/loss": 3.0}
    return Run(place, config, status, data, rows if data else None, {}, [row])


def scratch(place: str = "scratch", **more: Any) -> Run:
    return run(place, **{key.replace(".", "__"): value for key, value in SCRATCH.items()}, **more)


def labels(*runs: Run) -> list[str]:
    (family,) = families(runs)[0]
    return [group.label for group in family.groups]


def test_only_the_seed_and_what_cannot_change_the_result_may_differ() -> None:
    idle: dict[str, Any] = {"device": "cuda:1", "on_nonfinite": "skip", "tracking__wandb": "online"}
    idle |= {"distributed__timeout": 9, "profile": True, "plan_device": "h200", "compile": "auto"}
    alike = [run("a", seed=0), run("b", seed=1, name="other", data__cache_dir="/x", log__every=3, **idle)]
    (family,) = families(alike)[0]
    assert [[r.seed for r in group.runs] for group in family.groups] == [[0, 1]]
    for key in ("precision", "optim__lr", "eval__every", "budget__steps", "expander__moments", "sampler__k"):
        other: dict[str, Any] = {key: 77}
        (family,) = families([run("a"), run("b", **other)])[0]
        assert len(family.groups) == 2, key


def test_runs_of_before_a_key_was_there_are_in_the_group_of_those_that_do_not_set_it() -> None:
    newer = run("b", seed=1, budget__patience=None, init_from__optimizer=False, init_from__data=False)
    (family,) = families([run("a"), newer])[0]
    assert len(family.groups) == 1
    defaults: dict[str, Any] = {"model__parametrization": "standard", "optim__decay_shape": "linear"}
    assert len(families([run("a"), run("b", seed=1, **defaults)])[0][0].groups) == 1
    assert (
        len(families([run("a"), run("b", seed=1, **defaults | {"optim__decay_shape": "sqrt"})])[0][0].groups) == 2
    )
    planned: dict[str, Any] = {"schedule__when": "ends", "schedule__window": 3, "schedule__threshold": 0.01}
    (family,) = families([run("a"), run("b", seed=1, **planned)])[0]
    assert len(family.groups) == 1
    (family,) = families([run("a"), run("b", seed=1, **planned | {"schedule__when": "plateau"})])[0]
    assert len(family.groups) == 2
    (family,) = families([run("a"), run("b", budget__extended_from=[50])])[0]
    assert len(family.groups) == 2
    assert not any("extended_from= " in f"{group.label} " for group in family.groups)


def test_growth_settings_of_scratch_runs_do_not_matter() -> None:
    (family,) = families([scratch("a", sampler__kind="full"), scratch("b", seed=1, expander__kind="stack")])[0]
    assert len(family.groups) == 1


def test_seeds_with_sources_of_equal_cost_are_one_group() -> None:
    def begun(place: str, flops: float | None, **more: Any) -> Run:
        return replace(run(place, init_from__path=f"small/{place}", **more), source_flops=flops)

    def seed(number: int, flops: float | None, folder: str = "small") -> Run:
        return begun(f"{folder}_seed{number}", flops, seed=number)

    def seeds(*runs: Run) -> list[list[int]]:
        (family,) = families(runs)[0]
        return sorted([r.seed for r in group.runs] for group in family.groups)

    assert seeds(seed(0, 5e3), seed(1, 5e3)) == [[0, 1]]
    assert seeds(seed(0, 5e3), seed(1, 7e3)) == [[0], [1]]
    assert seeds(seed(0, None), seed(1, None)) == [[0], [1]]
    assert seeds(seed(0, 5e3), seed(1, 5e3, "other")) == [[0], [1]]
    assert seeds(seed(0, 0), run("b", seed=1)) == [[0], [1]]


def test_a_unique_name_is_the_label() -> None:
    assert labels(run("a", name="mine"), scratch("b", name="base")) == ["base", "mine"]


def test_without_names_the_differing_settings_are_the_label() -> None:
    assert labels(run("a"), scratch("b")) == ["sampler=lvps k=2", "scratch"]
    ks = [run(str(k), sampler__k=k, name="same") for k in (10, 2, 0.5)]
    assert labels(*ks) == ["sampler=lvps k=0.5", "sampler=lvps k=2", "sampler=lvps k=10"]
    assert labels(run("a"), run("b", expander__kind="stack")) == ["expander=interpolate", "expander=stack"]
    assert labels(run("a"), run("b", schedule__layers=[1, 4])) == ["layers=1-4", "layers=2-4"]
    assert labels(scratch("a", optim__lr=0.01), scratch("b")) == ["scratch lr=0.001", "scratch lr=0.01"]
    begun = [
        scratch(str(lr), optim__lr=lr, init_from__path="/m", init_from__flops=5, name="x", source_flops=5.0)
        for lr in (0.01, 0.02)
    ]
    assert labels(*begun, scratch("c", name="base")) == ["base", "x lr=0.01", "x lr=0.02"]
    kinds = [run("a", name="x"), run("b", name="x", sampler__kind="uniform"), scratch("c", name="base")]
    assert labels(*kinds) == ["base", "x sampler=lvps k=2", "x sampler=uniform k=2"]


def test_a_run_that_leaves_layers_out_is_no_scratch_run() -> None:
    subset = scratch("s", sampler__kind="subset", sampler__sizes=[2])
    assert not subset.is_scratch
    assert scratch("l", sampler__kind="lvps").is_scratch  # with all layers stored its depth is L
    assert scratch("p", sampler__kind="of_another_machine").is_scratch
    assert scratch("h", sampler__kind=["subset"]).is_scratch  # untrusted
    assert labels(subset, scratch("c")) == ["sampler=subset k=2", "scratch"]


def test_where_experiments_differ_their_names_are_in_the_labels() -> None:
    runs = [
        run(f"{name}{lr}{seed}", name=name, optim__lr=lr, seed=seed)
        for name in "ab"
        for lr in (1, 2)
        for seed in (0, 1)
    ]
    for each in runs[4:]:
        each.config["sampler.kind"] = "uniform"
    base = [scratch(f"{lr}", name="base", optim__lr=lr) for lr in (1, 2)]
    assert labels(*runs, *base, run("c", name="c", sampler__k=9)) == [
        *("a lr=1", "a lr=2", "b lr=1", "b lr=2", "base scratch lr=1", "base scratch lr=2", "c"),
    ]
    each_seed = [run(f"{k}{seed}", name=f"bert-{seed}", sampler__k=k, seed=seed) for k in (1, 2) for seed in (0, 1)]
    assert labels(*each_seed) == ["sampler=lvps k=1", "sampler=lvps k=2"]


def test_a_label_has_the_main_settings_first_and_no_redundant_ones() -> None:
    wide = {"model__hidden": 128, "model__ffn": 512, "model__heads": 4}
    narrow = {"model__hidden": 64, "model__ffn": 256, "model__heads": 2}
    runs = [scratch("a", **wide), scratch("b", **narrow, optim__lr=0.01), scratch("c", **narrow, eval__every=5)]
    expected = [
        "scratch hidden=64 lr=0.001",
        "scratch hidden=64 lr=0.01",
        "scratch hidden=128 lr=0.001",
    ]
    assert labels(*runs) == expected
    runs.append(scratch("d", **{**wide, "model__ffn": 77}))
    assert "scratch hidden=128 lr=0.001 ffn=77" in labels(*runs)


def test_a_key_missing_in_one_config_distinguishes_runs() -> None:
    one, other = run("a"), run("b")
    del other.config["precision"]  # as in a config of another version
    assert labels(one, other) == ["precision=fp32", "sampler=lvps k=2"]


def test_many_runs_without_a_summary_are_one_note() -> None:
    (family,) = families([run("x"), *(run(f"{i}", data=None, seed=i + 1) for i in range(9))])[0]
    assert [note for note in family.notes if "summary" in note] == [
        "no summary yet, so the data is taken from the config: 0, 1, 2 and 6 more"
    ]


def test_labels_are_unique() -> None:
    long = [run("a", name="x" * 90), run("b", name="x" * 91, sampler__k=1)]
    assert len(set(labels(*long))) == 2


def test_of_one_seed_twice_the_completed_run_counts_else_the_longer_one() -> None:
    (family,) = families([run("a", status="failed"), run("b"), run("c", status="interrupted")])[0]
    assert [r.place for r in family.groups[0].runs] == ["b"]
    assert "seed 0 is there 3 times" in family.notes[0]
    assert "a, c" in family.notes[0]


@pytest.mark.parametrize(
    ("other", "named", "common"),
    [({"data": "d2"}, "(fingerprint d2)", "evaluation rows"), ({"rows": 8}, "8 evaluation rows", "fingerprint")],
)
def test_other_data_and_evaluation_rows_are_another_family_and_a_warning_names_what_differs(
    other: dict[str, Any], named: str, common: str
) -> None:
    found, warnings = families([run("a"), run("b", **other)])
    assert [family.title for family in found] == ["GPT 1", "GPT 2"]
    assert "NOT compared" in warnings[0]
    assert "GPT 1 (a)" in warnings[0]
    assert "GPT 2 (b)" in warnings[0]
    assert named in warnings[0]
    assert common not in warnings[0]


def test_bert_and_gpt_are_two_families_without_a_warning() -> None:
    found, warnings = families([run("a"), run("b", model__kind="bert", model__mask_fraction=0.15)])
    assert [family.title for family in found] == ["BERT", "GPT"]
    assert warnings == []
    masks = [run(str(m), model__kind="bert", model__mask_fraction=m) for m in (0.15, 0.3)]
    assert len(families(masks)[0]) == 2
    whole = [
        run(str(w), model__kind="bert", model__mask_fraction=0.15, model__whole_word_masking=w) for w in (0, 1)
    ]
    found, warnings = families(whole)
    assert len(found) == 2  # other tokens are hidden in the same rows
    assert "masked fraction 0.15 of whole words" in warnings[0]


def test_a_run_without_a_summary_is_grouped_by_its_data_config() -> None:
    (family,) = families([run("a"), run("b", data=None, seed=1)])[0]
    assert "no summary yet, so the data is taken from the config: b" in family.notes[0]
    assert len(families([run("a"), run("b", data=None, data__vocab_size=4)])[0]) == 2
    assert len(families([run("a", data=None), run("b", data=None, seed=1)])[0]) == 1


def test_the_order_of_the_runs_does_not_matter() -> None:
    runs = [run("a", sampler__k=1), run("b"), scratch("c"), run("d", seed=1), run("e", data="d2"), run("f")]
    one: tuple[list[Family], list[str]] = families(runs)
    assert one == families(runs[::-1]) == families(runs[3:] + runs[:3])


def test_untrusted_text_becomes_one_printable_line(tmp_path: Path) -> None:
    assert one_line("a\nb\x1b[31m") == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}[31m"
    (label, _) = labels(run("a", name="x\ny" * 100), run("b", name="zzz", sampler__k=1))
    assert len(label) == 80
    assert label.isprintable()
