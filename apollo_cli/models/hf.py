"""Our models in transformers' format: `config.json` and `model.safetensors`, written and read."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from apollo_cli.errors import CheckpointError
from apollo_cli.models.bert import EPS as BERT_EPS
from apollo_cli.models.bert import SEGMENTS
from apollo_cli.models.build import build
from apollo_cli.models.gpt import EPS as GPT_EPS
from apollo_cli.models.model_config import Initialization, ModelConfig
from apollo_cli.models.transformer import LanguageModel

# our module -> theirs, outside the blocks and within block {i}; a name that is missing keeps its own
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
    "attention_out": "bert.encoder.layer.{i}.attention.output.dense",
    "attention_norm": "bert.encoder.layer.{i}.attention.output.LayerNorm",
    "ffn_in": "bert.encoder.layer.{i}.intermediate.dense",
    "ffn_out": "bert.encoder.layer.{i}.output.dense",
    "ffn_norm": "bert.encoder.layer.{i}.output.LayerNorm",
}
LARGEST_FILE = 5_000_000_000  # bytes of weights in one file, as the hub has it; more are parted
_OF_THE_HEAD = ("transform", "head_bias")  # of ours, which BERTs for other tasks lack
BERT_QKV = [f"bert.encoder.layer.{{i}}.attention.self.{part}" for part in ("query", "key", "value")]
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
GPT_TRANSPOSED = (  # GPT-2 stores these as (in, out)
    "attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight",
)  # fmt: skip


class Pooler(NamedTuple):
    """What BERT puts between the state of [CLS] and a head for sentences: (hidden, hidden) and (hidden,)."""

    weight: Tensor
    bias: Tensor


def save_model(model: LanguageModel, folder: Path, special_ids: dict[str, int]) -> None:
    """Writes the N stored layers as a transformers model of N layers.

    Args:
        model: what to write.
        folder: exists already, and is empty.
        special_ids: `pad_token_id`, `bos_token_id` and the like, as transformers' configs name them.
    """
    theirs = {}
    for name, tensor in model.state_dict().items():
        parts = _their_names(model.model_config.kind, name)
        for their_name, part in zip(parts, tensor.chunk(len(parts)), strict=True):
            turned = part.t() if their_name.endswith(GPT_TRANSPOSED) else part
            theirs[their_name] = turned.cpu().clone(memory_format=torch.contiguous_format)  # no view of qkv
    _save_weights(theirs, folder)
    config = _CONFIGS[model.model_config.kind](model.model_config, len(model.blocks)) | special_ids
    text = json.dumps(config, indent=2, sort_keys=True)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")


def _save_weights(tensors: dict[str, Tensor], folder: Path) -> None:
    metadata = {"format": "pt"}
    if sum(tensor.nbytes for tensor in tensors.values()) <= LARGEST_FILE:
        save_file(tensors, folder / "model.safetensors", metadata)
    else:
        from huggingface_hub import save_torch_state_dict  # loads torch's distributed tensors, a second

        save_torch_state_dict(tensors, folder, max_shard_size=LARGEST_FILE, metadata=metadata)
    for file in folder.glob("model*.safetensors"):
        file.chmod(0o644)  # the libraries write 0600; colleagues load it too


def load_model(folder: Path) -> LanguageModel:
    """Reads what `save_model` wrote, or a BERT or GPT-2 language model of transformers or the hub in safetensors.

    Raises:
        CheckpointError: a file is missing or not of such a model.
    """
    model_config, theirs = _read(folder)
    return _filled(folder, build(model_config, model_config.layers), theirs)


def load_shape(folder: Path) -> ModelConfig:
    """What `load_model` would read there, in numbers.

    Raises:
        CheckpointError: `load_model` would not read it.
    """
    model_config, theirs = _read(folder)
    with torch.device("meta"):
        model = build(model_config, model_config.layers)
    for name, t in model.state_dict().items():
        _our_tensor(folder, model_config.kind, name, t.shape, theirs)
    return model_config


def load_trunk(folder: Path, dropout: float) -> tuple[LanguageModel, Pooler | None]:
    """Reads the layers of any BERT or GPT-2 of transformers in safetensors, whatever its head.

    What is missing of a head to predict tokens with is new. The second is BERT's pooler, where it has one.

    Args:
        folder: has config.json and model.safetensors.
        dropout: instead of the probability that it was made with.

    Raises:
        CheckpointError: a file is missing or not of such a model.
    """
    model_config, theirs = _read(folder)
    model = _filled(
        folder, build(replace(model_config, dropout=dropout), model_config.layers), theirs, _OF_THE_HEAD
    )
    names = [f"bert.pooler.dense.{leaf}" for leaf in ("weight", "bias")]
    return model, Pooler(*(theirs[name] for name in names)) if set(names) <= theirs.keys() else None


def _with_prefix(kind: str, name: str) -> str:
    """The name in a language model, of a tensor in a bare one or in one of BERT's authors."""
    for old, new in (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")):
        name = name.replace(old, new)
    bare = {"bert": ("embeddings.", "encoder.", "pooler."), "gpt": ("wte.", "wpe.", "h.", "ln_f.")}[kind]
    return {"bert": "bert.", "gpt": "transformer."}[kind] + name if name.startswith(bare) else name


def _read(folder: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        theirs = _tensors(folder)
        model_config = _SHAPES[config["model_type"]](config)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder}: not a BERT or GPT-2 model in transformers' format "
            f"(config.json and model.safetensors): {error!r}"
        ) from error
    for key, ours in _COMPUTED[model_config.kind].items():
        if config.get(key, ours) != ours:
            raise CheckpointError(f"{folder}/config.json: {key} is {config[key]!r}, and only {ours!r} is supported")
    return model_config, {_with_prefix(model_config.kind, name): tensor for name, tensor in theirs.items()}


