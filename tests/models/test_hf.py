import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from apollo_cli.errors import CheckpointError
from apollo_cli.models.build import build
from apollo_cli.models.hf import load_model, save_model
from apollo_cli.models.model_config import CompleteP, Kind, ModelConfig, Norm
from apollo_cli.models.transformer import LanguageModel

ENDS = {"bos_token_id": 4, "eos_token_id": 4, "pad_token_id": 4}
SPECIAL: dict[Kind, dict[str, int]] = {"bert": {"pad_token_id": 3}, "gpt": ENDS, "llama": ENDS}
MODEL_CONFIGS = [
    ModelConfig("bert", vocabulary=61, positions=20, hidden=32, heads=4, ffn=80, layers=6),
    ModelConfig("bert", vocabulary=40, positions=12, hidden=16, heads=1, ffn=64, layers=1),
    ModelConfig("bert", vocabulary=61, positions=20, hidden=24, heads=4, ffn=80, layers=6, norm="pre"),
    ModelConfig("gpt", vocabulary=61, positions=20, hidden=32, heads=4, ffn=80, layers=6),
    ModelConfig("gpt", vocabulary=40, positions=12, hidden=16, heads=1, ffn=64, layers=1),
    ModelConfig("llama", vocabulary=61, positions=20, hidden=32, heads=4, ffn=80, layers=6, kv_heads=2),
    ModelConfig("llama", vocabulary=61, positions=20, hidden=24, heads=6, ffn=64, layers=6, tied=False),
    ModelConfig("llama", vocabulary=40, positions=12, hidden=16, heads=1, ffn=64, layers=1),
    ModelConfig("llama", vocabulary=61, positions=20, hidden=48, heads=6, ffn=80, layers=6, kv_heads=1, tied=False),
]
each_model = pytest.mark.parametrize(
    "model_config", MODEL_CONFIGS, ids=lambda model_config: f"{model_config.kind}-{model_config.hidden}"
)
each_kind = pytest.mark.parametrize("kind", ["bert", "gpt", "llama"])


def auto(kind: Kind) -> Any:
    """Transformers' class for a kind; imported here, as that takes seconds which other workers save."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    return AutoModelForMaskedLM if kind == "bert" else AutoModelForCausalLM


def of_transformers(folder: Path, kind: Kind) -> Any:
    """The model as transformers reads it, where no name is missing or left over."""
    theirs, loading = auto(kind).from_pretrained(folder, output_loading_info=True)
    assert not any(loading[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return theirs.eval()


@torch.no_grad()
def perturb(model: nn.Module) -> None:
    """Noise on every parameter, biases and norms too, so that none could stand in for another."""
    random = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        parameter.add_(0.3 * torch.randn(parameter.shape, generator=random))


def make_model(model_config: ModelConfig, layers: int) -> LanguageModel:
    model = build(model_config, layers).eval()
    perturb(model)
    return model


def make_tokens(vocabulary: int, length: int) -> Tensor:
    return torch.randint(vocabulary, (4, length), generator=torch.Generator().manual_seed(1))


def small(kind: Kind) -> ModelConfig:
    return next(model_config for model_config in MODEL_CONFIGS if model_config.kind == kind)


def exported(folder: Path, kind: Kind = "bert", layers: int = 2) -> Path:
    save_model(make_model(small(kind), layers), folder, SPECIAL[kind])
    return folder


def edit_config(folder: Path, *missing: str, **values: object) -> None:
    """Leaves keys of config.json out, and sets others."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | values
    path.write_text(json.dumps({key: config[key] for key in config if key not in missing}), encoding="utf-8")


