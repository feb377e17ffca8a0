"""Tensors in shards on disk: safetensors that all processes write together, and any number of them reads again.

torch.distributed.checkpoint does both; its own format contains a pickle, this one has none. Imported where it is
needed, for that takes a second.
"""

from collections.abc import Mapping
from pathlib import Path

import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException


def write(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Writes what each process has of these tensors; all of them ask for it.

    Raises:
        OSError: one of them could not.
    """
    try:
        dcp.save(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except CheckpointException as error:
        raise _first_of(error) from error


def sizes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The tensors there, in shards or whole, and their sizes."""
    metadata = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {name: tuple(of.size) for name, of in metadata.items()}  # type: ignore[union-attr]


def read(tensors: Mapping[str, Tensor], folder: Path, *, alone: bool) -> None:
    """Fills these tensors, or this process's shards of them.

    Args:
        tensors: on whatever device, of the sizes that are there.
        folder: has them in shards or whole.
        alone: no other process reads with this one.

    Raises:
        OSError: they cannot be read.
        ValueError: one is missing, or of another size.
    """
    try:
        dcp.load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=alone)
    except CheckpointException as error:
        raise _first_of(error) from error


def _first_of(error: CheckpointException) -> Exception:
    """What went wrong in one of the processes; torch's class is no `Exception`."""
    cause = next(iter(error.failures.values()))[0]
    return cause if isinstance(cause, OSError | ValueError) else RuntimeError(str(cause))