def _tensors(folder: Path) -> dict[str, Tensor]:
    """Of model.safetensors, or of the files that an index beside them names."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return load_file(folder / "model.safetensors")
    names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    if strange := [name for name in names if Path(name).name != name]:
        raise ValueError(f"{index.name} names {strange[0]!r}, which is not beside it")
    return {name: tensor for file in sorted(names) for name, tensor in load_file(folder / file).items()}


def _filled(
    folder: Path, model: LanguageModel, theirs: dict[str, Tensor], may_lack: tuple[str, ...] = ()
) -> LanguageModel:
    """The model with their weights; what begins with one of `may_lack` keeps its own where they have none."""
    kind = model.model_config.kind
    weights = {
        name: t
        if name.startswith(may_lack) and may_lack and not theirs.keys() >= set(_their_names(kind, name))
        else _our_tensor(folder, kind, name, t.shape, theirs)
        for name, t in model.state_dict().items()
    }
    model.load_state_dict(weights)
    return model


def _our_tensor(folder: Path, kind: str, name: str, size: torch.Size, theirs: dict[str, Tensor]) -> Tensor:
    """Our tensor `name` from theirs: turned where GPT-2 turns it, q, k and v joined where BERT parts them."""
    their_names = _their_names(kind, name)
    if missing := [their_name for their_name in their_names if their_name not in theirs]:
        raise CheckpointError(f"{folder}/model.safetensors: no tensor {', '.join(missing)}")
    parts = [theirs[n].t() if n.endswith(GPT_TRANSPOSED) else theirs[n] for n in their_names]
    expected = torch.Size([size[0] // len(parts), *size[1:]])
    for their_name, part in zip(their_names, parts, strict=True):
        if part.shape != expected:
            raise CheckpointError(
                f"{folder}/model.safetensors: {their_name} is {tuple(part.shape)} in the order of our layers, "
                f"config.json says {tuple(expected)}"
            )
    return torch.cat(parts)


def _their_names(kind: str, name: str) -> list[str]:
    """The name, or the q, k and v names, under which transformers keeps our tensor `name`."""
    names, block_names = {"bert": (BERT_NAMES, BERT_BLOCK_NAMES), "gpt": (GPT_NAMES, GPT_BLOCK_NAMES)}[kind]
    if name in names:
        return [names[name]]
    module, _, leaf = name.rpartition(".")
    if not module.startswith("blocks."):
        return [f"{names[module]}.{leaf}"]
    _, i, module = module.split(".")
    their_modules = BERT_QKV if kind == "bert" and module == "qkv" else [block_names[module]]
    return [f"{their_module.format(i=i)}.{leaf}" for their_module in their_modules]


def _bert_config(model_config: ModelConfig, layers: int) -> dict[str, Any]:
    return {
        "architectures": ["BertForMaskedLM"],
        "model_type": "bert",
        "vocab_size": model_config.vocabulary,
        "hidden_size": model_config.hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": model_config.heads,
        "intermediate_size": model_config.ffn,
        "hidden_act": "gelu",
        "hidden_dropout_prob": model_config.dropout,
        "attention_probs_dropout_prob": model_config.dropout,
        "max_position_embeddings": model_config.positions,
        "type_vocab_size": SEGMENTS,
        "layer_norm_eps": BERT_EPS,
        "initializer_range": model_config.init.std,
        "tie_word_embeddings": True,
        "dtype": "float32",
    }


def _gpt_config(model_config: ModelConfig, layers: int) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": model_config.vocabulary,
        "n_embd": model_config.hidden,
        "n_layer": layers,
        "n_head": model_config.heads,
        "n_inner": model_config.ffn,
        "n_positions": model_config.positions,
        "activation_function": "gelu_new",
        "embd_pdrop": model_config.dropout,
        "attn_pdrop": model_config.dropout,
        "resid_pdrop": model_config.dropout,
        "layer_norm_epsilon": GPT_EPS,
        "initializer_range": model_config.init.std,
        "tie_word_embeddings": True,
        "dtype": "float32",
    }


def _bert_shape(config: dict[str, Any]) -> ModelConfig:
    return ModelConfig(
        kind="bert",
        vocabulary=config["vocab_size"],
        positions=config["max_position_embeddings"],
        hidden=config["hidden_size"],
        heads=config["num_attention_heads"],
        ffn=config["intermediate_size"],
        layers=config["num_hidden_layers"],
        dropout=config["hidden_dropout_prob"],
        init=Initialization(std=config.get("initializer_range", 0.02)),
    )


def _gpt_shape(config: dict[str, Any]) -> ModelConfig:
    return ModelConfig(
        kind="gpt",
        vocabulary=config["vocab_size"],
        positions=config["n_positions"],
        hidden=config["n_embd"],
        heads=config["n_head"],
        ffn=config.get("n_inner") or 4 * config["n_embd"],
        layers=config["n_layer"],
        dropout=config["resid_pdrop"],
        init=Initialization(std=config.get("initializer_range", 0.02)),
    )


_CONFIGS: dict[str, Callable[[ModelConfig, int], dict[str, Any]]] = {"bert": _bert_config, "gpt": _gpt_config}
_SHAPES: dict[str, Callable[[dict[str, Any]], ModelConfig]] = {"bert": _bert_shape, "gpt2": _gpt_shape}

# what decides how the weights are used; a key that is missing has the value that ours computes with
_COMPUTED: dict[str, dict[str, Any]] = {
    "bert": {
        "hidden_act": "gelu",
        "layer_norm_eps": BERT_EPS,
        "tie_word_embeddings": True,
        "position_embedding_type": "absolute",
        "is_decoder": False,
    },
    "gpt": {
        "activation_function": "gelu_new",
        "layer_norm_epsilon": GPT_EPS,
        "tie_word_embeddings": True,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
    },
}
