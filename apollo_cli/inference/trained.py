"""A trained model and its tokenizer: of a run, of its checkpoint, or of a folder in transformers' format."""

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from apollo_cli import files
from apollo_cli.cli.exit_codes import resume_hint
from apollo_cli.config.config import Config, parse
from apollo_cli.config.data import is_streamed
from apollo_cli.data import cache_folder
from apollo_cli.data.tokenizer import load_tokenizer_of_model
from apollo_cli.errors import CheckpointError, ConfigError
from apollo_cli.models.hf import load_model
from apollo_cli.models.parametrization import in_parametrization
from apollo_cli.models.transformer import LanguageModel
from apollo_cli.run_directory import RunDirectory
from apollo_cli.tracking.console import Console
from apollo_cli.training.checkpoint import load_counters
from apollo_cli.training.corpora import prepare_corpus
from apollo_cli.training.init_from.source import checkpoint_model

_CHECKPOINT = "; where that is possible, name one of its checkpoints: checkpoint=step_..."


@dataclass(frozen=True)
class TrainedModel:
    """A trained model."""

    model: LanguageModel  # its stored layers, ready to be evaluated
    tokenizer: Tokenizer  # of its tokens
    tokenizer_folder: Path  # where that is stored
    title: str  # where it comes from, for messages
    config: Config | None  # of its run; None for a folder in transformers' format
    fingerprint: str | None = None  # of its run's corpus; None if the run has not recorded it

    @property
    def kind(self) -> str:
        return self.model.model_config.kind

    def check_depth(self, depth: int | None) -> None:
        """Raises a ConfigError if a depth is typed and the model stores no layers."""
        if depth and not self.model.blocks:
            raise ConfigError(f"depth={depth}: {self.title} stores no layer; leave it out")


def load_trained(folder: Path, console: Console, checkpoint: str | None = None) -> TrainedModel:
    """The exported model of a run directory or of a folder in transformers' format, or a checkpoint of a run.

    The tokenizer of a run that exported none is made again, which `console` shows.

    Raises:
        CheckpointError: there is no such model.
        DataError: its tokenizer cannot be read.
    """
    directory = RunDirectory(folder)
    if not directory.is_claimed:
        if checkpoint:
            raise CheckpointError(f"checkpoint={checkpoint}: {files.shown(folder)} is no run directory")
        if directory.newest_run:
            raise directory.not_a_run()
        model = load_model(folder)
        return TrainedModel(
            model.eval(), load_tokenizer_of_model(model.model_config, folder), folder, files.shown(folder), None
        )
    config = parse(directory.config())
    if checkpoint:
        model = checkpoint_model(config, directory, checkpoint)
    else:
        model = in_parametrization(
            load_model(exported_folder(folder, or_else=_CHECKPOINT)), config.model_config.complete_p
        )
    if directory.model.is_dir():
        place, tokenizer = directory.model, load_tokenizer_of_model(model.model_config, directory.model)
    else:  # packed with the corpus
        corpus = prepare_corpus(config, cache_of(config), console, config.budget.steps or 1)
        if (
            checkpoint
            and not is_streamed(config.data)
            and load_counters(directory.checkpoints, checkpoint)[2].data != corpus.content
        ):
            raise CheckpointError(
                f"{directory}: its corpus is not there as it was, so its tokenizer is not known; restore it"
            )
        place, tokenizer = corpus.folder, corpus.tokenizer
    title = f"{directory}{f' {checkpoint}' if checkpoint else ''}"
    facts = directory.summary().get("data")
    fingerprint = facts.get("fingerprint") if isinstance(facts, dict) else None
    return TrainedModel(model.eval(), tokenizer, place, title, config, fingerprint)


def exported_folder(folder: Path, *, averaged: bool = False, or_else: str = "") -> Path:
    """The folder in transformers' format that a run exported, or `folder` itself if it is no run directory.

    `averaged` is for that of the average of the weights. A CheckpointError if the run has exported none; `or_else`
    ends its message.
    """
    directory = RunDirectory(folder)
    found = directory.averaged_model if averaged else directory.model
    if not directory.is_claimed and not averaged:
        return folder
    if found.is_dir():
        return found
    if averaged:
        raise CheckpointError(f"{directory}: no {found.name} in it; a run with optim.ema exports one")
    raise CheckpointError(
        f"{directory}: this run has exported no model{or_else}{resume_hint(folder, 'apollo-train')}"
    )


def cache_of(config: Config) -> Path:
    """The cache folder of a run's config; the user's own one where that names a folder that is no cache of ours.

    A run directory may be another person's, and so may be the folder that it names: nothing is made there.
    """
    named = config.data.cache_dir
    return cache_folder.path(None if named and cache_folder.cache_folder_problems(named) else named)
