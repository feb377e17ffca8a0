"""The schema of `optim`, `budget`, `batch` and the other sections of training, and their rules."""

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from apollo_cli.config.schema import Decay, List, Names, Section, Share, Whole


def _line(knots: Any) -> Any:
    """Pairs [share of all steps, share of the peak] as tuples; refuses others."""
    example = "for example 'optim.knots=[[0.5,0.3],[1,0]]'"
    if not isinstance(knots, list | tuple) or not knots or not all(map(_is_pair, knots)):
        raise ValueError(f"should be pairs [share of all steps, share of the peak], {example}")
    if not all(0 <= share <= 1 for knot in knots for share in knot):
        raise ValueError("both numbers of a knot must be shares from 0 to 1, of all steps and of the peak")
    reached = [knot[0] for knot in knots]
    if reached[-1] != 1 or any(b <= a for a, b in pairwise(reached)):
        raise ValueError(f"the shares of all steps must rise to 1, knot by knot, {example}")
    return tuple(map(tuple, knots))


def _is_pair(knot: Any) -> bool:
    return isinstance(knot, list | tuple) and len(knot) == 2 and all(type(share) in (int, float) for share in knot)


LENGTHS = ("steps", "tokens", "flops", "seconds")  # units of the length of a run
Knots = Annotated[tuple[tuple[float, float], ...], BeforeValidator(_line)]

_ROUNDING = 1e-9  # of shares that add up


class AdamWArgs(Section):
    """AdamW and its learning rate, for pretraining and fine-tuning."""

    lr: Annotated[float, Field(gt=0)]
    schedule: Literal["cosine", "linear", "wsd", "constant", "piecewise"]
    warmup: Annotated[float, Field(ge=0, lt=1)]
    decay: Annotated[float, Field(gt=0, le=1)]
    decay_shape: Literal["linear", "sqrt"] = "linear"
    final_lr: Share
    betas: Annotated[tuple[Decay, Decay], List]
    eps: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0, le=1000)]
    clip: Annotated[float, Field(ge=0)]

    def rule_problems(self) -> Iterator[str]:
        if self.schedule == "wsd" and self.warmup + self.decay > 1:
            yield (
                f"optim.warmup={self.warmup} and optim.decay={self.decay} add up to more than the whole run; "
                "make one of them smaller"
            )


class OptimArgs(AdamWArgs):
    """`optim`: AdamW or Muon, and the learning rate; keys with a default are absent in older runs."""

    kind: Literal["adamw", "muon"] = "adamw"
    knots: Knots | None
    at_growth: Literal["continue", "rewarm", "restart", "rewind"]
    ema: Decay | None = None
    momentum: Decay = 0.95
    nesterov: bool = True
    ns_steps: Annotated[int, Field(gt=0, lt=100)] = 5
    adjust_lr_fn: Literal["original", "match_rms_adamw"] = "match_rms_adamw"

    def rule_problems(self) -> Iterator[str]:
        yield from super().rule_problems()
        if self.schedule != "piecewise":
            if self.knots is not None:
                yield (
                    f"optim.knots is set and optim.schedule={self.schedule}: type optim.schedule=piecewise, or "
                    "optim.knots=null"
                )
            return
        if self.knots is None:
            yield (
                "optim.schedule=piecewise: optim.knots is missing, pairs [share of all steps, share of the peak] "
                "for the rate; for example 'optim.knots=[[0.5,0.3],[1,0]]'"
            )
        elif self.knots[0][0] <= self.warmup:
            yield (
                f"optim.knots={[list(knot) for knot in self.knots]}: the first one must come after "
                f"optim.warmup={self.warmup}, where the rate is at its peak"
            )
        if self.final_lr:
            yield (
                f"optim.final_lr={self.final_lr}: with optim.schedule=piecewise the rate ends at the last of "
                "optim.knots; type optim.final_lr=0"
            )
        if self.at_growth in ("restart", "rewind"):
            yield (
                f"optim.at_growth={self.at_growth}: optim.schedule=piecewise cannot start again; type "
                "optim.at_growth=continue or rewarm"
            )


class BudgetArgs(Section):
    """`budget`: the length of a run, of which exactly one is set, and what ends it before.

    `extended_from` are the planned steps before each extension; written by `resume=RUN_DIR budget.steps=N`.
    """

    steps: Whole | None
    tokens: Whole | None
    flops: Whole | None
    seconds: Annotated[float, Field(gt=0)] | None
    target_loss: Annotated[float, Field(gt=0)] | None = None  # `eval/loss` of the whole model at which a run ends
    patience: Whole | None = None  # evaluations in the last stage without a new lowest `eval/loss` that end it
    extended_from: Annotated[tuple[Whole, ...], List] = ()

    @property
    def lengths(self) -> dict[str, float]:
        """The lengths that are set, by unit; exactly one in a valid config."""
        return {unit: value for unit in LENGTHS if (value := getattr(self, unit)) is not None}

    @property
    def may_end_early(self) -> bool:
        """Whether the length is an upper bound."""
        return self.target_loss is not None or self.patience is not None

    def rule_problems(self) -> list[str]:
        chosen = list(self.lengths)
        if any(b <= a for a, b in pairwise(self.extended_from)):
            return [f"budget.extended_from={list(self.extended_from)}: the lengths of a run must rise"]
        if len(chosen) == 1:
            return []
        return [
            f"exactly one budget must be set, not {' and '.join(f'budget.{c}' for c in chosen) or 'none'}; "
            "set one of budget.steps, budget.tokens, budget.flops, budget.seconds and leave the rest null"
        ]


