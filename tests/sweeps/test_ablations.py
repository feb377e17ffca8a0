"""The shipped sweeps: each job is a config that trains, and a run to compare it with is among them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from apollo_cli.cli.arguments import CommandLine
from apollo_cli.cli.help import groups
from apollo_cli.config.conf_folder import CONF
from apollo_cli.config.config import Config
from apollo_cli.config.hydra_syntax import compose_values, job_config
from apollo_cli.config.schema import flat
from apollo_cli.sweeps import grid
from apollo_cli.train import STAMP, run

TRANSFER = "ablation/lr_transfer"
ABLATIONS = sorted(name for name in groups()["experiment"] if name.startswith("ablation/") and name != TRANSFER)
SEEDS = 3
OWN: dict[str, dict[tuple[str, ...], set[tuple[Any, ...]]]] = {
    "ablation/samplers": {("sampler.kind",): {("lvps",), ("uniform",), ("edge",), ("full",), ("shallow",)}},
    "ablation/k": {("sampler.k",): {(0,), (1,), (2,), (3,), (4,)}},
    "ablation/expander": {
        ("expander.kind", "expander.mode"): {
            ("stack", None),
            ("interpolate", "nearest"),
            ("interpolate", "linear"),
        },
        ("expander.moments", "optim.at_growth"): {
            (moments, rate) for moments in ("keep", "map", "reset") for rate in ("continue", "rewarm")
        },
    },
}


@pytest.fixture(autouse=True)
def _stamp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STAMP, "now")


def jobs(words: Sequence[str]) -> list[list[Config]]:
    """The runs that come first and the grid of a command, as Hydra composes them."""
    with initialize_config_module(CONF, version_base="1.3"):  # ${hydra:sweep.dir} stands in one of the presets
        HydraConfig.instance().set_config(compose("config", ["hydra.sweep.dir=sweep"], return_hydra_config=True))
    sweeps = []
    for overrides in grid.commands(CommandLine.parse(["-m", *words])):
        params = {} if grid.NO_PARAMS in overrides else grid.shipped_params(_experiment(overrides))
        typed = [f"{key}={value}" for key, value in params.items()] + overrides
        by_key = {o.key_or_group: o for o in OverridesParser.create().parse_overrides(typed)}
        of_jobs = [o for key, o in by_key.items() if not key.startswith("hydra.")]
        words_of_jobs = grid.combinations(of_jobs, is_grid=True)
        sweeps.append([job_config(OmegaConf.create(compose_values(job)), job) for job in words_of_jobs])
    return sweeps


def _experiment(overrides: Sequence[str]) -> str:
    return next((word.partition("=")[2] for word in overrides if word.startswith("experiment=")), "")


def test_the_rates_of_both_parametrizations_are_swept_without_a_baseline() -> None:
    (swept,) = jobs([f"experiment={TRANSFER}"])
    assert groups()["experiment"][TRANSFER].endswith(f"; {len(swept)} runs")
    cells = {(c.model.parametrization, c.model.layers, c.optim.lr, c.run.seed) for c in swept}
    assert len(cells) == len(swept) == 2 * 3 * 5 * SEEDS
    assert {(c.model.base_hidden, c.model.base_layers, c.model.hidden) for c in swept} == {(64, 2, 64)}
    assert all(c.schedule.layers == (c.model.layers,) for c in swept)


def test_the_ablations_of_the_paper_are_shipped() -> None:
    assert ABLATIONS == ["ablation/expander", "ablation/k", "ablation/samplers", "ablation/schedule"]


@pytest.mark.parametrize(
    ("name", "model"),
    [
        pytest.param(name, model, marks=[] if (name, model) == ("ablation/k", "gpt") else pytest.mark.slow)
        for name in ABLATIONS
        for model in ("bert", "gpt")
    ],
)
def test_every_job_is_valid_and_differs_in_what_is_swept_alone(name: str, model: str) -> None:
    baseline, swept = jobs([f"experiment={name}", f"model={model}"])
    assert {config.model.kind for config in [*baseline, *swept]} == {model}
    assert sorted(config.run.seed for config in baseline) == list(range(SEEDS))
    assert all(config.schedule.layers == (config.model.layers,) for config in baseline)
    values: list[dict[str, Any]] = [flat(config.raw) for config in swept]
    assert len({json.dumps(value, sort_keys=True) for value in values}) == len(swept)
    for keys, expected in OWN.get(name, {}).items():
        assert {tuple(value.get(key) for key in keys) for value in values} == expected
    assert len(swept) % SEEDS == 0
    growth = ("sampler.", "expander.", "schedule.", "init_from.", "optim.at_growth", "seed")
    common = [{k: str(v) for k, v in value.items() if not k.startswith(growth)} for value in values]
    common += [{k: str(v) for k, v in flat(c.raw).items() if not k.startswith(growth)} for c in baseline]
    assert all(value == common[0] for value in common)
    sentence = groups()["experiment"][name]
    assert sentence.endswith(f"; {len(swept) + len(baseline)} runs")


@pytest.mark.slow
def test_stages_and_ends_are_both_ablated() -> None:
    _, swept = jobs(["experiment=ablation/schedule", "seed=0"])
    layers, ends = {config.schedule.layers for config in swept}, {config.schedule.ends for config in swept}
    assert len(layers) >= 3
    assert len(ends) >= 3
    assert len(swept) == len(layers) * len(ends)


def test_what_is_typed_replaces_what_is_swept() -> None:
    words = ["experiment=ablation/k", "model=bert,gpt", "seed=7", "sampler.k=1,5", "budget.tokens=1e6"]
    baseline, swept = jobs(words)
    assert [(c.model.kind, c.run.seed) for c in baseline] == [("bert", 7), ("gpt", 7)]
    assert sorted((c.model.kind, c.sampler.k) for c in swept) == [  # type: ignore[attr-defined]
        ("bert", 1), ("bert", 5), ("gpt", 1), ("gpt", 5)
    ]  # fmt: skip
    assert {config.budget.tokens for config in [*baseline, *swept]} == {10**6}


def test_the_baseline_is_trained_once_for_all_that_only_concerns_growth() -> None:
    words = [
        "experiment=ablation/expander",
        "seed=1",
        "optim.lr=1e-3,2e-3",
        "sampler.k=1,2",
        "schedule=stackbert",
    ]
    baseline, swept = jobs([*words, "expander=stack", "expander.moments=keep"])
    assert [(c.run.seed, c.optim.lr) for c in baseline] == [(1, 1e-3), (1, 2e-3)]
    assert {config.schedule.layers for config in baseline} == {(12,)}
    assert len(swept) == 2 * 2 * 2


TWO_JOBS = {
    "ablation/samplers": ["sampler=edge,shallow"],
    "ablation/k": ["sampler.k=0,4"],
    "ablation/expander": ["expander=stack,interpolate", "expander.moments=map", "optim.at_growth=rewarm"],
    "ablation/schedule": ["schedule.layers=[1,2,3,4]", "schedule.ends=[0.25,0.5,0.75,1],[0.3,0.5,0.8,1]"],
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "model"), list(zip(ABLATIONS, ["bert", "gpt"] * 2, strict=True)))
def test_an_ablation_trains_its_baseline_and_its_jobs_and_continues_when_typed_again(
    name: str, model: str, tiny: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = {word.partition("=")[0] for word in TWO_JOBS[name]} | {"data.vocab_size"}
    rest = [word for word in tiny if word.partition("=")[0] not in typed]
    words = ["-m", f"experiment={name}", f"model={model}", "seed=0", *rest, *TWO_JOBS[name]]
    words.append(f"hydra.sweep.dir={tmp_path}/sweep")
    assert run(words) == 0
    assert {path.parent.name for path in (tmp_path / "sweep").glob("*/summary.json")} == {"0", "1", "scratch-0"}
    table = capsys.readouterr().out.rpartition("Sweep of 3")[2]
    assert table.count("completed") == 3
    assert run(words) == 0
    assert capsys.readouterr().out.count(": completed before\n") == 3


def test_an_ablation_is_planned_as_a_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "-m",
        "experiment=ablation/k",
        "seed=0",
        "sampler.k=0,4",
        "plan=true",
        "hydra.sweep.subdir='k ${sampler.k}'",
    ]
    assert run([*words, f"hydra.sweep.dir={tmp_path}/sweep"]) == 0
    folders = {path.parent.name for path in (tmp_path / "sweep").glob("*/plan.json")}
    assert folders == {"scratch-k 2", "k 0", "k 4"}
    assert capsys.readouterr().out.rpartition("Sweep of 3")[2].count("planned") == 3


def test_a_grid_of_ours_is_not_searched(capsys: pytest.CaptureFixture[str]) -> None:
    """Its scratch runs would be searched as well."""
    assert run(["-m", "experiment=ablation/k", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3"]) == 2
    assert "hydra/sweeper=optuna: experiment=ablation/k is a grid" in capsys.readouterr().err
