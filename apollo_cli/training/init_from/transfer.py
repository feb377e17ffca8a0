"""What a smaller model hands on to the model that begins a stage, whether a source or that of the stage before."""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

from apollo_cli.data.batches import TrainingBatches
from apollo_cli.growth.plan import Plan
from apollo_cli.growth.rng import Purpose, generator
from apollo_cli.models.transformer import Batch, LanguageModel
from apollo_cli.training.device import Device
from apollo_cli.training.init_from.learned_map import LearnedMap, learn
from apollo_cli.training.init_from.weights import fill
from apollo_cli.training.state import TrainerState


@dataclass(frozen=True)
class WeightTransfer:
    """Weights by the expander's rule, or by a map that is learned first.

    A map is learned on the rows that the stage then trains on: in its step i, on the first micro-batch of the i-th
    step from the stage's first one. They are whole ones, so that each of several processes learns the same map.

    Attributes:
        plan: of the run.
        device: computes.
        batches: of the run, whole ones.
        state: takes what a map costs.
        say: tells people about it.
    """

    plan: Plan
    device: Device
    batches: TrainingBatches
    state: TrainerState
    say: Callable[[str], None]

    def fill(
        self, model: LanguageModel, source: LanguageModel, index: int, before_step: Callable[[], None]
    ) -> None:
        """Gives the model that begins a stage the weights of a smaller one.

        Args:
            model: on its device.
            source: is moved.
            index: of the stage.
            before_step: is called before each step of a map, and may raise.

        Raises:
            TrainingError: a loss of the map is not finite.
        """
        expander, stage = self.plan.expander, self.plan.stages[index]
        rng = generator(self.plan.seed, Purpose.GROWTH, index)
        if expander.learning is None:
            fill(model, source, expander, rng)
            return
        source.to(model.device)
        learned = LearnedMap(source, model.model_config, expander, len(model.blocks), rng).to(model.device)

        def batch(step: int) -> Batch:
            before_step()
            return self.batches.micro_batch(stage.stage.first_step + step, 0).to(self.device.device)

        began = perf_counter()
        first, last = learn(model, learned, batch, expander.learning, self.device)
        (seconds,) = self.device.processes.max(perf_counter() - began)  # all are to see the same clock
        self.state.train_seconds += seconds
        self.state.flops += stage.map_flops
        self.say(f"a map was learned in {expander.learning.steps} steps, loss {first:.4f} -> {last:.4f}")
