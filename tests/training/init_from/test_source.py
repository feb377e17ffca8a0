"""Runs that begin from a smaller model."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

from apollo_cli.config.config import Config
from apollo_cli.errors import ApolloError, TrainingError
from apollo_cli.growth.expanders import CopyLayers, Ligo
from apollo_cli.growth.layer_maps import mixing_matrix
from apollo_cli.models.build import build
from apollo_cli.models.hf import load_model
from apollo_cli.models.model_config import ModelConfig
from apollo_cli.models.transformer import Batch, LanguageModel
from apollo_cli.signals import Interrupted
from apollo_cli.training import memory
from apollo_cli.training.device import choose
from apollo_cli.training.init_from.learned_map import LearnedMap, learn, loss_of, map_flops
from apollo_cli.training.optimizer import optimizer_flops
from apollo_cli.training.planning import make_plan
from apollo_cli.training.run import resume, train
from apollo_cli.training.trainer import Trainer
from tests.conftest import RARELY, BuiltOnce, read_rows
from tests.training.test_resume import assert_same, interrupt

SMALL = ("model.layers=2", "schedule.layers=[1,2]", "schedule.ends=[0.5,1]", "sampler=shallow")
LARGE = ("model.hidden=32", "model.heads=4", "model.ffn=64", "schedule.ends=[1]", "schedule.layers=[4]")
METHODS = {
    "bert2bert": ("expander=bert2bert", "sampler=prefixes", "sampler.multiple=2", "sampler.trained=2", *LARGE[:3],
                  "schedule.layers=[4,4]", "schedule.ends=[0.5,1]"),
    "fpi": ("expander=bert2bert", "expander.width=fpi", "sampler=shallow", *LARGE),
    "lemon": ("expander=lemon", "sampler=shallow", *LARGE),
    "ligo": ("expander=ligo", "expander.steps=4", "sampler=shallow", *LARGE),
}  # fmt: skip


@pytest.fixture(scope="session")
def sources(config: Callable[..., Config], built_once: BuiltOnce) -> dict[str, Path]:
    """A complete small run of each model."""

    def build(folder: Path) -> None:
        for kind in ("bert", "gpt"):
            train(config(f"model={kind}", *RARELY, *SMALL), folder / kind)

    folder = built_once("sources", build)
    return {kind: folder / kind for kind in ("bert", "gpt")}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, marks=[] if (i + j) % 2 == 0 else pytest.mark.slow)
        for (i, name), (j, kind) in product(enumerate(METHODS), enumerate(["bert", "gpt"]))
    ],
)
def test_a_run_from_a_source_is_resumed_exactly_and_costs_what_was_planned(
    name: str,
    kind: str,
    sources: dict[str, Path],
    config: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = config(f"model={kind}", *RARELY, *METHODS[name], f"init_from.path={sources[kind]}")
    result = train(settings, tmp_path / "straight")
    rows = read_rows(tmp_path / "straight")
    assert rows[-1]["flops"] == result.plan.flops
    assert rows[0]["flops"] == result.plan.map_flops
    assert (result.plan.map_flops > 0) == (name == "ligo")
    summary = json.loads((tmp_path / "straight" / "summary.json").read_text())
    source = json.loads((sources[kind] / "summary.json").read_text())
    assert summary["totals"]["source_flops"] == result.plan.source.flops == source["totals"]["flops"]
    assert summary["totals"]["source_seconds"] == source["totals"]["train_seconds"]
    interrupt(lambda: train(settings, tmp_path / "run"), 7, monkeypatch)
    resume(tmp_path / "run")
    assert_same(tmp_path / "run", tmp_path / "straight")


@pytest.mark.parametrize("with_optimizer", [False, True])
def test_layers_that_enter_slowly_do_so_after_a_growth_from_a_source_too(
    with_optimizer: bool,
    sources: dict[str, Path],
    config: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And new layers have their own rate; both also after a resume."""
    own = f"init_from.optimizer={str(with_optimizer).lower()}"
    words = ("model=gpt", *RARELY, *LARGE[3:], "sampler=shallow", f"init_from.path={sources['gpt']}", own)
    end = read_rows(sources["gpt"])[-1]["eval/loss"]
    gated = config(*words, "expander=msg", "expander.gate_duration=0.9")
    result = train(gated, tmp_path / "msg")
    assert result.plan.as_dict()["source_layers"] == 2
    assert result.plan.gates(0) == {2: 0.0, 3: 0.0}
    train(config(*words, "expander=stack"), tmp_path / "stack")
    msg, stack = (read_rows(tmp_path / name) for name in ("msg", "stack"))
    assert msg[0]["eval/loss"] == pytest.approx(end, abs=1e-5) != stack[0]["eval/loss"]
    interrupt(lambda: train(gated, tmp_path / "stopped"), 5, monkeypatch)
    (name,) = (path.name for path in (tmp_path / "stopped" / "checkpoints").glob("step_00000005"))
    begun = (f"init_from.path={tmp_path / 'stopped'}", f"init_from.checkpoint={name}", own)
    begins = config("model=gpt", *RARELY, *LARGE[3:], "sampler=shallow", *begun)
    with pytest.raises(ApolloError, match=f"{name}: gates of new layers were still opening"):
        make_plan(begins, choose(begins.run))
    resume(tmp_path / "stopped")
    assert_same(tmp_path / "stopped", tmp_path / "msg")
    rates = [f"expander.lr_scale={scale}" for scale in (1, 3)]
    losses = [
        train(config(*words, "expander=net2net", "expander.lr_steps=9", rate), tmp_path / rate).losses
        for rate in rates
    ]
    assert losses[0]["eval/loss"] != losses[1]["eval/loss"]


