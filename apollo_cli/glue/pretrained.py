"""The model to fine-tune: exported by a run, or a BERT, GPT-2 or LLaMA in transformers' format."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from apollo_cli.cli.exit_codes import resume_hint
from apollo_cli.data.tokenizer import load_tokenizer_of_model
from apollo_cli.errors import CheckpointError
from apollo_cli.models.hf import load_trunk, weight_files
from apollo_cli.models.model_config import ModelConfig
from apollo_cli.models.transformer import LanguageModel
from apollo_cli.run_directory import RunDirectory
from apollo_cli.tracking.wandb import identify


@dataclass(frozen=True)
class Pretrained:
    """A pretrained model."""

    folder: Path  # in transformers' format
    facts: dict[str, Any]  # its origin, as results record it
    group: str  # W&B group of its fine-tuning runs, which is also the name of its own run there

    @classmethod
    def of_run(cls, run_dir: Path) -> "Pretrained":
        """The model that a run exported; a CheckpointError if it is no run, not finished, or without a model."""
        directory = RunDirectory(run_dir)
        if not directory.is_claimed:
            raise directory.not_a_run()
        summary = directory.summary()
        if summary.get("status") != "completed":
            raise CheckpointError(
                f"run={run_dir}: this run did not finish ({summary.get('status')}), so it has no model"
                f"{resume_hint(run_dir, 'apollo-train')}"
            )
        if not directory.model.is_dir():
            raise CheckpointError(f"run={run_dir}: its model is missing ({directory.model}); train it again")
        parts = (summary.get(key) for key in ("totals", "losses"))
        totals, losses = (part if isinstance(part, dict) else {} for part in parts)
        facts = {
            "run_dir": directory.path.resolve().as_posix(),
            "run_id": summary.get("run_id"),
            "name": summary.get("name"),
            "seed": summary.get("seed"),
            "flops": totals.get("flops"),
            "eval/loss": losses.get("eval/loss"),
            "weights": _weights_digest(directory.model),
        }
        group = identify(directory.path.resolve(), str(summary.get("name")), (), "").name
        return cls(directory.model, facts, group)

    @classmethod
    def of_folder(cls, folder: Path) -> "Pretrained":
        """A model in transformers' format; a CheckpointError if the folder has no model.safetensors."""
        facts = {"model": str(folder.resolve()), "weights": _weights_digest(folder)}
        return cls(folder, facts, folder.resolve().name)

    @cached_property
    def _body(self) -> LanguageModel:
        return load_trunk(self.folder, 0.0)[0]

    @property
    def model_config(self) -> ModelConfig:
        return self._body.model_config

    @property
    def num_parameters(self) -> int:
        """Parameters without the new head."""
        return self._body.num_parameters()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer_of_model(self.model_config, self.folder)


def _weights_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    try:
        for path in weight_files(folder):
            with path.open("rb") as file:
                hashlib.file_digest(file, lambda: digest)  # adds to it
        return digest.hexdigest()[:16]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{folder}: not a BERT, GPT-2 or LLaMA model in transformers' format (config.json and "
            f"model.safetensors): {getattr(error, 'strerror', None) or error}"
        ) from error
