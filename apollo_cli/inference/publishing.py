"""`apollo-push`: an exported model on the Hugging Face hub."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from apollo_cli import files
from apollo_cli.data import network
from apollo_cli.errors import CheckpointError, ConfigError, HubError, one_line
from apollo_cli.inference.trained import exported_folder
from apollo_cli.models.hf import load_model_config, weight_files
from apollo_cli.training.model_card import CARD, with_repository

PUBLIC, EMA = "--public", "--ema"
_OF_THE_HUB = ("huggingface_hub", "httpx", "requests")
_BESIDE = (  # the weights
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    CARD,
)


def push(words: Sequence[str]) -> None:
    """Uploads what the words of `apollo-push` name, and prints where it is.

    Raises:
        ConfigError: a word is not understood.
        CheckpointError: there is no such model.
        HubError: the hub cannot be reached, or refuses.
    """
    flags, names = [w for w in words if w.startswith("-")], [w for w in words if not w.startswith("-")]
    if unknown := [flag for flag in flags if flag not in (PUBLIC, EMA)]:
        raise ConfigError(f"{unknown[0]}: no such flag; apollo-push --help shows what may be typed")
    if len(names) != 2:
        raise ConfigError(f"{len(names)} words where two are needed; type apollo-push RUN_DIR REPO")
    folder = exported_folder(Path(names[0]), averaged=EMA in flags)
    print(upload(folder, names[1], private=PUBLIC not in flags))


def upload(folder: Path, repository: str, *, private: bool) -> str:
    """Uploads a folder in transformers' format in one commit; returns the address of the repository.

    Args:
        folder: only the files of a model in it are uploaded.
        repository: NAME/MODEL, or MODEL; made if it does not exist.
        private: of a new repository.

    Raises:
        CheckpointError: it holds no such model, or a link in place of a file.
        HubError: the hub cannot be reached, or refuses.
    """
    load_model_config(folder)  # before anything is uploaded
    contents = {path.name: path.read_bytes() if path.name == CARD else path for path in _model_files(folder)}
    network.go_offline_if_needed()
    from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
    from huggingface_hub.errors import HFValidationError

    if constants.HF_HUB_OFFLINE:
        asked = " and ".join(network.offline_variables())
        raise HubError(f"{repository}: " + (f"{asked} is set: unset it" if asked else "the hub cannot be reached"))
    if get_token() is None:
        raise HubError(f"{repository}: no token for the hub; type hf auth login, or set HF_TOKEN")
    try:
        api = HfApi(library_name="apollo-train")
        made = api.create_repo(repository, private=private, exist_ok=True)
        card = contents.get(CARD)
        if isinstance(card, bytes):
            contents[CARD] = with_repository(card.decode(errors="replace"), made.repo_id).encode()
        additions = [CommitOperationAdd(name, content) for name, content in contents.items()]
        api.create_commit(made.repo_id, additions, commit_message="Upload the model with apollo-push")
    except HFValidationError as error:
        raise HubError(f"{repository}: no name of a repository; type NAME/MODEL ({_reason(error)})") from error
    except Exception as error:  # of the library that it sends by, which differs between its versions
        if not isinstance(error, OSError) and not type(error).__module__.startswith(_OF_THE_HUB):
            raise
        raise HubError(f"{repository}: not uploaded: {_reason(error)}") from error
    return str(made)


def _model_files(folder: Path) -> Iterator[Path]:
    """The model's own files; a CheckpointError for a link, which could lead to a secret of whoever uploads."""
    for path in (*weight_files(folder), *(folder / name for name in _BESIDE)):
        if path.is_symlink():
            raise CheckpointError(f"{files.shown(path)} is a symbolic link; replace it by its file")
        if path.is_file():
            yield path


def _reason(error: Exception) -> str:
    """The first lines of what the library says, as one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return one_line(" ".join(lines[:2]) or type(error).__name__)
