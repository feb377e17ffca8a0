"""The card of an exported model: true, readable by the hub's library, and without markup of others."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from apollo_cli.config.config import Config, parse
from apollo_cli.config.hydra_syntax import compose_values
from apollo_cli.growth.plan import Plan
from apollo_cli.training.device import Device
from apollo_cli.training.model_card import WeightsOf, model_card, with_repository
from apollo_cli.training.planning import make_plan

CPU = Device(torch.device("cpu"), bf16=False, compile=False)


def made(
    config: Config, folder: Path, of: WeightsOf = "end", **facts: Any
) -> tuple[ModelCard, Plan, dict[str, Any]]:
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8")) | facts
    plan = make_plan(config, CPU)
    return ModelCard(model_card(config, plan, summary, of=of)), plan, summary


@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_each_export_has_a_card_with_the_facts(
    kind: str, straight: dict[str, Path], config: Callable[..., Config]
) -> None:
    written = ModelCard.load(straight[kind] / "model" / "README.md")
    card, plan, summary = made(config(f"model={kind}"), straight[kind])
    assert {**written.data.to_dict()} == {**card.data.to_dict()}
    assert written.data.library_name == "transformers"
    assert written.data.pipeline_tag == {"bert": "fill-mask", "gpt": "text-generation"}[kind]
    plan_width = config(f"model={kind}").model.hidden
    for fact in (
        summary["data"]["fingerprint"],
        f"{summary['losses']['eval/loss']:.4f}",
        f"{summary['totals']['flops']:.4e}",
        *(f"{growth['eval/loss_before']:.4f} to {growth['eval/loss_after']:.4f}" for growth in summary["growths"]),
        f"{plan.stages[-1].parameters:,} parameters",
        "2401.09192",
        "from_pretrained(name)",
    ):
        assert fact in written.text, fact
    for stage in plan.stages:
        assert f"| {stage.stage.layers} | {plan_width} | {stage.stage.first_step:,} to " in written.text
    assert ("perplexity" in written.text) == (kind == "gpt")
    assert str(Path.home()) not in written.text
    assert "corpus.txt" not in written.text


def test_the_card_of_a_run_that_ended_before_a_growth_is_of_the_model_that_it_has(
    straight: dict[str, Path], config: Callable[..., Config]
) -> None:
    """By hand: 300 tokens and 16 positions of width 8, one layer with a feed-forward part of 16, the last norm."""
    parameters = 8 * (300 + 16) + (8 * 24 + 24) + (8 * 8 + 8) + 2 * 16 + (8 * 16 + 16) + (16 * 8 + 8) + 16
    grown = config("model=gpt", "schedule.widths=[0.5,0.5,1]", "expander=bert2bert", "expander.moments=reset")
    totals = json.loads((straight["gpt"] / "summary.json").read_text())["totals"]
    card, plan, _ = made(grown, straight["gpt"], totals=totals | {"steps": 3, "layers": 1})
    assert f"GPT-2 of 1 layer of width 8 ({parameters:,} parameters)" in card.text
    assert "validation loss at the growth" not in card.text
    first = plan.stages[0].flops
    ended = totals | {"steps": 4, "layers": 2, "flops": first + 12_000}
    card, *_ = made(grown, straight["gpt"], totals=ended)
    assert "GPT-2 of 2 layers of width 8 (" in card.text
    assert f"| 1 | 8 | 0 to 3 | {first:.3e} |" in card.text
    assert "| 2 | 8 | 3 to 4 | 1.200e+04 |" in card.text
    assert "| 4 | 16 |" not in card.text


@pytest.mark.slow
def test_the_shown_code_loads_the_model(straight: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(straight["gpt"] / "model")
    card = Path("README.md").read_text(encoding="utf-8")
    code = card.partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["model"].config.n_ctx == names["tokenizer"].model_max_length == 16
    assert 'name = "me/mine"\n' in with_repository(card, "me/mine")


def test_the_card_of_the_average_has_its_loss(straight: dict[str, Path], config: Callable[..., Config]) -> None:
    losses = {"eval/loss": 1.5, "eval/loss_ema": 1.25}
    card, *_ = made(config("model=gpt", "optim.ema=0.9"), straight["gpt"], of="average", losses=losses)
    assert "1.2500" in card.text
    assert "averages of its weights" in card.text
    assert "1.5000" not in card.text


def test_the_card_of_the_best_has_its_loss_and_step(
    straight: dict[str, Path], config: Callable[..., Config]
) -> None:
    card, *_ = made(config("model=gpt"), straight["gpt"], of="best", best={"step": 8, "eval/loss": 1.25})
    assert "1.2500" in card.text
    assert "after step 8, the best ones" in card.text


def test_text_of_others_is_no_markup(straight: dict[str, Path], config: Callable[..., Config]) -> None:
    hostile = "cpu | <script>alert(1)</script> ![x](http://x/x.png) `a`\n# b"
    card, *_ = made(config("model=gpt"), straight["gpt"], device=hostile)
    page = MarkdownIt("commonmark").enable("table").render(card.text)
    assert "<script>" not in page
    assert "<img" not in page
    assert page.count("<h1>") == 1
    assert "alert(1)" in page


def test_data_of_the_hub_is_named_and_local_folders_are_not(
    straight: dict[str, Path], config: Callable[..., Config], tmp_path: Path
) -> None:
    names = f"[roneneldan/TinyStories,squad,{tmp_path},../x]"
    of_hub = parse(
        compose_values(["model=gpt", "data=hub", f"data.path={names}", "data.name=[null,null,null,null]"])
    )
    card, *_ = made(replace(config("model=gpt"), data=of_hub.data), straight["gpt"])
    assert card.data.to_dict()["datasets"] == ["roneneldan/TinyStories", "squad"]
    assert str(tmp_path) not in card.content
