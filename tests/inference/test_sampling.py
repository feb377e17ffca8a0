"""apollo-sample: the same text as transformers, draws from the right tokens, masks filled."""

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from apollo_cli.data.tokenizer import load_tokenizer
from apollo_cli.inference import sampling_command
from apollo_cli.models.build import build
from apollo_cli.models.hf import load_model
from apollo_cli.models.model_config import Kind, ModelConfig
from apollo_cli.models.sampling import SamplingRule, continuation, mask_candidates
from apollo_cli.sample import run

Finished = Callable[[str], Path]


@pytest.mark.parametrize("kind", ["gpt", "llama"])
def test_greedy_text_is_that_of_transformers(kind: str, finished: Finished) -> None:
    from transformers import AutoModelForCausalLM

    folder, prompt = finished(kind) / "model", [7, 8, 9]
    theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    expected = theirs.generate(torch.tensor([prompt]), max_length=16, do_sample=False, pad_token_id=0)[0, 3:]
    found = continuation(load_model(folder).eval(), prompt, 13, SamplingRule(temperature=0), -1, seed=0)
    assert list(found)[: len(expected)] == expected.tolist()


@pytest.mark.parametrize("depth", [None, 2, 8], ids=["stored", "early exit", "shared"])
@pytest.mark.parametrize("kind", ["gpt", "llama"])
@torch.no_grad()
def test_kept_keys_and_values_change_no_token(kind: Kind, depth: int | None) -> None:
    """Against a whole pass for each token, also where the text is longer than the model reads."""
    torch.manual_seed(0)
    heads = 2 if kind == "llama" else None
    model = build(ModelConfig(kind, 61, 12, 32, 4, 64, 4, kv_heads=heads), 4).eval()
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter))
    tokens, rule, rng = [1, 2, 3], SamplingRule(temperature=5), torch.Generator().manual_seed(0)
    layers = {None: (0, 1, 2, 3), 2: (0, 1), 8: (0, 0, 1, 1, 2, 2, 3, 3)}[depth]
    for _ in range(20):
        tokens.append(rule.draw(model.logits(torch.tensor([tokens[-12:]]), layers)[0, -1], rng))
    assert list(continuation(model, [1, 2, 3], 20, rule, -1, seed=0, depth=depth)) == tokens[3:]
    assert len(set(tokens)) > 10


@torch.no_grad()
def test_each_token_is_computed_once_while_all_fit() -> None:
    model = build(ModelConfig("gpt", 61, 8, 32, 4, 64, 4), 4).eval()
    read: list[int] = []
    model.blocks[0].register_forward_hook(lambda block, given, out: read.append(out.shape[1]))
    list(continuation(model, [1, 2, 3], 7, SamplingRule(temperature=0), -1, seed=0))
    assert read == [3, 1, 1, 1, 1, 1, 8]


def test_masks_have_the_likeliest_tokens_of_transformers(finished: Finished) -> None:
    from transformers import BertForMaskedLM

    folder, tokens = finished("bert") / "model", [2, 9, 4, 11, 4, 3]
    with torch.no_grad():
        logits = BertForMaskedLM.from_pretrained(folder).eval()(torch.tensor([tokens])).logits[0]
    found = mask_candidates(load_model(folder).eval(), tokens, mask=4, count=3)
    for position, candidates in zip((2, 4), found, strict=True):
        expected = logits[position].softmax(-1).topk(3)
        assert [token for token, _ in candidates] == expected.indices.tolist()
        assert [probability for _, probability in candidates] == pytest.approx(expected.values.tolist(), abs=1e-4)


LOGITS = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()  # the probabilities of four tokens


@pytest.mark.parametrize(
    ("rule", "tokens"),
    [
        (SamplingRule(), {0, 1, 2, 3}),
        (SamplingRule(temperature=0), {0}),
        (SamplingRule(top_k=2), {0, 1}),
        (SamplingRule(top_p=0.5), {0}),
        (SamplingRule(top_p=0.6), {0, 1}),
        (SamplingRule(top_p=0.81), {0, 1, 2}),
        (SamplingRule(top_k=3, top_p=0.4), {0}),
    ],
)
def test_tokens_are_drawn_from_the_likeliest_ones(rule: SamplingRule, tokens: set[int]) -> None:
    rng = torch.Generator().manual_seed(0)
    assert {rule.draw(LOGITS, rng) for _ in range(200)} == tokens


