"""`init_from`: a trained model that a run begins with, as large as its own or smaller."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from tokenizers import Tokenizer

from apollo_cli import files
from apollo_cli.config.config import Config, parse
from apollo_cli.config.data import is_streamed
from apollo_cli.config.hydra_syntax import pasted
from apollo_cli.data.corpus import Corpus
from apollo_cli.data.recipe import BYTES
from apollo_cli.errors import CheckpointError, ConfigError
from apollo_cli.growth.width import width_problems
from apollo_cli.models.build import build
from apollo_cli.models.hf import load_model, load_model_config
from apollo_cli.models.model_config import ModelConfig
from apollo_cli.models.transformer import LanguageModel
from apollo_cli.run_directory import RunDirectory
from apollo_cli.training.checkpoint import checkpoint_names, load_checkpoint, load_counters
from apollo_cli.training.init_from.weights import sizes
from apollo_cli.training.state import TrainerState


@dataclass(frozen=True)
class SourceModel:
    """A trained model and the cost of its training."""

    folder: Path  # in transformers' format; of a run, where its final model is or will be
    model_config: ModelConfig  # its sizes
    # of its training and its optimizer, with those of its own source; None if not known
    flops: int | None
    seconds: float  # of its training; 0 if not known
    run: "SourceRun | None" = None  # the run that trained it; None if not known

    def __str__(self) -> str:
        run = self.run
        return f"{run.directory} {run.typed}" if run and run.typed else files.shown(self.folder)

    def load(self) -> LanguageModel:
        """The model on the CPU; a CheckpointError if it is damaged, or another one than its config says."""
        if self.run and self.run.typed:
            return checkpoint_model(self.run.config, self.run.directory, self.run.typed)
        return load_model(self.folder)


@dataclass(frozen=True)
class SourceRun:
    """The run that trained a source."""

    directory: RunDirectory
    config: Config
    typed: str | None  # the name of the checkpoint that is the source; None for the final model
    checkpoint: str | None  # the name of the checkpoint of that step; None if none was looked for
    state: TrainerState  # the counters in it


def find_source(config: Config) -> SourceModel | None:
    """The source of a config: a run directory, or a folder in transformers' format; None without one.

    A CheckpointError if it does not exist, is not complete, or is no such model; a ConfigError if it cannot grow to
    the model of the config.
    """
    args = config.init_from
    if args.path is None:
        return None
    path = Path(os.path.expanduser(args.path))  # noqa: PTH111 - of an unknown user it stays as it is
    directory, shown = RunDirectory(path), files.shown(path)
    if path.is_file():
        raise CheckpointError(f"init_from.path={path}: it is a file; type the folder of a run or of a model")
    if not path.is_dir():
        raise CheckpointError(
            f"init_from.path={path}: no such folder; the run needs it until its first checkpoint: restore it, or "
            "correct the path"
        )
    if directory.is_claimed:
        found = _run_source(directory, config)
    elif RunDirectory(path.parent.parent).is_claimed and path.parent.name == directory.checkpoints.name:
        raise ConfigError(
            f"init_from.path={shown}: it is a checkpoint; type "
            f"{pasted('init_from.path', files.shown(path.parent.parent))} init_from.checkpoint={path.name}"
        )
    elif RunDirectory(path.parent).is_claimed and path.name == directory.checkpoints.name:
        raise ConfigError(
            f"init_from.path={shown}: it holds checkpoints; type "
            f"{pasted('init_from.path', files.shown(path.parent))}"
        )
    elif directory.newest_run:
        raise directory.not_a_run()
    else:
        found = SourceModel(path, load_model_config(path), None, 0.0)
    if args.flops is not None:
        found = replace(found, flops=args.flops)
    if wrong := [*_mismatches(found, config), *_state_problems(found, config)]:
        raise ConfigError(*(f"init_from.path={shown}: {problem}" for problem in wrong))
    return found


def first_sample(config: Config) -> int:
    """Rows of the corpus before those of a new run, which the run that it begins from has read."""
    source = find_source(config) if config.init_from.data else None
    run = source and source.run
    return run.state.first_sample + run.state.step * run.config.batch.size if run else 0


def _run_source(directory: RunDirectory, config: Config) -> SourceModel:
    """A run or one of its checkpoints; a run that is only planned is enough for another plan.

    A CheckpointError if it is not complete, or has no such checkpoint.
    """
    args, own = config.init_from, parse(directory.config())
    plan, summary = directory.plan(), directory.summary()
    before = plan.get("source_flops", 0)  # of its own source
    is_complete, name = summary.get("status") == "completed", args.checkpoint
    if name is None and is_complete and (args.optimizer or args.data):
        name = f"step_{int(summary['totals']['steps']):08d}"
    state = TrainerState()
    if name is not None:
        layers, width, state = load_counters(directory.checkpoints, name)
    if args.checkpoint is not None:
        sizes_then = replace(own.model_config.narrowed(width), layers=layers)
        seconds = state.train_seconds + float(plan.get("source_seconds", 0))
        flops = state.flops + state.optimizer_flops
    elif is_complete:
        totals = summary["totals"]
        before = totals.get("source_flops", 0)
        sizes_then, flops = load_model_config(directory.model), _flops(totals)
        seconds = float(totals["train_seconds"]) + float(totals.get("source_seconds", 0))
    elif config.run.plan and plan:
        sizes_then, flops, seconds = own.model_config, _flops(plan), 0.0
    else:
        raise CheckpointError(
            f"init_from.path={files.shown(directory.path)}: this run is not complete; finish it first, or type "
            f"init_from.checkpoint= and one of {', '.join(checkpoint_names(directory.checkpoints)) or 'none yet'}"
        )
    run = SourceRun(directory, own, args.checkpoint, name, state)
    return SourceModel(directory.model, sizes_then, None if before is None else flops + int(before), seconds, run)


def _flops(counted: dict[str, Any]) -> int:
    """FLOPs of a run's model and optimizer, of the totals of its summary or of its plan."""
    return int(counted["flops"]) + int(counted.get("optimizer_flops", 0))


