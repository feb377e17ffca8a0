"""Models in transformers' format, `config.json` and `model.safetensors`, written and read."""

import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from apollo_cli.errors import CheckpointError
from apollo_cli.models.bert import SEGMENTS
from apollo_cli.models.build import build, build_on_meta
from apollo_cli.models.model_config import ARCHITECTURES, Initialization, Kind, ModelConfig, Norm
from apollo_cli.models.parametrization import in_parametrization
from apollo_cli.models.transformer import LONGEST_WAVE, LanguageModel

# our module -> transformers' name, outside the blocks and in block {i}; several names for one that we have joined
BERT_NAMES = {
    "tokens.weight": "bert.embeddings.word_embeddings.weight",
    "positions.weight": "bert.embeddings.position_embeddings.weight",
    "segments.weight": "bert.embeddings.token_type_embeddings.weight",
    "embedding_norm": "bert.embeddings.LayerNorm",
    "transform": "cls.predictions.transform.dense",
    "transform_norm": "cls.predictions.transform.LayerNorm",
    "head_bias": "cls.predictions.bias",
}
BERT_BLOCK_NAMES = {
    "qkv": [f"bert.encoder.layer.{{i}}.attention.self.{part}" for part in ("query", "key", "value")],
    "attention_out": "bert.encoder.layer.{i}.attention.output.dense",
    "attention_norm": "bert.encoder.layer.{i}.attention.output.LayerNorm",
    "ffn_in": "bert.encoder.layer.{i}.intermediate.dense",
    "ffn_out": "bert.encoder.layer.{i}.output.dense",
    "ffn_norm": "bert.encoder.layer.{i}.output.LayerNorm",
}
# pre-norm BERT, which is transformers' Megatron-BERT
PRE_NORM_BERT_NAMES = {name: theirs for name, theirs in BERT_NAMES.items() if name != "embedding_norm"} | {
    "encoder_norm": "bert.encoder.ln",
}
PRE_NORM_BERT_BLOCK_NAMES = BERT_BLOCK_NAMES | {
    "attention_norm": "bert.encoder.layer.{i}.attention.ln",
    "ffn_norm": "bert.encoder.layer.{i}.ln",
}
GPT_NAMES = {
    "tokens.weight": "transformer.wte.weight",
    "positions.weight": "transformer.wpe.weight",
    "final_norm": "transformer.ln_f",
}
GPT_BLOCK_NAMES = {
    "qkv": "transformer.h.{i}.attn.c_attn",
    "attention_out": "transformer.h.{i}.attn.c_proj",
    "attention_norm": "transformer.h.{i}.ln_1",
    "ffn_in": "transformer.h.{i}.mlp.c_fc",
    "ffn_out": "transformer.h.{i}.mlp.c_proj",
    "ffn_norm": "transformer.h.{i}.ln_2",
}
LLAMA_NAMES = {
    "tokens.weight": "model.embed_tokens.weight",
    "final_norm": "model.norm",
    "decoder": "lm_head",
}
LLAMA_BLOCK_NAMES = {
    "qkv": [f"model.layers.{{i}}.self_attn.{part}_proj" for part in ("q", "k", "v")],
    "attention_out": "model.layers.{i}.self_attn.o_proj",
    "attention_norm": "model.layers.{i}.input_layernorm",
    "gate_up": ["model.layers.{i}.mlp.gate_proj", "model.layers.{i}.mlp.up_proj"],
    "ffn_out": "model.layers.{i}.mlp.down_proj",
    "ffn_norm": "model.layers.{i}.post_attention_layernorm",
}


class _Format(NamedTuple):
    kind: Kind
    architecture: str
    names: dict[str, str]
    block_names: dict[str, Any]


_FORMATS = {  # by model_type; BERT's first one is post-norm
    "bert": _Format("bert", "BertForMaskedLM", BERT_NAMES, BERT_BLOCK_NAMES),
    "megatron-bert": _Format("bert", "MegatronBertForMaskedLM", PRE_NORM_BERT_NAMES, PRE_NORM_BERT_BLOCK_NAMES),
    "gpt2": _Format("gpt", "GPT2LMHeadModel", GPT_NAMES, GPT_BLOCK_NAMES),
    "llama": _Format("llama", "LlamaForCausalLM", LLAMA_NAMES, LLAMA_BLOCK_NAMES),
}
GPT_TRANSPOSED = (  # GPT-2 stores these as (in, out)
    "attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight",
)  # fmt: skip
LARGEST_FILE = 5_000_000_000  # bytes of weights in one file, the hub's default; larger models are split
_HEAD = ("transform", "head_bias", "decoder")  # prefixes of our names of a head, which models for other tasks lack
_BARE = {  # what begins the names of a model without a head, and what they begin with in a language model
    "bert": (("embeddings.", "encoder.", "pooler."), "bert."),
    "gpt": (("wte.", "wpe.", "h.", "ln_f."), "transformer."),
    "llama": (("embed_tokens.", "layers.", "norm."), "model."),
}