def test_a_low_temperature_sharpens_the_distribution() -> None:
    """At temperature 1/2 the probabilities are squared: 0.25 / (0.25 + 0.09 + 0.0225 + 0.0025)."""
    rng = torch.Generator().manual_seed(0)
    rule = SamplingRule(temperature=0.5)
    share = sum(rule.draw(LOGITS, rng) == 0 for _ in range(2000)) / 2000
    assert share == pytest.approx(0.685, abs=0.03)


def test_text_is_printed_and_depends_on_the_seed_alone(
    finished: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"run={finished('gpt')}", "prompt=a, [b] = 'c' {d}", "tokens=12", "number=2"]
    texts = []
    for seed in (0, 0, 1):
        assert run([*words, f"seed={seed}"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0].startswith("a, [b] = 'c' {d}")
    assert texts[0].count("a, [b] = 'c' {d}") == 2
    assert texts[0] == texts[1] != texts[2]
    assert texts[2].partition("---\n")[0] == texts[0].partition("---\n")[2]  # seed 0 + 1


@pytest.mark.parametrize(("is_terminal", "shown"), [(True, "a\ufffd[31m\tb\n"), (False, "a\x1b[31m\tb\n")])
def test_a_terminal_obeys_nothing_of_a_text(is_terminal: bool, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    assert sampling_command.for_screen("a\x1b[31m\tb\n") == shown


def test_a_prompt_comes_from_a_file_or_from_standard_input(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompt").write_text("\ufeffsome [MASK] words", encoding="utf-8")  # a mark of editors, no text
    assert run([f"run={finished('bert')}", f"prompt_file={tmp_path}/prompt", "candidates=2"]) == 0
    from_file = capsys.readouterr().out
    assert from_file.startswith("[MASK] 1: ")
    assert from_file.count("%") == 2
    monkeypatch.setattr("sys.stdin", io.StringIO("some [MASK] words"))
    assert run([f"run={finished('bert')}", "candidates=2"]) == 0
    assert capsys.readouterr().out == from_file


def test_a_prompt_is_printed_whatever_the_model_makes_of_it(
    finished: Finished, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where nothing follows, or a letter is cut off."""
    tokenizer = load_tokenizer("gpt", str(finished("gpt") / "model"))
    half = next(id for id in range(tokenizer.get_vocab_size()) if tokenizer.decode([id]) == "\ufffd")
    for tokens, text in (([], "The\n"), ([half], "The\ufffd\n")):
        monkeypatch.setattr(sampling_command, "continuation", lambda *_, of=tokens: iter(of))
        assert run([f"run={finished('gpt')}", "prompt=The"]) == 0
        assert capsys.readouterr().out == text


def test_what_is_no_utf8_is_refused(
    finished: Finished, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([f"run={finished('gpt')}", "prompt=caf\udce9"]) == 2
    assert "prompt: cannot be read as UTF-8" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.StringIO("caf\udce9"))
    assert run([f"run={finished('gpt')}"]) == 2
    assert "standard input: cannot be read as UTF-8" in capsys.readouterr().err


def test_extremes_of_temperature_and_candidates_are_no_errors(
    finished: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = torch.Generator().manual_seed(0)
    assert SamplingRule(temperature=1e-40).draw(LOGITS, rng) == int(LOGITS.argmax())
    model = load_model(finished("bert") / "model")
    (found,) = mask_candidates(model, [0, 1, 2], 1, count=10_000)
    assert len(found) == model.model_config.vocabulary
    assert sum(probability for _, probability in found) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["prompt=no mask"], "BERT fills [MASK]"),
        (["prompt=[MASK]" + " word" * 40], "and the model reads 16; shorten it"),
        (["prompt=[MASK]", "prompt_file=x"], "give one of them"),
        (["prompt_file=/nonexistent"], "prompt_file=/nonexistent: cannot be read: No such file or directory\n"),
        (["prompt=[MASK]", "top_p=2"], "top_p=2"),
        (["prompt=[MASK]", "--top_p=1"], "--top_p: no such flag; keys have no dashes: type top_p=1"),
        (["prompt=[MASK]", "temp=1"], "temp: no such key; did you mean temperature?"),
        (["prompt=[MASK]", "temperatur=1"], "temperatur: no such key; did you mean temperature?"),
    ],
)
def test_a_wrong_word_is_named(
    words: list[str], says: str, finished: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([f"run={finished('bert')}", *words]) == 2
    assert says in capsys.readouterr().err


def test_a_run_that_is_missing_or_nowhere_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["prompt=[MASK]"]) == 2
    assert capsys.readouterr().err == "apollo-sample: config: run: missing; type run=RUN_DIR\n"
    assert run(["run=/nowhere", "prompt=[MASK]"]) == 2
    assert capsys.readouterr().err == "apollo-sample: /nowhere: no such folder; correct the path\n"