@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_lemon_begins_at_the_loss_of_its_source(
    kind: str, sources: dict[str, Path], config: Callable[..., Config], tmp_path: Path
) -> None:
    train(config(f"model={kind}", *RARELY, *METHODS["lemon"], f"init_from.path={sources[kind]}"), tmp_path)
    end = read_rows(sources[kind])[-1]["eval/loss"]
    assert read_rows(tmp_path)[0]["eval/loss"] == pytest.approx(end, abs=1e-5)


def test_a_model_in_transformers_format_is_a_source_whose_cost_is_not_known(
    sources: dict[str, Path], config: Callable[..., Config], tmp_path: Path
) -> None:
    words = ("model=gpt", *RARELY, *METHODS["fpi"], f"init_from.path={sources['gpt'] / 'model'}")
    plan = train(config(*words), tmp_path).plan
    assert plan.source.flops is None
    assert make_plan(config(*words, "init_from.flops=1e9"), choose(config().run)).source.flops == 10**9


def test_the_cost_of_a_sources_source_is_charged_too(
    sources: dict[str, Path], config: Callable[..., Config], tmp_path: Path
) -> None:
    first = train(config("model=gpt", *RARELY, *METHODS["fpi"], f"init_from.path={sources['gpt']}"), tmp_path).plan
    again = config("model=gpt", *METHODS["fpi"], f"init_from.path={tmp_path}")
    assert first.source.flops is not None
    assert make_plan(again, choose(again.run)).source.flops == first.flops + first.source.flops


@pytest.mark.parametrize(
    "words",
    [(), ("init_from.checkpoint=step_00000002",), ("plan=true",)],
    ids=["complete", "checkpoint", "planned"],
)
def test_the_optimizers_own_flops_of_a_source_are_charged_too(
    words: tuple[str, ...], config: Callable[..., Config], tmp_path: Path
) -> None:
    """2 steps of 4 layers with Muon, whose FLOPs a layer `test_muon` checks by hand."""
    stages = ("model=gpt", *RARELY, "schedule.layers=[4]", "schedule.ends=[1]", "sampler=shallow")
    settings = config(*stages, "optim=muon", "budget.steps=2", *(word for word in words if word == "plan=true"))
    plan = train(settings, tmp_path).plan
    a_layer = optimizer_flops(settings.model_config, settings.optim)
    again = config(*stages, f"init_from.path={tmp_path}", *words)
    assert make_plan(again, choose(again.run)).source.flops == plan.flops + 2 * 4 * a_layer > plan.flops


def test_the_cost_of_a_source_whose_own_source_is_unknown_is_unknown(
    sources: dict[str, Path], config: Callable[..., Config], tmp_path: Path
) -> None:
    train(config("model=gpt", *RARELY, *METHODS["fpi"], f"init_from.path={sources['gpt'] / 'model'}"), tmp_path)
    again = config("model=gpt", *METHODS["fpi"], f"init_from.path={tmp_path}")
    assert make_plan(again, choose(again.run)).source.flops is None


