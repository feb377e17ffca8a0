"""A model sharded over the devices of a run. Imported where it is needed: the import takes a second."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from apollo_cli.growth.expanders import Growth
from apollo_cli.growth.expansion import State, grow
from apollo_cli.models.build import build_on_meta
from apollo_cli.models.model_config import ModelConfig
from apollo_cli.models.transformer import LanguageModel
from apollo_cli.training.adamw import AdamW
from apollo_cli.training.device import Device
from apollo_cli.training.distributed.ddp import ParallelStrategy
from apollo_cli.training.distributed.sharded_files import TensorFiles
from apollo_cli.training.init_from.weights import InitFrom, enlarged


class FullyShardedDataParallel(ParallelStrategy):
    """Some rows of every weight, gradient and moment on every device; a layer is gathered only while it runs.

    torch's FSDP2, layer by layer (Zhao 2023, arXiv 2304.11277); a layer that runs several times in a pass is
    gathered each time.
    """

    in_shards = True

    def __init__(self, model_config: ModelConfig, layers: int, device: Device) -> None:
        self.model_config, self.device = model_config, device
        self.model = self._empty(layers)

    def load_from_rank_zero(self, whole: LanguageModel | None) -> None:
        """Shards the weights of a model that rank 0 has on its CPU."""
        state = whole.state_dict() if whole else {}
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        set_model_state_dict(self.language_model(), state, options=options)

    def _empty(self, layers: int) -> LanguageModel:
        """A sharded model without weights."""
        model = build_on_meta(self.model_config, layers)
        # bf16 products need a layer's weights in no more; CUDA's autocast runs norms in fp32, a CPU's does not
        halved = self.device.bf16 and self.device.device.type == "cuda"
        precision = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if halved else None, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        mesh = init_device_mesh(self.device.device.type, (self.device.processes.world_size,))
        self.device.compile_blocks(model.blocks)
        for block in model.blocks:
            fully_shard(block, mesh=mesh, mp_policy=precision, reshard_after_forward=True)
        fully_shard(model, mesh=mesh, reshard_after_forward=True)  # embeddings, head and norms, in fp32
        register_fsdp_forward_method(model, "loss")
        return model.to_empty(device=self.device.device)

    def no_sync(self, last: bool) -> AbstractContextManager[None]:
        """All but the last pass add up whole gradients on each device."""
        self.language_model().set_requires_gradient_sync(last)  # type: ignore[operator]  # a method that FSDP adds
        return nullcontext()

    @torch.no_grad()
    def grow(self, optimizer: AdamW, growth: Growth, moments: str, drawn: Mapping[int, State]) -> None:
        """Expands the layers shard by shard; FSDP does not take new layers, so the model is a new one."""
        old, self.model = self.model, self._empty(len(growth.matrix))
        drawn = {slot: self._sharded(layer, self.model.blocks[slot]) for slot, layer in drawn.items()}
        grow(old.blocks, self.model.blocks, optimizer, growth, moments, drawn)
        others = {name: p for name, p in old.named_parameters() if not name.startswith("blocks.")}
        new = {p: self.language_model().get_parameter(name) for name, p in others.items()}
        for parameter, copy in new.items():
            copy.copy_(parameter)
            if parameter in optimizer.state:
                optimizer.state[copy] = optimizer.state.pop(parameter)
            if parameter in optimizer.averages:
                optimizer.averages[copy] = optimizer.averages.pop(parameter)
        for group in optimizer.param_groups:
            group["params"] = [new.get(p, p) for p in group["params"]]

    def _sharded(self, layer: State, like: nn.Module) -> State:
        """This process' rows of the parameters of a layer, which all processes have whole and alike."""
        found: State = {}
        for name, parameter in like.named_parameters():
            assert isinstance(parameter, DTensor)
            whole = layer[name].to(self.device.device)
            found[name] = distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
        return found

    def enlarge(self, model_config: ModelConfig, layers: int, init_from: InitFrom) -> None:
        """Rank 0 enlarges the whole model on its CPU, then all take their shards of it."""
        narrow = self.gather_model()
        self.model_config = model_config
        self.model = self._empty(layers)
        is_main = self.device.processes.is_main
        self.load_from_rank_zero(enlarged(narrow, model_config, layers, init_from) if is_main else None)

    def grad_norm(self) -> Tensor:
        norm = super().grad_norm()
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def local(self, tensor: Tensor) -> Tensor:
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor

    def part_of(self, tensors: Mapping[str, Tensor], name: str, tensor: Tensor) -> Tensor:
        """Its rows, of a checkpoint that is whole or in any number of shards."""
        assert isinstance(tensors, TensorFiles)
        if tensors.shape(name) != tuple(tensor.shape):
            raise ValueError(f"the checkpoint has {name} of shape {tensors.shape(name)}")
        share = -(-len(tensor) // self.device.processes.world_size) if tensor.ndim else 1
        first = min(len(tensor), self.device.processes.rank * share) if tensor.ndim else 0
        return tensors.rows(name, first, first + share)

    def gather_model(self) -> LanguageModel:
        """The whole model on the CPU of rank 0; on the others, without weights."""
        weights = {}
        for name, t in self.model.state_dict().items():
            tensor = t.full_tensor().cpu()
            weights[name] = tensor if self.device.processes.is_main else torch.empty_like(tensor, device="meta")
        model = build_on_meta(self.model_config, len(self.model.blocks))
        model.load_state_dict(weights, assign=True)
        return model