def rewrite(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


@each_model
@pytest.mark.parametrize("layers", [1, 3])
@torch.no_grad()
def test_export_loads_in_transformers_and_gives_the_same_logits(
    model_config: ModelConfig, layers: int, tmp_path: Path
) -> None:
    model = make_model(model_config, layers)
    save_model(model, tmp_path, SPECIAL[model_config.kind])
    theirs = of_transformers(tmp_path, model_config.kind)
    assert theirs.num_parameters() == model.num_parameters()
    assert theirs.config.num_hidden_layers == layers
    tokens = make_tokens(model_config.vocabulary, model_config.positions)
    ours = model.logits(tokens, range(layers))
    assert ours.std() > 0.5  # nothing collapsed, so that the comparison means something
    torch.testing.assert_close(ours, theirs(tokens).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("model_config", MODEL_CONFIGS[2:], ids=lambda model_config: model_config.kind)
@torch.no_grad()
def test_the_factors_of_completep_are_in_the_exported_weights(
    model_config: ModelConfig, layers: int, tmp_path: Path
) -> None:
    """Base: half of the width, two layers, heads of 2; so no factor is 1."""
    complete_p = CompleteP(model_config.hidden // 2, 2, 2)
    model = make_model(replace(model_config, complete_p=complete_p), layers)
    save_model(model, tmp_path, SPECIAL[model_config.kind])
    theirs = of_transformers(tmp_path, model_config.kind)
    tokens = make_tokens(model_config.vocabulary, model_config.positions)
    ours = model.logits(tokens, range(layers))
    assert ours.std() > 0.25
    torch.testing.assert_close(ours, theirs(tokens).logits, rtol=0, atol=1e-4)
    plain = load_model(tmp_path)
    assert plain.model_config.complete_p is None
    torch.testing.assert_close(plain.logits(tokens, range(layers)), ours, rtol=0, atol=1e-4)


@each_kind
@torch.no_grad()
def test_a_large_model_is_in_several_files(kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(small(kind), 3)
    monkeypatch.setattr("apollo_cli.models.hf.LARGEST_FILE", model.num_parameters())  # a quarter of its bytes
    save_model(model, tmp_path, SPECIAL[kind])
    assert len(list(tmp_path.glob("model-0*-of-*.safetensors"))) > 3
    assert not (tmp_path / "model.safetensors").exists()
    theirs = of_transformers(tmp_path, kind)
    loaded, tokens = load_model(tmp_path), make_tokens(small(kind).vocabulary, 5)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    torch.testing.assert_close(model.logits(tokens, range(3)), theirs(tokens).logits, rtol=0, atol=1e-4)


def test_an_index_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    exported(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"bert.embeddings.LayerNorm.weight": "../other.safetensors"}}))
    with pytest.raises(CheckpointError, match="which is not beside it"):
        load_model(tmp_path)


@each_model
@pytest.mark.parametrize("side", ["right", "left"])
@torch.no_grad()
def test_padded_batches_agree_with_transformers(model_config: ModelConfig, side: str, tmp_path: Path) -> None:
    model = make_model(model_config, 3)
    save_model(model, tmp_path, SPECIAL[model_config.kind])
    theirs = auto(model_config.kind).from_pretrained(tmp_path).eval()
    tokens = make_tokens(model_config.vocabulary, 10)
    is_token = torch.arange(10) < torch.tensor([[10], [7], [3], [1]])
    if side == "left":
        is_token = is_token.flip(1)
    ours = model.logits(tokens, range(3), is_token)
    logits = theirs(tokens, attention_mask=is_token.long(), position_ids=torch.arange(10)[None]).logits
    torch.testing.assert_close(ours[is_token], logits[is_token], rtol=0, atol=1e-4)


@each_kind
def test_config_holds_the_special_ids_and_the_dropout(kind: Kind, tmp_path: Path) -> None:
    save_model(make_model(replace(small(kind), dropout=0.25), 2), tmp_path, SPECIAL[kind])
    config = auto(kind).from_pretrained(tmp_path).config
    assert all(getattr(config, name) == value for name, value in SPECIAL[kind].items())
    names = {
        "bert": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
        "gpt": ("embd_pdrop", "attn_pdrop", "resid_pdrop"),
        "llama": ("attention_dropout",),
    }[kind]
    assert [getattr(config, name) for name in names] == [0.25] * len(names)
    assert load_model(tmp_path).model_config.dropout == 0.25


# what convert_hf_to_gguf.py of llama.cpp looks up, and candle and text-embeddings-inference
READ_BY_OTHERS: dict[Kind, str] = {
    "gpt": "architectures vocab_size n_ctx n_positions n_embd n_head n_layer layer_norm_epsilon bos_token_id "
    "eos_token_id pad_token_id activation_function",
    "bert": "architectures vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size "
    "hidden_act hidden_dropout_prob max_position_embeddings type_vocab_size initializer_range layer_norm_eps "
    "pad_token_id model_type",
    "llama": "architectures vocab_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads "
    "intermediate_size hidden_act max_position_embeddings rms_norm_eps rope_theta bos_token_id eos_token_id "
    "pad_token_id tie_word_embeddings",
}


@each_kind
def test_config_has_what_other_programs_look_up(kind: Kind, tmp_path: Path) -> None:
    config = json.loads((exported(tmp_path, kind) / "config.json").read_text(encoding="utf-8"))
    assert set(READ_BY_OTHERS[kind].split()) <= set(config)
    assert all(config[key] < config["vocab_size"] for key in config if key.endswith("_token_id"))
    if kind == "gpt":
        assert config["n_ctx"] == config["n_positions"] == 20
    generation = tmp_path / "generation_config.json"
    assert generation.exists() == (kind != "bert")
    if kind != "bert":
        assert json.loads(generation.read_text(encoding="utf-8")) == ENDS


@each_kind
def test_export_has_one_name_for_each_tensor_of_transformers(kind: Kind, tmp_path: Path) -> None:
    exported(tmp_path, kind)
    ours = load_file(tmp_path / "model.safetensors")
    theirs = auto(kind).from_pretrained(tmp_path)
    assert set(ours) == {name for name, _ in theirs.named_parameters()}  # tied ones under their first name
    assert all(tensor.shape == theirs.get_parameter(name).shape for name, tensor in ours.items())


@each_model
@torch.no_grad()
def test_own_export_comes_back_bit_for_bit(model_config: ModelConfig, tmp_path: Path) -> None:
    model = make_model(model_config, 3)
    save_model(model, tmp_path, SPECIAL[model_config.kind])
    loaded = load_model(tmp_path).eval()
    assert loaded.model_config == replace(model_config, layers=3)
    assert len(loaded.blocks) == 3
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    tokens = make_tokens(model_config.vocabulary, model_config.positions)
    assert torch.equal(loaded.logits(tokens, range(3)), model.logits(tokens, range(3)))


@each_kind
def test_loaded_model_can_be_trained_and_saved_again(kind: Kind, tmp_path: Path) -> None:
    loaded = load_model(exported(tmp_path, kind))
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    again = tmp_path / "again"
    again.mkdir()
    save_model(loaded, again, SPECIAL[kind])
    for name in ("config.json", "model.safetensors"):
        assert (again / name).read_bytes() == (tmp_path / name).read_bytes()


@pytest.mark.parametrize("norm", ["post", "pre"])
@torch.no_grad()
def test_model_saved_by_transformers_bert_is_read(norm: Norm, tmp_path: Path) -> None:
    from transformers import BertConfig, MegatronBertConfig

    config = (MegatronBertConfig if norm == "pre" else BertConfig)(
        vocab_size=50,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=56,
        max_position_embeddings=16,
    )
    theirs = auto("bert").from_config(config).eval()
    perturb(theirs)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path).eval()
    assert ours.model_config == ModelConfig("bert", 50, 16, 24, 3, 56, 3, dropout=0.1, norm=norm)
    tokens = make_tokens(50, 16)
    torch.testing.assert_close(ours.logits(tokens, range(3)), theirs(tokens).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("inner", [None, 56])
@torch.no_grad()
def test_model_saved_by_transformers_gpt2_is_read(inner: int | None, tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=50, n_embd=24, n_layer=3, n_head=3, n_inner=inner, n_positions=16)
    theirs = GPT2LMHeadModel(config).eval()
    perturb(theirs)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path).eval()
    assert ours.model_config == ModelConfig("gpt", 50, 16, 24, 3, inner or 96, 3, dropout=0.1)
    tokens = make_tokens(50, 16)
    torch.testing.assert_close(ours.logits(tokens, range(3)), theirs(tokens).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kv_heads", [1, 3])
@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_model_saved_by_transformers_llama_is_read(kv_heads: int, tied: bool, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=50,
        hidden_size=24,
        intermediate_size=56,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=kv_heads,
        max_position_embeddings=16,
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
    )
    theirs = LlamaForCausalLM(config).eval()
    perturb(theirs)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path).eval()
    of_keys = None if kv_heads == 3 else kv_heads
    assert ours.model_config == ModelConfig("llama", 50, 16, 24, 3, 56, 3, kv_heads=of_keys, tied=tied)
    tokens = make_tokens(50, 16)
    torch.testing.assert_close(ours.logits(tokens, range(3)), theirs(tokens).logits, rtol=0, atol=1e-4)