def test_gates_of_the_first_stage_open_before_the_next_growth(
    sources: dict[str, Path], config: Callable[..., Config]
) -> None:
    words = ("model=gpt", "expander=msg", "sampler=shallow", f"init_from.path={sources['gpt']}", *LARGE[:3])
    stages = ("schedule.layers=[3,4]", "schedule.ends=[0.4,1]", "model.hidden=16", "model.heads=2", "model.ffn=32")
    with pytest.raises(ApolloError, match=r"expander.gate_duration=0\.5: a stage that adds layers is shorter"):
        make_plan(config(*words, *stages, "expander.gate_duration=0.5"), choose(config().run))
    fits = config(*words, *stages, "expander.gate_duration=0.4")
    assert make_plan(fits, choose(fits.run)).gates(0) == {2: 0.0}


def test_a_resume_without_its_source_is_refused(
    sources: dict[str, Path], config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(sources["gpt"], tmp_path / "source")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save", lambda trainer: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises((Interrupted, KeyboardInterrupt)):
            train(config("model=gpt", *METHODS["fpi"], f"init_from.path={tmp_path / 'source'}"), tmp_path / "run")
    (tmp_path / "source").rename(tmp_path / "moved")
    with pytest.raises(ApolloError, match=r"init_from\.path=.*no such folder.*restore it"):
        resume(tmp_path / "run")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("model=bert",), "it is a gpt and model=bert"),
        (("model=gpt", "model.heads=2"), "heads are copied whole.*model.heads must be 4"),
        (("model=gpt", "model.ffn=16"), "model.ffn=16 is less than the source's 32"),
        (
            ("model=gpt", "data.vocab_size=280"),
            r"300 tokens .*type data\.tokenizer=\S*/model data\.vocab_size=300",
        ),
        (("model=gpt", "data.seq_len=32"), "its rows have at most 16 tokens"),
        (
            ("model=gpt", "model.layers=1", "schedule.layers=[1]"),
            "schedule.layers begins with 1",
        ),
    ],
)
def test_a_source_that_does_not_fit_is_refused(
    words: tuple[str, ...], said: str, sources: dict[str, Path], config: Callable[..., Config], tmp_path: Path
) -> None:
    with pytest.raises(ApolloError, match=said):
        train(config(*METHODS["fpi"], f"init_from.path={sources['gpt']}", *words), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_bert_with_the_other_norm_is_refused(
    sources: dict[str, Path], config: Callable[..., Config], tmp_path: Path
) -> None:
    words = ("model=bert", "model.norm=pre", *METHODS["fpi"], f"init_from.path={sources['bert']}")
    with pytest.raises(ApolloError, match=r"its model\.norm is post; type model\.norm=post"):
        train(config(*words), tmp_path / "run")


def test_a_source_without_a_head_is_refused_before_there_is_a_run(
    sources: dict[str, Path], config: Callable[..., Config], tmp_path: Path
) -> None:
    shutil.copytree(sources["bert"] / "model", tmp_path / "bare")
    file = tmp_path / "bare" / "model.safetensors"
    bare = {name: t for name, t in load_file(file).items() if not name.startswith("cls.")}
    save_file(bare, file, metadata={"format": "pt"})
    with pytest.raises(ApolloError, match=r"no tensor cls\.predictions"):
        train(config("model=bert", *METHODS["fpi"], f"init_from.path={tmp_path / 'bare'}"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_cost_without_a_source_is_refused(config: Callable[..., Config]) -> None:
    with pytest.raises(ApolloError, match=r"init_from\.flops=5 and init_from\.path is null"):
        config("model=gpt", "init_from.flops=5")


def test_lemon_refuses_a_width_that_is_no_whole_multiple(
    sources: dict[str, Path], config: Callable[..., Config], tmp_path: Path
) -> None:
    words = (*METHODS["lemon"], "model.hidden=24", "model.heads=3", f"init_from.path={sources['gpt']}")
    with pytest.raises(ApolloError, match="not a whole multiple"):
        train(config("model=gpt", *words), tmp_path / "run")


def test_a_source_with_other_tokens_is_refused(
    sources: dict[str, Path], config: Callable[..., Config], tmp_path: Path
) -> None:
    text = tmp_path / "other.txt"
    text.write_text("\n\n".join(f"entirely other words number {i * 7919} {i * 104729}" for i in range(400)))
    words = ("model=gpt", *METHODS["fpi"], f"init_from.path={sources['gpt']}", f"data.files=[{text}]")
    with pytest.raises(ApolloError, match=r"other tokens than the corpus; type data\.tokenizer="):
        train(config(*words), tmp_path / "run")


def test_a_run_that_did_not_end_is_no_source(
    sources: dict[str, Path], config: Callable[..., Config], tmp_path: Path
) -> None:
    shutil.copytree(sources["gpt"], tmp_path / "source")
    (tmp_path / "source" / "summary.json").unlink()
    with pytest.raises(ApolloError, match="this run is not complete"):
        train(config("model=gpt", *METHODS["fpi"], f"init_from.path={tmp_path / 'source'}"), tmp_path / "run")


def test_a_plan_may_begin_from_a_planned_run_and_a_run_may_not(
    sources: dict[str, Path], config: Callable[..., Config], tmp_path: Path
) -> None:
    small = train(config("model=gpt", *SMALL, "plan=true"), tmp_path / "small").plan
    words = ("model=gpt", *METHODS["fpi"], f"init_from.path={tmp_path / 'small'}")
    planned = train(config(*words, "plan=true"), tmp_path / "planned").plan
    whole = train(config(*words[:-1], f"init_from.path={sources['gpt']}", "plan=true"), tmp_path / "whole").plan
    assert planned.source.flops == small.flops == whole.source.flops
    assert planned.flops == whole.flops
    with pytest.raises(ApolloError, match="this run is not complete; finish it first"):
        train(config(*words), tmp_path / "run")


BERT = ModelConfig("bert", vocabulary=31, positions=12, hidden=8, heads=2, ffn=12, layers=2)


def ligo(kind: str, dropout: float = 0.0) -> tuple[LearnedMap, LanguageModel, Callable[[int], Batch]]:
    torch.manual_seed(0)
    model_config = replace(BERT, kind=kind, dropout=dropout)  # type: ignore[arg-type]
    large = replace(model_config, hidden=16, heads=4, ffn=24, layers=4)
    source, model = build(model_config, 2), build(large, 4)
    learned = LearnedMap(source, large, CopyLayers("stack"), 4, np.random.default_rng(0))

    def batch(step: int) -> Batch:
        tokens = torch.randint(31, (4, 10), generator=torch.Generator().manual_seed(step)) % 7
        return Batch(tokens, torch.arange(40), tokens.flatten())

    return learned, model, batch


@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_the_loss_reaches_every_factor_of_the_map_and_not_the_source(kind: str) -> None:
    learned, model, batch = ligo(kind)
    names = {"residual", "ffn", "query", "key", "value"}
    modules = {"query", "key", "value", "attention_out", "attention_norm", "ffn_in", "ffn_out", "ffn_norm"}
    assert {name for name, _ in learned.named_parameters()} == {f"extra.{n}" for n in names} | {
        f"depth.{n}" for n in modules
    }
    loss_of(model, learned, batch(0), (0, 1, 2, 3)).backward()
    for name, parameter in learned.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).all(), name


@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_a_map_is_learned_where_products_are_in_bf16(kind: str, config: Callable[..., Config]) -> None:
    learned, model, batch = ligo(kind)
    with torch.no_grad():
        exact = loss_of(model, learned, batch(0), (0, 1, 2, 3)).item()
    first, last = learn(model, learned, batch, Ligo(20, 1e-2), choose(config("precision=bf16").run))
    assert first == pytest.approx(exact, abs=2e-3)  # in bf16 a loss near 5 would be a multiple of 1/32
    assert last < first


@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_a_learned_map_improves_and_initializes_the_model(kind: str, config: Callable[..., Config]) -> None:
    learned, model, batch = ligo(kind)
    first, last = learn(model, learned, batch, Ligo(100, 1e-2), choose(config().run))
    assert last < first - 0.1
    with torch.no_grad():
        assert model.loss(batch(0), (0, 1, 2, 3)).item() == pytest.approx(last, abs=1e-6)
        assert loss_of(model, learned, batch(0), (0, 1, 2, 3)).item() == pytest.approx(last, abs=1e-5)


def test_a_map_is_learned_in_the_pieces_of_training(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    learned, model, batch = ligo("gpt")
    whole = learn(model, learned, batch, Ligo(20, 1e-2), choose(config().run))
    monkeypatch.setattr(memory, "MIN_TOKENS", 16)
    monkeypatch.setattr(memory, "CPU_ACTIVATIONS", 1)
    learned, model, batch = ligo("gpt")
    assert len(memory.pieces_of(batch(0), model.model_config, 4, choose(config().run), 1)) > 1
    pieces = learn(model, learned, batch, Ligo(20, 1e-2), choose(config().run))
    assert pieces == pytest.approx(whole, abs=1e-4)


def test_the_losses_before_and_after_a_map_are_without_dropout(config: Callable[..., Config]) -> None:
    learned, model, batch = ligo("gpt", dropout=0.5)
    first, last = learn(model, learned, batch, Ligo(2, 1e-12), choose(config().run))
    assert first == pytest.approx(last, abs=1e-6)
    assert model.training


def test_the_initial_map_is_stacking_with_rows_that_sum_to_one() -> None:
    learned, _, _ = ligo("gpt")
    for weights in learned.depth.values():
        torch.testing.assert_close(weights.sum(1), torch.ones(4))
        assert (weights - torch.from_numpy(mixing_matrix("stack", 2, 4)).float()).abs().max() < 0.06
    spaces = learned.spaces()
    assert torch.equal(spaces["residual"].out[:8], torch.eye(8))
    assert spaces["ffn"].out.shape == (24, 12)


def test_a_map_that_is_not_finite_stops_with_one_message(config: Callable[..., Config]) -> None:
    learned, model, batch = ligo("gpt")
    with pytest.raises(TrainingError, match=r"of the learned map its loss is (nan|inf).*lower expander\.lr"):
        learn(model, learned, batch, Ligo(20, 1e30), choose(config().run))


def map_flops_by_hand(h: int, f: int, big: int, wide: int, embeddings: int, layers: int, new: int) -> int:
    """GPT's map in one step: h -> big, f -> wide, so many rows of embeddings; forward, and twice that backward.

    The source needs no gradient, so the products with its parameters cost one instead of two backward.
    """
    outer = 2 * big * h * embeddings + 2 * (2 * big * h)  # and weight and bias of the final norm
    qkv = 3 * (2 * big * h * h) + 2 * big * h * 3 * big + 3 * (2 * big * h)  # out, then in, then the bias
    attention_out = 2 * big * h * h + 2 * big * h * big + 2 * big * h
    ffn_in = 2 * wide * f * h + 2 * big * h * wide + 2 * wide * f
    ffn_out = 2 * big * h * f + 2 * wide * f * big + 2 * big * h
    norms = 4 * (2 * big * h)
    parameters = (3 * big * big + 3 * big) + (big * big + big) + (2 * big * wide + big + wide) + 4 * big
    mixing = 2 * new * layers * parameters
    with_source = 2 * big * h * (3 * h + 3) + 2 * big * h * (h + 1) + 2 * wide * f * (h + 1) + 2 * big * h * (f + 1)
    first = outer + layers * (with_source + norms)
    return 3 * (outer + layers * (qkv + attention_out + ffn_in + ffn_out + norms) + mixing) - first


def test_flops_of_the_map_by_hand() -> None:
    small = replace(BERT, kind="gpt")
    large = replace(small, hidden=16, heads=4, ffn=24, layers=4)
    assert map_flops(small, large, 4) == map_flops_by_hand(8, 12, 16, 24, 31 + 12, 2, 4)


def test_flops_of_the_map_are_those_that_torch_counts() -> None:
    """It counts no products with vectors: there the norms and biases, forward and once backward."""
    learned, *_ = ligo("gpt")
    with FlopCounterMode(display=False) as counter:
        torch.stack([value.sum() for value in learned.state().values()]).sum().backward()
    small = replace(BERT, kind="gpt")
    large = replace(small, hidden=16, heads=4, ffn=24, layers=4)
    in_a_layer = (3 + 1 + 1 + 4) * 2 * 16 * 8 + 2 * 24 * 12
    vectors = 2 * (2 * 2 * 16 * 8 + 2 * in_a_layer)
    assert map_flops(small, large, 4) == counter.get_total_flops() + vectors


def renamed(folder: Path, change: Callable[[str], str]) -> None:
    file = folder / "model.safetensors"
    save_file({change(name): t for name, t in load_file(file).items()}, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("gpt", lambda name: name.removeprefix("transformer.")),
        ("bert", lambda name: name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta")),
    ],
)
def test_tensor_names_of_the_hubs_gpt2_and_bert_are_read(
    kind: str, change: Callable[[str], str], sources: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(sources[kind] / "model", tmp_path / "hub")
    renamed(tmp_path / "hub", change)
    ours, theirs = (load_model(folder).state_dict() for folder in (sources[kind] / "model", tmp_path / "hub"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
