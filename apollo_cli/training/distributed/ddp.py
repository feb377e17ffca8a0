"""How the model of a run lies on its devices: whole, or a copy on each; in `shards`, a part on each."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from apollo_cli.growth.expanders import Growth
from apollo_cli.growth.expansion import grow
from apollo_cli.growth.samplers import ForwardPath
from apollo_cli.models.model_config import ModelConfig
from apollo_cli.models.transformer import Batch, LanguageModel
from apollo_cli.training.adamw import AdamW
from apollo_cli.training.init_from.weights import Filling, enlarged
from apollo_cli.training.optimizer import restore_state
from apollo_cli.training.state import Checkpoint

Compiles = Callable[[Iterable[nn.Module]], None]


class ParallelStrategy:
    """Whole, on one device.

    Args:
        model: on its device.
        compiles: has new layers of it compiled, where the run compiles.
    """

    in_shards = False  # whether no process has all of it

    def __init__(self, model: LanguageModel, compiles: Compiles) -> None:
        self.model, self.compiles = model, compiles
        compiles(model.blocks)

    def loss(self, batch: Batch, route: ForwardPath) -> Tensor:
        """Of the rows of this process."""
        return self.model.loss(batch, *route)

    @contextmanager
    def no_sync(self, last: bool) -> Iterator[None]:
        """Around a forward and backward pass; the gradients of all processes meet in the last one of a step."""
        yield

    def grow(self, optimizer: AdamW, growth: Growth, moments: str) -> None:
        """Expands the layers, as the plan has it."""
        grown = nn.ModuleList(self.model.new_block() for _ in growth.matrix)
        self.compiles(grown)
        grow(self.model.blocks, grown, optimizer, growth, moments)
        self.model.blocks = grown

    def enlarge(self, model_config: ModelConfig, layers: int, filling: Filling) -> None:
        """Puts a model of this shape and depth in place of the smaller one, filled from it.

        It wants a new optimizer.
        """
        self.model = enlarged(self.model, model_config, layers, filling)
        self.compiles(self.model.blocks)

    def grad_norm(self) -> Tensor:
        """Of all gradients together, on the device."""
        return get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])

    def weights(self) -> dict[str, Tensor]:
        """As a checkpoint takes them: on the CPU, or in shards."""
        return {name: t.detach().cpu() for name, t in self.model.state_dict().items()}

    def local(self, tensor: Tensor) -> Tensor:
        """What this process has of a weight or a gradient."""
        return tensor

    def restore(self, checkpoint: Checkpoint, optimizer: AdamW) -> None:
        """Gives weights and moments the state of a checkpoint.

        Raises:
            RuntimeError, ValueError: it is of another model.
        """
        self.model.load_state_dict(checkpoint.weights)
        restore_state(self.model, optimizer, checkpoint.optimizer)

    def whole(self) -> LanguageModel:
        """The model as the first process exports it."""
        return self.model


class DataParallel(ParallelStrategy):
    """A copy on every device; DDP averages the gradients during the backward pass (Li 2020, arXiv 2006.15704).

    Args:
        model: on the device of this process.
        compiles: has new layers of it compiled, where the run compiles.
        trains_all: whether every step reaches every parameter; else DDP has to look which ones.
    """

    def __init__(self, model: LanguageModel, compiles: Compiles, trains_all: bool) -> None:
        super().__init__(model, compiles)
        self.trains_all = trains_all
        self._renew()

    def _renew(self) -> None:
        """Buckets for the gradients of the layers that are there now."""
        self.replica = DistributedDataParallel(
            self.model, find_unused_parameters=not self.trains_all, gradient_as_bucket_view=True
        )

    def loss(self, batch: Batch, route: ForwardPath) -> Tensor:
        """Of the rows of this process."""
        return self.replica(batch, *route)

    @contextmanager
    def no_sync(self, last: bool) -> Iterator[None]:
        """Else the gradients stay here and add up."""
        if last:
            yield
        else:
            with self.replica.no_sync():
                yield

    def grow(self, optimizer: AdamW, growth: Growth, moments: str) -> None:
        """Expands the layers of every copy, all in the same way."""
        del self.replica  # and its buckets, before there are more
        super().grow(optimizer, growth, moments)
        self._renew()

    def enlarge(self, model_config: ModelConfig, layers: int, filling: Filling) -> None:
        """Enlarges every copy, all in the same way."""
        del self.replica
        super().enlarge(model_config, layers, filling)
        self._renew()
