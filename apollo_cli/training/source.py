"""What a run may begin from: a smaller model that was trained before, by us or by others."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from apollo_cli import files
from apollo_cli.config import Config
from apollo_cli.errors import CheckpointError, ConfigError
from apollo_cli.growth.expanders import grown_tensor
from apollo_cli.growth.growths import Expander, Growth
from apollo_cli.growth.widths import WIDTHS, Sizes, Spaces, State, problems, spaces, widened, widened_layers
from apollo_cli.models.hf import load_shape
from apollo_cli.models.shape import Shape
from apollo_cli.models.transformer import LanguageModel
from apollo_cli.run_directory import RunDirectory


@dataclass(frozen=True)
class Source:
    """A trained model, and what it took.

    Attributes:
        folder: in transformers' format.
        shape: of it.
        flops: of its training, its own source's included; None where nobody knows.
        seconds: of its training; 0 where nobody knows.
    """

    folder: Path
    shape: Shape
    flops: int | None
    seconds: float


def find(config: Config) -> Source | None:
    """The source of a config: a run directory of ours, or a folder in transformers' format; None without one.

    Raises:
        CheckpointError: it is not there, not complete, or no such model.
        ConfigError: it cannot grow to the model of the config.
    """
    if config.expander.source is None:
        return None
    place = Path(config.expander.source)
    directory = RunDirectory(place)
    if not place.is_dir():
        raise CheckpointError(
            f"expander.source={place}: there is no such folder; a run that begins from one needs it until its end: "
            "restore it, or correct the path"
        )
    if directory.is_claimed:
        if directory.summary().get("status") != "completed":
            raise CheckpointError(
                f"expander.source={files.shown(place)}: this run is not complete; finish it first"
            )
        totals = directory.summary().get("totals", {})
        before = totals.get("source_flops", 0)  # of its own source
        flops = None if before is None else int(totals["flops"]) + int(before)
        seconds = float(totals["train_seconds"]) + float(totals.get("source_seconds", 0))
        found = Source(directory.model, load_shape(directory.model), flops, seconds)
    else:
        found = Source(place, load_shape(place), None, 0.0)
    if config.expander.source_flops is not None:
        found = Source(found.folder, found.shape, config.expander.source_flops, found.seconds)
    if wrong := _problems(found.shape, config):
        raise ConfigError([f"expander.source={files.shown(place)}: {problem}" for problem in wrong])
    return found


def sizes(shape: Shape) -> Sizes:
    """The widths of a model."""
    return Sizes(shape.hidden, shape.heads, shape.ffn)


def _problems(source: Shape, config: Config) -> list[str]:
    target, layers = config.shape, config.schedule.layers[0]
    if source.kind != target.kind:
        return [f"it is a {source.kind} and model={target.kind}; take a source of the same kind"]
    found = problems(config.expander.build().width, sizes(source), sizes(target))
    if source.vocabulary != target.vocabulary:
        found.append(
            f"it has {source.vocabulary} tokens and data.vocab_size is {target.vocabulary}; take its tokenizer: "
            "data.tokenizer=FOLDER, with its model"
        )
    if source.positions < target.positions:
        found.append(f"its rows have at most {source.positions} tokens; make data.seq_len no longer")
    if source.layers > layers:
        found.append(f"it has {source.layers} layers and schedule.layers begins with {layers}: nothing shrinks")
    return found


def check_tokenizer(source: Source, tokenizer: Tokenizer) -> None:
    """The tokens of a source are those of the corpus, where the source has its tokenizer with it.

    Raises:
        CheckpointError: they are others.
    """
    file = source.folder / "tokenizer.json"
    if file.is_file() and Tokenizer.from_file(str(file)).get_vocab() != tokenizer.get_vocab():
        raise CheckpointError(
            f"expander.source: {files.shown(file)} has other tokens than the corpus; type "
            f"data.tokenizer={files.shown(file)}"
        )


@torch.no_grad()
def fill(model: LanguageModel, source: LanguageModel, expander: Expander, random: np.random.Generator) -> None:
    """Gives a model the weights of a smaller one: widened first, then in depth by the expander's map."""
    chosen = spaces(expander.width, sizes(source.shape), sizes(model.shape), random)
    _, _, new_from_above = WIDTHS[expander.width]
    layers = widened_layers(layers_of(source), chosen, new_from_above=new_from_above)
    growth = expander.growth(len(source.blocks), len(model.blocks))
    state = outside(source, chosen) | deepened(layers, growth)
    model.load_state_dict(fitting(state, model))


def layers_of(model: LanguageModel) -> list[State]:
    """The parameters of each layer by their names within it, without gradient."""
    return [{name: p.detach() for name, p in block.named_parameters()} for block in model.blocks]


def outside(model: LanguageModel, spaces: Spaces) -> State:
    """What is not in a layer, widened."""
    named = {name: p.detach() for name, p in model.named_parameters() if not name.startswith("blocks.")}
    return {name: widened(name, tensor, spaces) for name, tensor in named.items()}


def deepened(layers: Sequence[State], growth: Growth) -> State:
    """Layers by a map, under their names in the model."""
    state: State = {}
    for slot in range(len(growth.matrix)):
        for name in layers[0]:
            sources = [layer[name] for layer in layers]
            state[f"blocks.{slot}.{name}"] = grown_tensor(growth, slot, name, sources)
    return state


def fitting(state: State, model: LanguageModel) -> dict[str, Tensor]:
    """The same with as many positions as the model has."""
    return state | {"positions.weight": state["positions.weight"][: model.shape.positions]}