@torch.no_grad()
def test_a_llama_of_older_versions_of_transformers_is_read(tmp_path: Path) -> None:
    """Their config.json has no dropout of attention, and no `num_key_value_heads` where all heads have own keys."""
    model_config = ModelConfig("llama", vocabulary=61, positions=20, hidden=24, heads=6, ffn=64, layers=2)
    save_model(make_model(model_config, 2), tmp_path, SPECIAL["llama"])
    whole = load_model(tmp_path)
    edit_config(tmp_path, "attention_dropout", "num_key_value_heads")
    assert load_model(tmp_path).model_config == whole.model_config
    edit_config(tmp_path, initializer_range="x")
    with pytest.raises(CheckpointError, match="initializer_range is 'x', and should be a number"):
        load_model(tmp_path)


def test_a_key_that_is_missing_means_what_it_means_to_transformers(tmp_path: Path) -> None:
    edit_config(exported(tmp_path, "llama"), "rms_norm_eps")
    with pytest.raises(CheckpointError, match="rms_norm_eps is 1e-06, and only 1e-05 is supported"):
        load_model(tmp_path)


def test_llamas_config_has_the_rotations_for_transformers_4_and_5(tmp_path: Path) -> None:
    config = json.loads((exported(tmp_path, "llama") / "config.json").read_text(encoding="utf-8"))
    assert config["rope_theta"] == 10_000
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 10_000}
    assert config["rms_norm_eps"] == 1e-5
    assert config["num_key_value_heads"] == 2