class BatchArgs(Section):
    """`batch`: sequences in a step and in a micro-step."""

    size: Annotated[Whole, Field(le=10**12)]
    micro: Annotated[Whole, Field(le=10**12)] | None

    @property
    def micro_size(self) -> int:
        """Sequences in a micro-step on all devices together."""
        return self.micro or self.size

    @property
    def accumulation(self) -> int:
        """Micro-steps in a step."""
        return self.size // self.micro_size

    def rule_problems(self) -> list[str]:
        if not self.size % self.micro_size:
            return []
        near = max(m for m in range(1, self.micro_size) if self.size % m == 0)
        return [f"batch.micro={self.micro} does not divide batch.size={self.size}; for example batch.micro={near}"]


class EvalArgs(Section):
    """`eval`: steps between evaluations, and their rows."""

    every: Whole
    rows: Whole


class CheckpointArgs(Section):
    """`checkpoint`: steps between checkpoints, how many are kept, and whether the best one is."""

    every: Whole
    keep: Whole
    best: bool = False  # absent in older runs


class LogArgs(Section):
    """`log`: steps between training rows."""

    every: Whole


def _accepted_by_wandb(longest: int, forbidden: str = "") -> AfterValidator:
    """A validator of a name, or of several: W&B refuses empty and long ones, and some characters in a project."""

    def checked(value: Any) -> Any:
        for name in [value] if isinstance(value, str) else value or ():
            if not name.strip() or len(name) > longest:
                raise ValueError(f"W&B takes names of 1 to {longest} characters")
            if found := sorted(set(forbidden) & set(name)):
                raise ValueError(f"W&B refuses {' '.join(found)} in this name; leave it out")
        return value

    return AfterValidator(checked)


def _with_tensorboard(value: bool) -> bool:
    if value and find_spec("tensorboard") is None:
        raise ValueError("it needs the package tensorboard; type pip install 'apollo-train[tensorboard]'")
    return value


class TrackingArgs(Section):
    """`tracking`: Weights & Biases and others, in addition to the local files; keys with a default are newer."""

    wandb: Literal["auto", "online", "offline", "disabled"]
    project: Annotated[str | None, _accepted_by_wandb(128, "/\\#?%:")]
    timeout: Annotated[float, Field(gt=0, le=86_400)]
    entity: Annotated[str | None, _accepted_by_wandb(128, "/\\#?%:")] = None
    group: Annotated[str | None, _accepted_by_wandb(128)] = None
    tags: Annotated[Names, _accepted_by_wandb(64)] = ()
    notes: str | None = None
    upload: Literal["none", "model", "checkpoints"] = "none"
    tensorboard: Annotated[bool, AfterValidator(_with_tensorboard)] = False
    csv: bool = False


class DistributedArgs(Section):
    """`distributed`: how several devices share a model, and how long they wait for each other."""

    kind: Literal["ddp", "fsdp"]
    timeout: Annotated[float, Field(ge=1, le=86_400)]


def growth_rate_problems(optim: OptimArgs, growths: Sequence[float]) -> Iterator[str]:
    """Messages about a rate that could not begin again after one of the growths, which come at these shares."""
    last = max(growths, default=0.0)
    if optim.schedule == "wsd" and optim.at_growth in ("restart", "rewind") and last + optim.decay > 1 + _ROUNDING:
        yield (
            f"optim.at_growth={optim.at_growth}: at the growth after {last:g} of all steps optim.schedule=wsd is "
            f"in its decay, the last optim.decay={optim.decay:g}, and does not go back to the peak; type "
            "optim.at_growth=rewarm or continue, or a smaller optim.decay"
        )
    falls = optim.decay if optim.schedule == "wsd" and optim.at_growth == "restart" else 0.0
    most = 1 - last - falls  # a warmup as long ends at the end of the run, or where the rate begins to fall
    is_over = optim.warmup > most + (_ROUNDING if falls else -_ROUNDING)
    if optim.at_growth in ("restart", "rewarm") and growths and is_over and most > 0:
        yield (
            f"optim.warmup={optim.warmup:g}: with optim.at_growth={optim.at_growth} the warmup after the growth at "
            f"{last:g} of all steps would not end before the {'decay begins' if falls else 'run ends'}; make it "
            f"shorter than {most:.3g}"
        )
