"""What the end of a run shows: the loss of answering by frequency, and answers to new text."""

import json
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch

from apollo_cli.data.batches import EvaluationBatches, MaskedTokens, NextToken
from apollo_cli.data.tokenizer import byte_tokenizer, special_ids
from apollo_cli.models.build import build
from apollo_cli.models.model_config import ModelConfig
from apollo_cli.models.transformer import LanguageModel
from apollo_cli.training.examples import Example, example_lines, examples, fill, frequency_loss


def model_of(kind: str) -> LanguageModel:
    torch.manual_seed(0)
    vocabulary = byte_tokenizer(kind).get_vocab_size()
    return build(ModelConfig(kind, vocabulary, 48, 16, 2, 32, 2), 2).eval()  # type: ignore[arg-type]


def rows_of(kind: str, text: str) -> np.ndarray:
    tokenizer = byte_tokenizer(kind)
    ids = tokenizer.encode(text, add_special_tokens=False).ids[:46]
    special = special_ids(kind, tokenizer)
    ends = (special["cls"], special["sep"]) if kind == "bert" else (special["eos"], special["eos"])
    return np.array([[ends[0], *ids, ends[1]]], dtype=np.uint16)


def test_the_loss_of_answering_by_frequency_of_what_can_be_predicted() -> None:
    training = np.array([[5, 1, 1, 2], [5, 2, 1, 1]])
    validation = EvaluationBatches(np.array([[5, 1, 2, 3]]), NextToken(), 1)
    # after the first position 1 comes four times, 2 twice, 0, 3, 4 and 5 never; each is counted once more
    by_hand = -(log(5 / 12) + log(3 / 12) + log(1 / 12)) / 3
    assert frequency_loss("gpt", training, validation, 6) == pytest.approx(by_hand)
    masked = EvaluationBatches(np.array([[5, 1, 1, 4]]), MaskedTokens(1.0, 3, 6), 1)
    # between the ends 1 comes three times and 2 once; both targets are 1
    training = np.array([[5, 1, 1, 4], [5, 2, 1, 4]])
    assert frequency_loss("bert", training, masked, 6) == pytest.approx(-log(4 / 10))


def test_masks_are_filled_the_surest_first_and_each_one_sees_those_before() -> None:
    model, row = model_of("bert"), torch.from_numpy(rows_of("bert", "some words of a text").astype(np.int64))
    mask = special_ids("bert", byte_tokenizer("bert"))["mask"]
    row[0, 4:6] = mask
    with torch.no_grad():
        before = model.head(model.trunk(row, range(2))[0, 4:6]).softmax(-1).max(-1)
        first = int(before.values.argmax())
        seen = row.clone()
        seen[0, 4 + first] = before.indices[first]
        second = model.head(model.trunk(seen, range(2))[0, 5 - first]).argmax()
        answer = fill(model, row, range(4, 6))
    assert answer[first] == before.indices[first]
    assert answer[1 - first] == second
    assert row[0, 4:6].tolist() == answer


def test_a_word_of_letters_in_the_middle_of_a_row_is_asked_for() -> None:
    text = "x1 is 22, 33, 44 - returned by functions of it 5"
    (found,) = examples(model_of("bert"), byte_tokenizer("bert"), rows_of("bert", text))
    assert found.original == "returned"
    assert (found.before, found.after) == ("x1 is 22, 33, 44 - ", " by functions of it")
    assert not examples(model_of("bert"), byte_tokenizer("bert"), rows_of("bert", "1 2 3 4 5 6 7 8 9 10 11 12 13"))


def test_a_causal_model_continues_the_text() -> None:
    text = "the beginning of a text that goes on and on"
    (found,) = examples(model_of("gpt"), byte_tokenizer("gpt"), rows_of("gpt", text))
    assert text.startswith(found.before.strip())
    assert found.before
    assert found.original is None


def test_examples_are_single_lines_with_the_answer_in_brackets() -> None:
    first, second = Example("a\nlist of ", "words", " and\tmore", "terms"), Example("b ", "c", " d", "longest")
    lines = example_lines([first, second])
    assert lines[1:] == ["  terms    a list of [words] and more", "  longest  b [c] d"]
    assert example_lines([Example("it goes", " on")])[1:] == ["  it goes[ on]"]
    assert example_lines([]) == []


def test_a_finished_run_says_what_it_has_learned(straight: dict[str, Path]) -> None:
    for kind, folder in straight.items():
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        vocabulary = json.loads((folder / "model" / "config.json").read_text(encoding="utf-8"))["vocab_size"]
        assert 0 < summary["frequency_loss"] < log(vocabulary)  # of answering each token equally often
        assert bool(summary["examples"][0]["original"]) == (kind == "bert")
        log_text = (folder / "train.log").read_text(encoding="utf-8")
        assert f"always by frequency │ {summary['frequency_loss']:.4f}" in log_text
        assert "the model's" in log_text