def checkpoint_model(config: Config, directory: RunDirectory, name: str) -> LanguageModel:
    """The model of a checkpoint of a run, with as many layers as it stored then.

    A CheckpointError if there is none of this name, it is damaged, of another model than the config's, or its new
    layers run through gates.
    """
    checkpoint = load_checkpoint(directory.checkpoints, name)
    if checkpoint.state.gated:
        raise CheckpointError(f"{directory}: {name}: {_gates_were_opening(config)}")
    model = build(config.model_config.narrowed(checkpoint.width), checkpoint.layers)
    try:
        model.load_state_dict({key: checkpoint.tensors[key] for key in model.state_dict()})
    except (RuntimeError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"{directory}: {name} is of another model than config.yaml says") from error
    return model


def _gates_were_opening(config: Config) -> str:
    return (
        f"gates of new layers were still opening (expander={config.expander.kind}), and without gates the weights "
        "are another model; take a checkpoint of before that growth, or a later one"
    )


def _state_problems(source: SourceModel, config: Config) -> list[str]:
    """Why weights, the optimizer's state or the position in the corpus cannot come from that checkpoint."""
    args, run, found = config.init_from, source.run, []
    if run is None:
        return [
            f"it is no run directory, so it has nothing for init_from.{key}; leave init_from.{key} out"
            for key in ("checkpoint", "optimizer", "data")
            if getattr(args, key)
        ]
    if run.state.gated:
        return [f"{run.checkpoint}: {_gates_were_opening(run.config)}"]
    if args.optimizer:
        found = [
            f"init_from.optimizer=true: {problem}" for problem in _optimizer_problems(source, run.config, config)
        ]
    if args.data and is_streamed(config.data):
        found.append(
            "init_from.data=true: of a stream so many rows are packed as a run needs, so another run does not go "
            "on with the next one; leave it out"
        )
    if args.data and run.config.run.seed != config.run.seed:
        found.append(
            f"init_from.data=true: the order of the rows is that of its seed; type seed={run.config.run.seed}"
        )
    return found


