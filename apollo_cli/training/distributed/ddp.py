"""How a model is distributed over the devices of a run: whole on one, or replicated; `fsdp` shards it."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from apollo_cli.growth.expanders import Growth
from apollo_cli.growth.expansion import State, grow
from apollo_cli.growth.samplers import ForwardPath
from apollo_cli.models.model_config import ModelConfig
from apollo_cli.models.transformer import Batch, LanguageModel
from apollo_cli.training.adamw import AdamW
from apollo_cli.training.init_from.weights import InitFrom, enlarged
from apollo_cli.training.optimizer import TrainableModel, state_by_name

CompileBlocks = Callable[[Iterable[nn.Module]], None]


class ParallelStrategy:
    """The whole model on one device; `compile_blocks` compiles new layers, if the run compiles."""

    in_shards = False  # whether each process has only a part of the model

    def __init__(self, model: TrainableModel, compile_blocks: CompileBlocks) -> None:
        self.model, self.compile_blocks = model, compile_blocks
        compile_blocks(model.blocks)

    def loss(self, batch: Batch, path: ForwardPath) -> Tensor:
        """The loss on the rows of this process."""
        return self.model.loss(batch, *path)

    def no_sync(self, last: bool) -> AbstractContextManager[None]:
        """Around a forward and backward pass; only the last one of a step averages gradients over processes."""
        return nullcontext()

    def language_model(self) -> LanguageModel:
        """The model; only a language model grows and is exported."""
        assert isinstance(self.model, LanguageModel)
        return self.model

    def grow(self, optimizer: AdamW, growth: Growth, moments: str, drawn: Mapping[int, State]) -> None:
        """Expands the layers, with their optimizer state; `drawn` has the layers that are no copies."""
        model = self.language_model()
        grown = nn.ModuleList(model.new_block() for _ in growth.matrix)
        self.compile_blocks(grown)
        grow(model.blocks, grown, optimizer, growth, moments, drawn)
        model.blocks = grown

    def enlarge(self, model_config: ModelConfig, layers: int, init_from: InitFrom) -> None:
        """Replaces the model by a larger one of these sizes, initialized from it; it needs a new optimizer."""
        self.model = enlarged(self.language_model(), model_config, layers, init_from)
        self.compile_blocks(self.model.blocks)

    def grad_norm(self) -> Tensor:
        """(), the norm of all gradients together, on the device."""
        return get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])

    def tensors(self, optimizer: AdamW) -> dict[str, Tensor]:
        """Weights and optimizer state for a checkpoint: what this process has of them."""
        weights = {name: self.local(t.detach()).cpu() for name, t in self.model.state_dict().items()}
        moments = state_by_name(self.model.named_parameters(), optimizer)
        return weights | {name: self.local(t).contiguous() for name, t in moments.items()}

    def local(self, tensor: Tensor) -> Tensor:
        """What this process has of a weight, a gradient or a moment."""
        return tensor

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], optimizer: AdamW) -> None:
        """Gives weights and optimizer the state of a checkpoint; a ValueError if it is that of another model."""
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                state = optimizer.begin(group, parameter)
                if not tensors.keys().isdisjoint(f"{names[parameter]}/{key}" for key in state):
                    optimizer.state[parameter] = state
        wanted = self.model.state_dict() | state_by_name(self.model.named_parameters(), optimizer)
        if wanted.keys() != tensors.keys():
            raise ValueError(f"the checkpoint has other tensors: {min(wanted.keys() ^ tensors.keys())}")
        for name, tensor in wanted.items():
            own, saved = self.local(tensor.detach()), self.part_of(tensors, name, tensor)
            if (own.shape, own.dtype) != (saved.shape, saved.dtype):
                raise ValueError(f"the checkpoint has {name} as {saved.dtype} of shape {tuple(saved.shape)}")
            own.copy_(saved)

    def part_of(self, tensors: Mapping[str, Tensor], name: str, tensor: Tensor) -> Tensor:
        """What this process has of a tensor of a checkpoint."""
        return tensors[name]

    def gather_model(self) -> LanguageModel:
        """The whole model, to be exported by rank 0."""
        return self.language_model()


class DataParallel(ParallelStrategy):
    """A replica on every device; DDP averages gradients during the backward pass (Li 2020, arXiv 2006.15704).

    Unless every step reaches every parameter, as `trains_all` says, DDP searches for those it does not reach.
    """

    def __init__(self, model: LanguageModel, compile_blocks: CompileBlocks, trains_all: bool) -> None:
        super().__init__(model, compile_blocks)
        self.trains_all = trains_all
        self._wrap()

    def _wrap(self) -> None:
        """Makes gradient buckets for the layers that the model has now."""
        self.replica = DistributedDataParallel(
            self.language_model(), find_unused_parameters=not self.trains_all, gradient_as_bucket_view=True
        )

    def loss(self, batch: Batch, path: ForwardPath) -> Tensor:
        return self.replica(batch, *path)

    def no_sync(self, last: bool) -> AbstractContextManager[None]:
        return nullcontext() if last else self.replica.no_sync()

    def grow(self, optimizer: AdamW, growth: Growth, moments: str, drawn: Mapping[int, State]) -> None:
        del self.replica  # frees its buckets before the model takes more memory
        super().grow(optimizer, growth, moments, drawn)
        self._wrap()

    def enlarge(self, model_config: ModelConfig, layers: int, init_from: InitFrom) -> None:
        del self.replica
        super().enlarge(model_config, layers, init_from)
        self._wrap()

    def restore(self, tensors: Mapping[str, Tensor], optimizer: AdamW) -> None:
        """Rank 0 reads the checkpoint, which may be on its machine alone."""
        box = [dict(tensors) if dist.get_rank() == 0 else {}]
        dist.broadcast_object_list(box, src=0)
        super().restore(box[0], optimizer)
