"""`init_from`: a smaller trained model that a run begins from."""

import os
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from apollo_cli import files
from apollo_cli.config.config import Config, parse
from apollo_cli.errors import CheckpointError, ConfigError
from apollo_cli.growth.width import width_problems
from apollo_cli.models.hf import load_model_config
from apollo_cli.models.model_config import ModelConfig
from apollo_cli.run_directory import RunDirectory
from apollo_cli.training.init_from.weights import sizes


@dataclass(frozen=True)
class SourceModel:
    """A trained model and the cost of its training.

    Attributes:
        folder: in transformers' format.
        model_config: its sizes.
        flops: of its training, with that of its own source; None if not known.
        seconds: of its training; 0 if not known.
    """

    folder: Path
    model_config: ModelConfig
    flops: int | None
    seconds: float


def find_source(config: Config) -> SourceModel | None:
    """The source of a config: a run directory, or a folder in transformers' format; None without one.

    Raises:
        CheckpointError: it does not exist, is not complete, or is no such model.
        ConfigError: it cannot grow to the model of the config.
    """
    if config.init_from.path is None:
        return None
    path = Path(os.path.expanduser(config.init_from.path))  # noqa: PTH111 - of an unknown user it stays as it is
    directory = RunDirectory(path)
    if not path.is_dir():
        raise CheckpointError(
            f"init_from.path={path}: no such folder; the run needs it until its end: restore it, or correct the "
            "path"
        )
    if directory.is_claimed:
        found = _run_source(directory, planned=config.run.plan)
    else:
        found = SourceModel(path, load_model_config(path), None, 0.0)
    if config.init_from.flops is not None:
        found = SourceModel(found.folder, found.model_config, config.init_from.flops, found.seconds)
    if wrong := _mismatches(found.model_config, config):
        raise ConfigError([f"init_from.path={files.shown(path)}: {problem}" for problem in wrong])
    return found


def _run_source(directory: RunDirectory, *, planned: bool) -> SourceModel:
    """A run; one that is only planned is enough for another plan.

    Raises:
        CheckpointError: it is not complete.
    """
    if directory.summary().get("status") == "completed":
        totals = directory.summary().get("totals", {})
        before = totals.get("source_flops", 0)  # of its own source
        flops = None if before is None else int(totals["flops"]) + int(before)
        seconds = float(totals["train_seconds"]) + float(totals.get("source_seconds", 0))
        return SourceModel(directory.model, load_model_config(directory.model), flops, seconds)
    plan = directory.plan()
    if not planned or not plan:
        raise CheckpointError(
            f"init_from.path={files.shown(directory.path)}: this run is not complete; finish it first"
        )
    before = plan.get("source_flops", 0)
    flops = None if before is None else int(plan["flops"]) + int(before)
    return SourceModel(directory.model, parse(directory.config()).model_config, flops, 0.0)


def _mismatches(source: ModelConfig, config: Config) -> list[str]:
    share, layers = config.schedule.shares[0], config.schedule.layers[0]
    target = config.model_config.narrowed(share)
    if source.kind != target.kind:
        return [f"it is a {source.kind} and model={target.kind}; take a source of the same kind"]
    if source.tied != target.tied:
        return [f"its model.tied is {str(source.tied).lower()}; type model.tied={str(source.tied).lower()}"]
    narrow = f" (in the first stage, of schedule.widths={share:g})" if share != 1 else ""
    found = [
        f"{problem}{narrow}"
        for problem in width_problems(config.expander.build().width_rule, sizes(source), sizes(target))
    ]
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


def check_tokenizer(source: SourceModel, tokenizer: Tokenizer) -> None:
    """Refuses a source whose tokenizer, if it has one, differs from that of the corpus.

    Raises:
        CheckpointError: the tokens differ.
    """
    file = source.folder / "tokenizer.json"
    if file.is_file() and Tokenizer.from_file(str(file)).get_vocab() != tokenizer.get_vocab():
        raise CheckpointError(
            f"init_from.path: {files.shown(file)} has other tokens than the corpus; type "
            f"data.tokenizer={files.shown(file)}"
        )