def _optimizer_problems(source: SourceModel, before: Config, config: Config) -> list[str]:
    """Why its parameters do not map one to one, or by the growth map, to those of the model that begins."""
    target, found = config.model_config.narrowed(config.schedule.shares[0]), []
    if before.optim.kind != config.optim.kind:
        option = {"adamw": "adamw_wsd"}.get(before.optim.kind, before.optim.kind)  # adamw has a cosine
        found.append(f"it has the state of {before.optim.kind}; type optim={option}")
    if (before.optim.ema is None) != (config.optim.ema is None):
        found.append(f"its optim.ema is {before.optim.ema}; both have averages of the weights, or none has")
    if before.model.complete_p != config.model.complete_p:
        base = {key: getattr(before.model, key) for key in ("base_hidden", "base_layers", "base_heads")}
        typed = {"parametrization": before.model.parametrization} | (base if before.model.complete_p else {})
        found.append(f"type {' '.join(f'model.{key}={value}' for key, value in typed.items())}, as it has")
    if sizes(source.model_config) != sizes(target):
        found.append("the width grows, and moments have no rule for that; type init_from.optimizer=false")
    if source.model_config.positions != target.positions:
        found.append(f"its rows have {source.model_config.positions} tokens; type data.seq_len as it is there")
    if source.model_config.layers != config.schedule.layers[0] and config.expander.moments == "reset":
        found.append("expander.moments=reset drops it; type expander.moments=map, keep or new")
    return found


def _mismatches(begun_from: SourceModel, config: Config) -> list[str]:
    """What of a source does not fit the model of the config, with what to type."""
    source = begun_from.model_config
    share, layers = config.schedule.shares[0], config.schedule.layers[0]
    target = config.model_config.narrowed(share)
    if source.kind != target.kind:
        return [f"it is a {source.kind} and model={target.kind}; take a source of the same kind"]
    if source.norm != target.norm:
        return [f"its model.norm is {source.norm}; type model.norm={source.norm}"]
    if source.tied != target.tied:
        return [f"its model.tied is {str(source.tied).lower()}; type model.tied={str(source.tied).lower()}"]
    narrow = f" (in the first stage, of schedule.widths={share:g})" if share != 1 else ""
    found = [
        f"{problem}{narrow}"
        for problem in width_problems(config.expander.build().width_rule, sizes(source), sizes(target))
    ]
    if source.vocabulary != target.vocabulary:
        found.append(
            f"it has {source.vocabulary} tokens and data.vocab_size is {target.vocabulary}; type "
            f"{_its_tokenizer(begun_from)}"
        )
    if source.positions < target.positions:
        found.append(f"its rows have at most {source.positions} tokens; type data.seq_len={source.positions}")
    grown = ((source.layers, *config.schedule.layers), (0.0, *config.schedule.ends))
    found += config.expander.build().stage_problems(*grown)
    if not source.layers:
        found.append("it has no layers, so there is nothing to copy; take another one")
    if source.layers > layers:
        found.append(
            f"it has {source.layers} layers and schedule.layers begins with {layers}: nothing shrinks; type "
            + (
                f"schedule=scratch or 'schedule.layers=[{source.layers}]' 'schedule.ends=[1]'"
                if source.layers == target.layers
                else f"model.layers={source.layers} or more"
                if source.layers > target.layers
                else f"{source.layers} in place of {layers}"
            )
        )
    return found


def _its_tokenizer(source: SourceModel) -> str:
    """The overrides that take the tokenizer of a source."""
    if source.run and source.run.config.data.tokenizer == BYTES:
        return f"data.tokenizer={BYTES}"
    folder = pasted("data.tokenizer", files.shown(source.folder))
    return f"{folder} data.vocab_size={source.model_config.vocabulary}"


def check_corpus(source: SourceModel, corpus: Corpus, config: Config) -> None:
    """Raises a CheckpointError if tokens, or rows to go on in, differ from the source's or are unknown."""
    file, run = source.folder / "tokenizer.json", source.run
    is_its_corpus = run is not None and run.checkpoint is not None and run.state.data == corpus.content
    if config.init_from.data and not is_its_corpus:
        raise CheckpointError(
            f"init_from.data=true: {files.shown(source.folder.parent)} was trained on other rows than these; type "
            "init_from.data=false, or data as it is there"
        )
    if file.is_file() and Tokenizer.from_file(str(file)).get_vocab() != corpus.tokenizer.get_vocab():
        raise CheckpointError(
            f"init_from.path: {files.shown(file)} has other tokens than the corpus; type "
            f"data.tokenizer={files.shown(file)}"
        )
    if run is not None and not file.is_file() and not is_its_corpus:
        raise CheckpointError(
            f"init_from.path={files.shown(source.folder.parent)}: this run had another corpus and is not complete, "
            "so its tokenizer is not known; finish it first, or type data as it is there"
        )