@pytest.mark.parametrize(
    ("kind", "option", "value"),
    [
        ("bert", "hidden_act", "relu"),
        ("bert", "layer_norm_eps", 0.1),
        ("bert", "tie_word_embeddings", False),
        ("gpt", "activation_function", "relu"),
        ("gpt", "layer_norm_epsilon", 0.1),
        ("gpt", "tie_word_embeddings", False),
        ("gpt", "scale_attn_by_inverse_layer_idx", True),
        ("llama", "hidden_act", "gelu"),
        ("llama", "rms_norm_eps", 1e-6),
        ("llama", "attention_bias", True),
        ("llama", "mlp_bias", True),
        ("llama", "rope_parameters", {"rope_type": "default", "rope_theta": 500000.0}),
        ("llama", "rope_parameters", {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}),
    ],
)
def test_model_that_ours_would_compute_otherwise_is_refused(
    kind: Kind, option: str, value: object, tmp_path: Path
) -> None:
    theirs = auto(kind).from_pretrained(exported(tmp_path, kind), **{option: value})
    theirs.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=option):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("kind", "key", "size"),
    [
        ("gpt", "n_layer", 10**9),
        ("bert", "num_hidden_layers", 0),
        ("llama", "vocab_size", 10**12),
        ("gpt", "n_embd", "x"),
        ("bert", "num_attention_heads", -1),
        ("llama", "intermediate_size", True),
    ],
)
def test_a_size_that_the_weights_cannot_have_is_refused_at_once(
    kind: Kind, key: str, size: object, tmp_path: Path
) -> None:
    """A model of a billion layers would be built for hours."""
    edit_config(exported(tmp_path, kind), **{key: size})
    with pytest.raises(CheckpointError, match=rf"\): {key} is {size!r}, and the weights allow whole numbers"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_pipe_is_not_read(name: str, tmp_path: Path) -> None:
    (exported(tmp_path) / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(CheckpointError, match="not a regular file"):
        load_model(tmp_path)


def test_an_index_without_names_is_refused(tmp_path: Path) -> None:
    (exported(tmp_path) / "model.safetensors.index.json").write_text('{"weight_map": 5}', encoding="utf-8")
    with pytest.raises(CheckpointError, match="not a BERT, GPT-2 or LLaMA model"):
        load_model(tmp_path)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_missing_file_is_named(missing: str, tmp_path: Path) -> None:
    (exported(tmp_path) / missing).unlink()
    with pytest.raises(CheckpointError, match="not a BERT, GPT-2 or LLaMA model in transformers' format") as caught:
        load_model(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "config.json and model.safetensors" in str(caught.value)


def test_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere: no such folder"):
        load_model(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '"bert"', '{"model_type": "mamba"}', '{"model_type": "bert"}']
)
def test_config_of_no_such_model_is_refused(text: str, tmp_path: Path) -> None:
    (exported(tmp_path) / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match="not a BERT, GPT-2 or LLaMA model"):
        load_model(tmp_path)


@each_kind
@pytest.mark.parametrize("kept", [0, 5, 500, 50_000])
def test_cut_off_weights_are_refused(kind: Kind, kept: int, tmp_path: Path) -> None:
    path = exported(tmp_path, kind) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("bert", "bert.encoder.layer.1.attention.self.key.weight"),
        ("bert", "cls.predictions.bias"),
        ("gpt", "transformer.h.1.mlp.c_fc.bias"),
        ("gpt", "transformer.wte.weight"),
        ("llama", "model.layers.1.mlp.up_proj.weight"),
    ],
)
def test_missing_tensor_is_named(kind: Kind, name: str, tmp_path: Path) -> None:
    rewrite(exported(tmp_path, kind), lambda tensors: tensors.pop(name))
    with pytest.raises(CheckpointError, match=f"model.safetensors: no tensor '?{name}"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("kind", "name", "size"),
    [
        ("bert", "bert.embeddings.word_embeddings.weight", (60, 32)),
        ("bert", "bert.encoder.layer.1.attention.output.dense.weight", (32, 16)),
        ("bert", "bert.encoder.layer.1.attention.self.query.weight", (16, 32)),
        ("bert", "bert.encoder.layer.1.attention.self.query.weight", (32, 16)),
        ("bert", "bert.encoder.layer.1.attention.self.key.bias", (31,)),
        ("gpt", "transformer.h.1.attn.c_attn.weight", (96, 32)),
        ("gpt", "transformer.h.1.mlp.c_proj.weight", (32, 80)),
        ("gpt", "transformer.ln_f.bias", (31,)),
        ("llama", "model.layers.1.self_attn.k_proj.weight", (32, 32)),
        ("llama", "model.layers.1.mlp.gate_proj.weight", (81, 32)),
    ],
)
def test_tensor_of_a_wrong_shape_is_refused(kind: Kind, name: str, size: tuple[int, ...], tmp_path: Path) -> None:
    rewrite(exported(tmp_path, kind), lambda tensors: tensors.update({name: torch.zeros(size)}))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: .* has shape .*, by config\.json it should"):
        load_model(tmp_path)


@each_kind
def test_config_of_another_size_than_the_weights_is_refused(kind: Kind, tmp_path: Path) -> None:
    edit_config(exported(tmp_path, kind), vocab_size=77)
    with pytest.raises(CheckpointError, match=r"has shape \(61,.*, by config\.json it should be \(77,"):
        load_model(tmp_path)
