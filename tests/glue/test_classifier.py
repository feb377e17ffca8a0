"""The model against transformers' own for the same purpose, and its FLOPs against torch's count."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from apollo_cli.errors import CheckpointError
from apollo_cli.glue.classifier import Classifier, fine_tuning_flops, task_loss
from apollo_cli.glue.sentences import SentenceBatch, SentenceDataset
from apollo_cli.models.build import build
from apollo_cli.models.hf import load_trunk
from apollo_cli.models.model_config import Kind, ModelConfig, Norm

IDS = {"bert": {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}, "gpt": {"eos": 0}, "llama": {"eos": 0}}


def _batch(kind: str, vocabulary: int, labels: np.ndarray) -> SentenceBatch:
    rng = np.random.default_rng(0)
    ids, rows, firsts = IDS[kind], [], []
    begin, end = ([ids["cls"]], [ids["sep"]]) if kind == "bert" else ([], [ids["eos"]])
    for sizes in [(3, 4), (9, 2), (1, 1)]:
        first, second = (rng.integers(5, vocabulary, n).tolist() for n in sizes)
        rows.append(np.array([*begin, *first, *end, *second, *end]))
        firsts.append(len([*begin, *first, *end]))
    sentences = SentenceDataset(kind, ids.get("pad", 0), rows, np.array(firsts), labels)
    return sentences.batch(np.array([0, 1, 2]))


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("labels", [np.array([0, 2, 1]), np.array([0.5, 3.0, 5.0], dtype=np.float32)])
def test_bert_answers_as_transformers_does(labels: np.ndarray, norm: Norm, tmp_path: Path) -> None:
    from transformers import (  # seconds, which other workers save
        AutoModelForSequenceClassification,
        BertConfig,
        MegatronBertConfig,
    )

    outputs = 3 if labels.dtype == np.int64 else 1
    config = (MegatronBertConfig if norm == "pre" else BertConfig)(
        vocab_size=61, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=80,
        max_position_embeddings=20,
    )  # fmt: skip
    config.num_labels = outputs
    torch.manual_seed(0)
    theirs = AutoModelForSequenceClassification.from_config(config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    theirs.save_pretrained(tmp_path)
    body, pooler = load_trunk(tmp_path, 0.1)
    ours = Classifier(body, outputs, pooler).eval()
    ours.answer.load_state_dict(theirs.classifier.state_dict())
    batch = _batch("bert", 61, labels)
    with torch.no_grad():
        expected = theirs(
            input_ids=batch.tokens,
            attention_mask=batch.attention_mask.long(),
            token_type_ids=batch.segments,
            labels=batch.targets,
        )
        answers = ours(batch, range(3))
    torch.testing.assert_close(answers, expected.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(task_loss(answers, batch.targets), expected.loss, atol=1e-5, rtol=1e-5)


def test_gpt_answers_as_transformers_does(gpt_folder: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    theirs = AutoModelForSequenceClassification.from_pretrained(gpt_folder, num_labels=2, pad_token_id=1).eval()
    body, pooler = load_trunk(gpt_folder, 0.0)
    assert pooler is None
    ours = Classifier(body, 2).eval()
    ours.answer.load_state_dict(theirs.score.state_dict())
    batch = _batch("gpt", 61, np.array([0, 1, 1]))
    padded_by_theirs = torch.where(
        batch.attention_mask, batch.tokens, 1
    )  # they find the last token by what is padding
    with torch.no_grad():
        expected = theirs(input_ids=padded_by_theirs, attention_mask=batch.attention_mask.long()).logits
        answers = ours(batch, range(len(body.blocks)))
    torch.testing.assert_close(answers, expected, atol=1e-5, rtol=1e-5)


def _renamed(folder: Path, change: Callable[[str], str | None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    kept: dict[str, Tensor] = {new: t for name, t in tensors.items() if (new := change(name))}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("bare", [True, False])
def test_any_bert_is_taken_whatever_its_head_and_names(bare: bool, tmp_path: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification, BertModel

    config = BertConfig(
        vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=80,
        max_position_embeddings=20,
    )  # fmt: skip
    theirs = BertModel(config).eval() if bare else BertForSequenceClassification(config).bert.eval()
    theirs.save_pretrained(tmp_path)
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    _renamed(tmp_path, lambda name: next((name.replace(a, b) for a, b in old.items() if a in name), name))
    body, pooler = load_trunk(tmp_path, 0.0)
    batch = _batch("bert", 61, np.array([0, 1, 0]))
    with torch.no_grad():
        expected = theirs(batch.tokens, batch.attention_mask.long(), batch.segments)
        hidden = body.eval().trunk(batch.tokens, range(2), batch.attention_mask, batch.segments)
        ours = Classifier(body, 2, pooler).pooler
        assert ours is not None
        pooled = ours(hidden[:, 0]).tanh()
    torch.testing.assert_close(
        hidden[batch.attention_mask], expected.last_hidden_state[batch.attention_mask], atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(pooled, expected.pooler_output, atol=1e-5, rtol=1e-5)


def test_a_bare_gpt_is_taken(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2Model

    theirs = GPT2Model(GPT2Config(vocab_size=61, n_embd=32, n_layer=2, n_head=4, n_positions=20)).eval()
    theirs.save_pretrained(tmp_path)
    body, _ = load_trunk(tmp_path, 0.0)
    tokens = torch.randint(61, (2, 9))
    with torch.no_grad():
        ours = body.eval().last_norm(body.trunk(tokens, range(2)))
        torch.testing.assert_close(ours, theirs(tokens).last_hidden_state, atol=1e-5, rtol=1e-5)


def test_a_model_that_lacks_a_layer_is_refused(gpt_folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((gpt_folder / name).read_bytes())
    _renamed(tmp_path, lambda name: None if "h.1.mlp.c_fc.bias" in name else name)
    with pytest.raises(CheckpointError, match=r"no tensor transformer\.h\.1\.mlp\.c_fc\.bias"):
        load_trunk(tmp_path, 0.0)


def test_new_weights_have_the_deviation_of_the_models_own(pretrained: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((pretrained / "model" / name).read_bytes())
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | {"initializer_range": 0.5}), encoding="utf-8")
    body, pooler = load_trunk(tmp_path, 0.0)
    assert pooler is None  # it was not pretrained
    model = Classifier(body, 400)
    assert model.answer.weight.std().item() == pytest.approx(0.5, rel=0.05)
    assert model.answer.bias.abs().max() == 0


@pytest.mark.parametrize(("kind", "norm"), [("bert", "post"), ("bert", "pre"), ("gpt", "post"), ("llama", "post")])
def test_the_formula_of_flops_equals_torchs_own_count(kind: Kind, norm: Norm) -> None:
    model_config = ModelConfig(kind, vocabulary=31, positions=16, hidden=24, heads=3, ffn=50, layers=4, norm=norm)
    model = Classifier(build(model_config, 4), 3)
    batch = _batch(kind, 31, np.array([0, 2, 1]))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        model.loss(batch, range(4)).backward()
    rows, length = batch.tokens.shape
    assert not batch.attention_mask.all()
    assert (
        fine_tuning_flops(model_config, 3, rows, length, int(batch.attention_mask.sum()))
        == counted.get_total_flops()
    )