# our attribute -> the key of config.json; and the keys that all hold the dropout probability
_BERT_KEYS = {
    "vocabulary": "vocab_size",
    "positions": "max_position_embeddings",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "ffn": "intermediate_size",
    "layers": "num_hidden_layers",
}
_SIZE_KEYS = {
    "bert": _BERT_KEYS,
    "gpt": {
        "vocabulary": "vocab_size",
        "positions": "n_positions",
        "hidden": "n_embd",
        "heads": "n_head",
        "ffn": "n_inner",
        "layers": "n_layer",
    },
    "llama": _BERT_KEYS | {"kv_heads": "num_key_value_heads", "tied": "tie_word_embeddings"},
}
_DROPOUT_KEYS = {
    "bert": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    "gpt": ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
    "llama": ("attention_dropout",),
}
# what our models compute with: written, and the only values that are read
_COMPUTED: dict[str, dict[str, Any]] = {
    "bert": {"hidden_act": "gelu", "layer_norm_eps": ARCHITECTURES["bert"].eps, "tie_word_embeddings": True},
    "gpt": {
        "activation_function": "gelu_new",
        "layer_norm_epsilon": ARCHITECTURES["gpt"].eps,
        "tie_word_embeddings": True,
    },
    "llama": {
        "hidden_act": "silu",
        "rms_norm_eps": ARCHITECTURES["llama"].eps,
        "rope_theta": float(LONGEST_WAVE),  # transformers 4 and llama.cpp
        "rope_parameters": {"rope_type": "default", "rope_theta": float(LONGEST_WAVE)},  # transformers 5
    },
}
# the only values that are read, which are also transformers' defaults
_DEFAULTS: dict[str, dict[str, Any]] = {
    "bert": {"position_embedding_type": "absolute", "is_decoder": False},
    "gpt": {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False},
    "llama": {"rope_scaling": None, "attention_bias": False, "mlp_bias": False},
}
# what a missing key means to transformers, where that is not what our models compute with
_MISSING: dict[str, dict[str, Any]] = {
    "llama": {"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "attention_dropout": 0.0}
}


def save_model(model: LanguageModel, folder: Path, special_ids: dict[str, int]) -> None:
    """Writes the N stored layers as a transformers model of N layers, in the standard parametrization.

    The folder exists and is empty; `special_ids` has `pad_token_id` and so on, as in transformers' configs.
    """
    model, theirs = in_parametrization(model, None), {}
    for name, tensor in model.state_dict().items():
        their_names = _their_names(model.model_config, name)
        rows = _rows(model.model_config, name, len(tensor), their_names)
        for their_name, part in zip(their_names, tensor.split(rows), strict=True):
            oriented = part.t() if their_name.endswith(GPT_TRANSPOSED) else part
            theirs[their_name] = oriented.cpu().clone(memory_format=torch.contiguous_format)  # no view of qkv
    _save_weights(theirs, folder)
    _write_json(folder / "config.json", _config(model) | special_ids)
    if model.model_config.architecture.causal:  # vLLM and others take the ends of a text from there
        _write_json(folder / "generation_config.json", special_ids)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _config(model: LanguageModel) -> dict[str, Any]:
    kind, kv_heads = model.model_config.kind, model.model_config.kv_heads or model.model_config.heads
    sizes = replace(model.model_config, layers=len(model.blocks), kv_heads=kv_heads)
    model_type = _model_type(sizes)
    return {
        "model_type": model_type,
        "architectures": [_FORMATS[model_type].architecture],
        **_COMPUTED[kind],
        **{key: getattr(sizes, name) for name, key in _SIZE_KEYS[kind].items()},
        **({"type_vocab_size": SEGMENTS} if kind == "bert" else {}),
        **({"n_ctx": sizes.positions} if kind == "gpt" else {}),  # llama.cpp
        **dict.fromkeys(_DROPOUT_KEYS[kind], sizes.dropout),
        "initializer_range": sizes.init.std,
        "dtype": "float32",
    }


def _save_weights(tensors: dict[str, Tensor], folder: Path) -> None:
    metadata = {"format": "pt"}
    if sum(tensor.nbytes for tensor in tensors.values()) <= LARGEST_FILE:
        save_file(tensors, folder / "model.safetensors", metadata)
    else:
        from huggingface_hub import save_torch_state_dict  # its import takes a second

        save_torch_state_dict(tensors, folder, max_shard_size=LARGEST_FILE, metadata=metadata)
    for file in folder.glob("model*.safetensors"):
        file.chmod(0o644)  # the libraries write 0600, which other users cannot load


def load_model(folder: Path) -> LanguageModel:
    """Reads what `save_model` wrote, or such a language model of transformers or the hub in safetensors.

    A CheckpointError if a file is missing or not of such a model.
    """
    model_config, theirs = _read(folder)
    return _with_weights(folder, build(model_config, model_config.layers), theirs)


def load_model_config(folder: Path) -> ModelConfig:
    """The sizes of the model that `load_model` would read; a CheckpointError where that would raise it."""
    model_config, theirs = _read(folder)
    for name, t in build_on_meta(model_config, model_config.layers).state_dict().items():
        _our_tensor(folder, model_config, name, t.shape, theirs)
    return model_config


def load_trunk(folder: Path, dropout: float) -> tuple[LanguageModel, dict[str, Tensor] | None]:
    """Reads the layers of a BERT, GPT-2 or LLaMA of transformers in safetensors, with any head or none.

    `dropout` stands in place of the one in config.json. Returns the model, whose language model head is new where
    the file has none, and the state of BERT's pooler, `weight` (hidden, hidden) and `bias` (hidden,), or None. A
    CheckpointError if a file is missing or not of such a model.
    """
    model_config, theirs = _read(folder)
    model = build(replace(model_config, dropout=dropout), model_config.layers)
    names = {leaf: f"bert.pooler.dense.{leaf}" for leaf in ("weight", "bias")}
    pooler = {leaf: theirs[name] for leaf, name in names.items() if name in theirs}
    return _with_weights(folder, model, theirs, optional=_HEAD), pooler if len(pooler) == 2 else None


def _model_type(model_config: ModelConfig) -> str:
    """Transformers' name of models that compute the same."""
    if model_config.kind == "bert" and model_config.norm == "pre":
        return "megatron-bert"
    return next(theirs for theirs, each in _FORMATS.items() if each.kind == model_config.kind)


def _with_prefix(kind: str, name: str) -> str:
    """The name in a language model of a tensor of a model without head, or of an old BERT with gamma and beta."""
    for old, new in (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")):
        name = name.replace(old, new)
    bare, prefix = _BARE[kind]
    return prefix + name if name.startswith(bare) else name


def _read(folder: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; correct the path")
    try:
        config = json.loads(_regular(folder / "config.json").read_text(encoding="utf-8"))
        theirs = {name: tensor for file in weight_files(folder) for name, tensor in load_file(file).items()}
        _check_sizes(config, theirs)
        model_config = _model_config(config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        reason = error if type(error) is ValueError else getattr(error, "strerror", None) or repr(error)
        raise CheckpointError(
            f"{folder}: not a BERT, GPT-2 or LLaMA model in transformers' format "
            f"(config.json and model.safetensors): {reason}"
        ) from error
    config = _MISSING.get(model_config.kind, {}) | config
    head_dim = {"head_dim": model_config.hidden // model_config.heads}
    for key, ours in (_COMPUTED[model_config.kind] | _DEFAULTS[model_config.kind] | head_dim).items():
        if config.get(key, ours) != ours:
            raise CheckpointError(f"{folder}/config.json: {key} is {config[key]!r}, and only {ours!r} is supported")
    return model_config, {_with_prefix(model_config.kind, name): tensor for name, tensor in theirs.items()}


def _check_sizes(config: dict[str, Any], theirs: dict[str, Tensor]) -> None:
    """Raises a ValueError for a size that no such weights can have, before so much memory or time is taken."""
    longest = max((length for tensor in theirs.values() for length in tensor.shape), default=0)
    kind = _FORMATS[config["model_type"]].kind
    for name, key in _SIZE_KEYS[kind].items():
        if name == "tied" or (kind == "llama" and name == "positions"):  # of which the weights know nothing
            continue
        most = len(theirs) if name == "layers" else longest
        if (size := config.get(key)) is not None and not (type(size) is int and 0 < size <= most):
            raise ValueError(f"{key} is {size!r}, and the weights allow whole numbers from 1 to {most:,}")


def _model_config(config: dict[str, Any]) -> ModelConfig:
    kind = _FORMATS[config["model_type"]].kind
    if kind == "gpt" and not config.get("n_inner"):
        config = config | {"n_inner": 4 * config["n_embd"]}
    if kind == "llama" and config.get("num_key_value_heads") is None:
        config = config | {"num_key_value_heads": config["num_attention_heads"]}
    config = _MISSING.get(kind, {}) | config
    sizes = {name: config[key] for name, key in _SIZE_KEYS[kind].items()}
    if sizes.get("kv_heads") == sizes["heads"]:
        sizes["kv_heads"] = None
    std = config.get("initializer_range", Initialization.std)
    if not isinstance(std, int | float):
        raise ValueError(f"initializer_range is {std!r}, and should be a number")
    init = Initialization(std=std)
    norm: Norm = "pre" if config["model_type"] == "megatron-bert" else "post"
    return ModelConfig(kind, **sizes, dropout=config[_DROPOUT_KEYS[kind][0]], init=init, norm=norm)


def weight_files(folder: Path) -> list[Path]:
    """model.safetensors, or the files that an index beside them names.

    Raises:
        ValueError: the index is damaged, or names a file elsewhere; also KeyError, TypeError, AttributeError.
        OSError: the index cannot be read.
    """
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return [_regular(folder / "model.safetensors")]
    names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    if outside := [name for name in names if Path(name).name != name]:
        raise ValueError(f"{index.name} names {outside[0]!r}, which is not beside it")
    return [_regular(folder / name) for name in sorted(names)]


def _regular(path: Path) -> Path:
    """The path; raises an OSError where no regular file is, for reading a FIFO would wait for ever."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return path


def _with_weights(
    folder: Path, model: LanguageModel, theirs: dict[str, Tensor], optional: tuple[str, ...] = ()
) -> LanguageModel:
    """The model with their weights; names that begin with one of `optional` may be missing."""
    config = model.model_config
    for name, ours in model.state_dict().items():
        if not (name.startswith(optional) and set(_their_names(config, name)) - theirs.keys()):
            ours.copy_(_our_tensor(folder, config, name, ours.shape, theirs))
    return model


def _our_tensor(
    folder: Path, model_config: ModelConfig, name: str, size: torch.Size, theirs: dict[str, Tensor]
) -> Tensor:
    """Our tensor `name` from theirs: GPT-2's are transposed where needed, those that we have in one are joined."""
    their_names = _their_names(model_config, name)
    if missing := [their_name for their_name in their_names if their_name not in theirs]:
        raise CheckpointError(f"{folder}/model.safetensors: no tensor {', '.join(missing)}")
    parts = [theirs[n].t() if n.endswith(GPT_TRANSPOSED) else theirs[n] for n in their_names]
    rows = _rows(model_config, name, size[0], their_names)
    for their_name, part, length in zip(their_names, parts, rows, strict=True):
        if part.shape != (expected := torch.Size([length, *size[1:]])):
            raise CheckpointError(
                f"{folder}/model.safetensors: {their_name} has shape {tuple(part.shape)}, by config.json it should "
                f"be {tuple(expected)} (linear layers as (out, in))"
            )
    return torch.cat(parts)


def _rows(model_config: ModelConfig, name: str, rows: int, their_names: list[str]) -> tuple[int, ...]:
    """The rows of our tensor `name` that each of theirs has."""
    return model_config.joined_rows(name, rows) if len(their_names) > 1 else (rows,)


def _their_names(model_config: ModelConfig, name: str) -> list[str]:
    """Transformers' names of our tensor `name`: one, or several where theirs are joined in ours."""
    _, _, names, block_names = _FORMATS[_model_type(model_config)]
    if name in names:
        return [names[name]]
    module, _, leaf = name.rpartition(".")
    if not module.startswith("blocks."):
        return [f"{names[module]}.{leaf}"]
    _, i, module = module.split(".")
    theirs = block_names[module]
    return [f"{each.format(i=i)}.{leaf}" for each in (theirs if isinstance(theirs, list) else [theirs])]
