"""What the model that begins a stage gets from a smaller one: `init_from`'s, or that of the stage before."""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

from apollo_cli.data.batches import TrainingBatches
from apollo_cli.growth.expanders import Ligo
from apollo_cli.growth.plan import Plan
from apollo_cli.growth.rng import Purpose, generator
from apollo_cli.models.model_config import ModelConfig
from apollo_cli.models.transformer import Batch, LanguageModel
from apollo_cli.training.device import Device
from apollo_cli.training.init_from.learned_map import LearnedMap, learn
from apollo_cli.training.init_from.weights import init_from_smaller
from apollo_cli.training.state import TrainerState


@dataclass(frozen=True)
class WeightTransfer:
    """Initializes models by the expander's rule, or by a map that is learned first.

    A map is learned on the rows that the stage is then trained on: step i of the map on the first micro-batch of
    step i of the stage. Each of several processes reads whole micro-batches, so that all learn the same map.
    """

    model_config: ModelConfig  # sizes of the target model
    device: Device
    batches: TrainingBatches  # of the run, not divided among processes
    state: TrainerState  # of the run; the cost of a map is added to it
    say: Callable[[str], None]  # takes a line for the console

    def init_model(
        self, model: LanguageModel, source: LanguageModel, plan: Plan, index: int, before_step: Callable[[], None]
    ) -> None:
        """Initializes the model that begins the stage `index` from a smaller one, which is moved to another device.

        `before_step` is called before each step of a learned map, and may raise. A TrainingError if a loss of
        the map is not finite.
        """
        expander, stage = plan.expander, plan.stages[index]
        rng = generator(plan.seed, Purpose.GROWTH, index)
        if not isinstance(expander, Ligo):
            init_from_smaller(model, source, expander, rng)
            return
        source.to(model.device)
        learned = LearnedMap(source, model.model_config, expander, len(model.blocks), rng).to(model.device)

        def batch(step: int) -> Batch:
            before_step()
            return self.batches.micro_batch(stage.stage.first_step + step, 0).to(self.device.device)

        began = perf_counter()
        first, last = learn(model, learned, batch, expander, self.device)
        (seconds,) = self.device.processes.max(perf_counter() - began)  # all processes add the same number
        self.state.train_seconds += seconds
        self.state.flops += stage.map_flops
        self.state.logged_train_seconds += seconds  # of no row's rates
        self.state.logged_flops += stage.map_flops
        self.say(f"a map was learned in {expander.steps} steps, loss {first:.4f} -> {last:.4f}")
