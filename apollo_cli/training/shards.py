"""A model in shards, one on each device, and how shards lie on disk. Imported where needed: it takes a second.

On disk they are safetensors that all processes write together, and any number of them reads again.
torch.distributed.checkpoint does both; its own format has a pickle in it, this one has none.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from apollo_cli.growth.expanders import grow
from apollo_cli.growth.growths import Growth
from apollo_cli.models.build import build
from apollo_cli.models.shape import Shape
from apollo_cli.models.transformer import LanguageModel
from apollo_cli.training.adamw import AdamW
from apollo_cli.training.checkpoint import Checkpoint
from apollo_cli.training.device import Device
from apollo_cli.training.filling import Filling, enlarged
from apollo_cli.training.placement import Placement


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


class Shards(Placement):
    """A part of every weight, gradient and moment on every device; a layer is whole only while it runs.

    torch's FSDP2, layer by layer (Zhao 2023, arXiv 2304.11277); a layer that runs several times in a pass is
    gathered each time.

    Args:
        shape: of the model.
        layers: that it stores.
        device: of this process.
    """

    in_shards = True

    def __init__(self, shape: Shape, layers: int, device: Device) -> None:
        self.shape, self.device = shape, device
        self.model = self._empty(layers)  # which grows as a whole: there is no layer to make alone

    def take(self, whole: LanguageModel | None) -> None:
        """The weights of a model that the first process has on its CPU."""
        state = whole.state_dict() if whole else {}
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        set_model_state_dict(self.model, state, options=options)

    def _empty(self, layers: int) -> LanguageModel:
        """A model in shards, without weights."""
        with torch.device("meta"):
            model = build(self.shape, layers)
        # products in bf16 need no more of a layer; CUDA's autocast gives norms what they need, a CPU's does not
        halved = self.device.bf16 and self.device.device.type == "cuda"
        precision = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if halved else None, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        mesh = init_device_mesh(self.device.device.type, (self.device.ranks.size,))
        self.device.compiles(model.blocks)
        for block in model.blocks:
            fully_shard(block, mesh=mesh, mp_policy=precision, reshard_after_forward=True)
        fully_shard(model, mesh=mesh, reshard_after_forward=True)  # embeddings, head and norms, in fp32
        register_fsdp_forward_method(model, "loss")
        return model.to_empty(device=self.device.device)

    @contextmanager
    def summing(self, last: bool) -> Iterator[None]:
        """Else the gradients, whole ones, stay here and add up."""
        self.model.set_requires_gradient_sync(last)  # type: ignore[operator]  # FSDP gives a model such methods
        yield

    @torch.no_grad()
    def grow(self, optimizer: AdamW, growth: Growth, moments: str) -> None:
        """Expands the layers shard by shard: FSDP knows its layers from the start, so the model is a new one."""
        old, self.model = self.model, self._empty(len(growth.matrix))
        grow(old.blocks, self.model.blocks, optimizer, growth, moments)
        others = {name: p for name, p in old.named_parameters() if not name.startswith("blocks.")}
        taking = {p: self.model.get_parameter(name) for name, p in others.items()}
        for parameter, taker in taking.items():
            taker.copy_(parameter)
            if parameter in optimizer.state:
                optimizer.state[taker] = optimizer.state.pop(parameter)
        for group in optimizer.param_groups:
            group["params"] = [taking.get(p, p) for p in group["params"]]

    def enlarge(self, shape: Shape, layers: int, filling: Filling) -> None:
        """The first process enlarges the whole model on its CPU and deals it out."""
        narrow = self.whole()
        self.shape = shape
        self.model = self._empty(layers)
        is_first = self.device.ranks.is_first
        self.take(enlarged(narrow, shape, layers, filling) if is_first else None)

    def grad_norm(self) -> Tensor:
        """Of the gradients of all processes together."""
        return super().grad_norm().full_tensor()  # type: ignore[attr-defined]  # a DTensor

    def weights(self) -> dict[str, Tensor]:
        """In shards, each process its own."""
        return {name: t.detach() for name, t in self.model.state_dict().items()}

    def local(self, tensor: Tensor) -> Tensor:
        """The shard of this process."""
        return tensor.to_local()  # type: ignore[attr-defined]  # a DTensor

    def restore(self, checkpoint: Checkpoint, optimizer: AdamW) -> None:
        """Each process reads its shards, whoever wrote the checkpoint, in whatever shards."""
        there, tensors = sizes(checkpoint.folder), self.weights()
        for name, parameter in self.model.named_parameters():
            if f"{name}/step" not in there:
                continue
            state = {"step": torch.zeros((), device=parameter.device)}
            state |= {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = state
            tensors |= {f"{name}/{key}": value for key, value in state.items()}
        if there != {name: tuple(t.shape) for name, t in tensors.items()}:
            raise ValueError("it has other tensors, or of other sizes")
        read(tensors, checkpoint.folder, alone=False)

    def whole(self) -> LanguageModel:
        """The model on the CPU of the first process; what the others get is empty."""
        weights = {}
        for name, t in self.model.state_dict().items():
            tensor = t.full_tensor().cpu()
            weights[name] = tensor if self.device.ranks.is_first else torch.empty_like(tensor, device="meta")
        with torch.device("meta"):
            model = build(self.shape, len(self.model.blocks))
        model.load_state_dict(weights, assign=True)
        return model
