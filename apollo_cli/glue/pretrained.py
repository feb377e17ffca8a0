"""What is fine-tuned: the exported model of a run, or any BERT or GPT-2 in transformers' format."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from apollo_cli import files
from apollo_cli.data import tokenizer as tokenizers
from apollo_cli.errors import CheckpointError, DataError
from apollo_cli.models.hf import Pooler, load_trunk
from apollo_cli.models.model_config import ModelConfig
from apollo_cli.models.transformer import LanguageModel
from apollo_cli.run_directory import RunDirectory
from apollo_cli.tracking.wandb import identify

_PIECE = 1 << 22  # bytes read at once


@dataclass(frozen=True)
class Pretrained:
    """A pretrained model.

    Attributes:
        folder: in transformers' format.
        facts: what results say of it.
        group: of its fine-tuning runs in W&B; the run itself has this name there.
    """

    folder: Path
    facts: dict[str, Any]
    group: str

    @classmethod
    def of_run(cls, run_dir: Path) -> "Pretrained":
        """The model that a run of apollo-train exported.

        Raises:
            CheckpointError: it is no run directory, the run did not finish, or its model is gone.
        """
        directory = RunDirectory(run_dir)
        if not directory.is_claimed:
            raise CheckpointError(f"run={run_dir}: not a run directory (no config.yaml in it)")
        summary = directory.summary()
        if summary.get("status") == "completed" and not directory.model.is_dir():
            raise CheckpointError(f"run={run_dir}: its model is not there ({directory.model}); train it anew")
        if summary.get("status") != "completed":
            command = f"{files.command('apollo-train')} resume={directory}"
            raise CheckpointError(
                f"run={run_dir}: this run did not finish ({summary.get('status')}), so it has no model; go on with "
                f"it first: {command}"
            )
        losses, totals = summary.get("losses", {}), summary.get("totals", {})
        facts = {
            "run_dir": directory.path.resolve().as_posix(),
            "run_id": summary.get("run_id"),
            "name": summary.get("name"),
            "seed": summary.get("seed"),
            "flops": totals.get("flops"),
            "eval/loss": losses.get("eval/loss"),
        }
        group = identify(directory.path.resolve(), str(summary.get("name")), (), "").name
        return cls(directory.model, facts | {"weights": _digest(directory.model)}, group)

    @classmethod
    def of_folder(cls, folder: Path) -> "Pretrained":
        """Any model."""
        return cls(folder, {"model": str(folder.resolve()), "weights": _digest(folder)}, folder.resolve().name)

    def load(self, dropout: float) -> tuple[LanguageModel, Pooler | None]:
        """A fresh copy of its layers with this dropout, and its pooler, if it has one."""
        return load_trunk(self.folder, dropout)

    @cached_property
    def _body(self) -> LanguageModel:
        return self.load(0.0)[0]

    @property
    def model_config(self) -> ModelConfig:
        """Its sizes."""
        return self._body.model_config

    @property
    def num_parameters(self) -> int:
        """Without the new head."""
        return self._body.num_parameters()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer.

        Raises:
            DataError: it has none, or one that is of another model.
        """
        try:
            tokenizer = tokenizers.load_tokenizer(self.model_config.kind, str(self.folder.resolve()))
        except DataError as error:
            what = str(error).partition(": ")[2]
            padding = ". GPT's rows end, and are filled up, with that token" if "<|endoftext|>" in what else ""
            raise DataError(f"{files.shown(self.folder)}: its tokenizer: {what}{padding}") from error
        if tokenizer.get_vocab_size() > self.model_config.vocabulary:
            raise DataError(
                f"{files.shown(self.folder)}: its tokenizer has {tokenizer.get_vocab_size():,} entries, the "
                f"model {self.model_config.vocabulary:,}: they do not belong together"
            )
        return tokenizer


def _digest(folder: Path) -> str:
    """Of the weights.

    Raises:
        CheckpointError: there are none.
    """
    path, digest = folder / "model.safetensors", hashlib.sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: not a BERT or GPT-2 model in transformers' format (config.json and model.safetensors): "
            f"{error.strerror}"
        ) from error
    return digest.hexdigest()[:16]
