"""A model in shards, one on each device, and how shards lie on disk. Imported where needed: it takes a second.

On disk they are safetensors that all processes write together, and any number of them reads again.
torch.distributed.checkpoint does both; its own format has a pickle in it, this one has none.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from apollo_cli.growth.expanders import Growth
from apollo_cli.growth.expansion import grow
from apollo_cli.models.build import build
from apollo_cli.models.model_config import ModelConfig
from apollo_cli.models.transformer import LanguageModel
from apollo_cli.training.adamw import AdamW
from apollo_cli.training.device import Device
from apollo_cli.training.distributed.ddp import ParallelStrategy
from apollo_cli.training.distributed.sharded_files import read, sizes
from apollo_cli.training.init_from.weights import Filling, enlarged
from apollo_cli.training.state import Checkpoint


class FullyShardedDataParallel(ParallelStrategy):
    """A part of every weight, gradient and moment on every device; a layer is whole only while it runs.

    torch's FSDP2, layer by layer (Zhao 2023, arXiv 2304.11277); a layer that runs several times in a pass is
    gathered each time.

    Args:
        shape: of the model.
        layers: that it stores.
        device: of this process.
    """

    in_shards = True

    def __init__(self, model_config: ModelConfig, layers: int, device: Device) -> None:
        self.model_config, self.device = model_config, device
        self.model = self._empty(layers)  # which grows as a whole: there is no layer to make alone

    def load_from_rank_zero(self, whole: LanguageModel | None) -> None:
        """The weights of a model that the first process has on its CPU."""
        state = whole.state_dict() if whole else {}
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        set_model_state_dict(self.model, state, options=options)

    def _empty(self, layers: int) -> LanguageModel:
        """A model in shards, without weights."""
        with torch.device("meta"):
            model = build(self.model_config, layers)
        # products in bf16 need no more of a layer; CUDA's autocast gives norms what they need, a CPU's does not
        halved = self.device.bf16 and self.device.device.type == "cuda"
        precision = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if halved else None, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        mesh = init_device_mesh(self.device.device.type, (self.device.processes.world_size,))
        self.device.compiles(model.blocks)
        for block in model.blocks:
            fully_shard(block, mesh=mesh, mp_policy=precision, reshard_after_forward=True)
        fully_shard(model, mesh=mesh, reshard_after_forward=True)  # embeddings, head and norms, in fp32
        register_fsdp_forward_method(model, "loss")
        return model.to_empty(device=self.device.device)

    @contextmanager
    def no_sync(self, last: bool) -> Iterator[None]:
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

    def enlarge(self, model_config: ModelConfig, layers: int, filling: Filling) -> None:
        """The first process enlarges the whole model on its CPU and deals it out."""
        narrow = self.whole()
        self.model_config = model_config
        self.model = self._empty(layers)
        is_main = self.device.processes.is_main
        self.load_from_rank_zero(enlarged(narrow, model_config, layers, filling) if is_main else None)

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
            weights[name] = tensor if self.device.processes.is_main else torch.empty_like(tensor, device="meta")
        with torch.device("meta"):
            model = build(self.model_config, len(self.model.blocks))
        model.load_state_dict(weights, assign=True)
        return model
