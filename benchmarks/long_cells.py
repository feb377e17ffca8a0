"""The long runs as data: natural text, and so many steps that twelve layers may be worth their FLOPs.

Every method has the same length, shape of the learning rate and rate as scratch; what never grows and what is
shallower has several lengths, each with a learning rate laid out for it.
"""

from dataclasses import dataclass, replace

from benchmarks.cells import SEEDS, ReproductionCell

NAME = "long"  # of their corpus
STEPS = 12_000
RATES = {"gpt": "2e-3", "bert": "1e-3"}  # scratch's of 3,000 steps x sqrt(3,000 / 12,000)
SHORTER = (6000, 4000, 9000)  # steps of more scratch runs: what a loss costs from scratch
LONGEST = 30_000  # steps of a few runs that show whether what is saved grows with the length
AT_LENGTH = {"gpt": "two_hops", "bert": "six_then_late"}  # the method of these
SHALLOWER = 6  # layers of scratch runs of all lengths: what the FLOPs of a grown run reach with less depth
WARMUP, DECAY = 0.05, 0.15

_SCRATCH = ("sampler=full", "schedule=scratch")
_MIDDLE = ("schedule.layers=[3,6,12]", "schedule.ends=[0.25,0.5,1]")
_SMALL_HOPS = ("schedule.layers=[3,4,6,8,12]", "schedule.ends=[0.2,0.3,0.4,0.55,1]")  # FLOPs of _MIDDLE
_LATE = ("schedule.layers=[3,6,12]", "schedule.ends=[0.5,0.75,1]")
_TWO_HOPS = ("sampler=shallow", "expander=boundary", "expander.moments=new")
_SPLIT = ("sampler=shallow", "expander=split", "expander.exponent=1", "expander.moments=new")
_IN_THE_DECAY = ("schedule.layers=[3,12]", "schedule.ends=[0.85,1]")
_EARLY = 0.08  # 960 steps: as soon as the plateau of BERT is left
_APOLLO = ("sampler=lvps", "expander=interpolate")
_COMPLETEP = (
    "model.parametrization=completep",
    "model.base_hidden=${model.hidden}",
    "model.base_layers=3",
)
METHODS: dict[str, tuple[str, ...]] = {  # the most telling first
    "scratch": _SCRATCH,
    "late_zero_init": ("sampler=shallow", "expander=net2net", *_IN_THE_DECAY),
    "six_then_late": (
        "sampler=shallow",
        "expander=net2net",
        "expander.moments=new",
        "schedule.layers=[3,6,12]",
        f"schedule.ends=[{_EARLY},0.85,1]",
    ),
    "early_split": (*_SPLIT, "schedule.layers=[3,12]", f"schedule.ends=[{_EARLY},1]"),
    "two_hops": (*_TWO_HOPS, *_MIDDLE),
    "two_hops_split": (*_SPLIT, *_MIDDLE),
    "late_split": (*_SPLIT, *_IN_THE_DECAY),
    "four_hops": (*_TWO_HOPS, *_SMALL_HOPS),
    "apollo_late": (*_APOLLO, *_LATE),
    "stackbert": ("sampler=shallow", "expander=stack", "expander.moments=reset", "schedule=stackbert"),
    "apollo": (*_APOLLO, "schedule=apollo"),
    "two_hops_late": (*_TWO_HOPS, *_LATE),
    "scratch_completep": (*_SCRATCH, *_COMPLETEP),
    "apollo_completep": (*_APOLLO, *_LATE, *_COMPLETEP),
    "interpolate_completep": ("sampler=shallow", "expander=interpolate", *_LATE, *_COMPLETEP),
    "two_hops_completep": (*_TWO_HOPS, *_LATE, *_COMPLETEP),
}


@dataclass(frozen=True)
class LongCell(ReproductionCell):
    """A run of one of METHODS; `layers` is set for scratch runs of another depth."""

    @property
    def words(self) -> tuple[str, ...]:
        """Overrides of `apollo-train`, without those of the corpus."""
        depth = (f"model.layers={self.layers}", f"schedule.layers=[{self.layers}]", "schedule.ends=[1]")
        return (
            "experiment=_depth_pays",
            f"name={self.method}{self.layers or ''}",
            f"model={self.kind}",
            *METHODS[self.method],
            *(["model.norm=pre"] if self.kind == "bert" and _COMPLETEP[0] in METHODS[self.method] else []),
            *(depth if self.layers else ()),
            f"optim.lr={self.rate}",
            f"optim.warmup={WARMUP}",
            f"optim.decay={DECAY}",
            f"budget.steps={self.steps or STEPS}",
            f"seed={self.seed}",
            "eval.every=250",
            "log.every=100",
            "precision=bf16",  # half as fast again as fp32 on one core
        )


def long_cells(kind: str) -> list[LongCell]:
    """All cells of a model in the order in which they are wanted: seed by seed."""
    scratch, *grown = [LongCell(kind, method, RATES[kind], SEEDS[0]) for method in METHODS]
    shallow = replace(scratch, layers=SHALLOWER)
    rungs = [replace(scratch, steps=steps) for steps in SHORTER]
    of_seed = [scratch, shallow, grown[0], *rungs[:2], *grown[1:]]
    of_seed += [rungs[2], *(replace(shallow, steps=steps) for steps in SHORTER)]
    longest = [
        replace(cell, steps=LONGEST)
        for cell in (scratch, shallow, LongCell(kind, AT_LENGTH[kind], RATES[kind], SEEDS[0]))
    ]
    return [*(replace(cell, seed=seed) for seed in SEEDS for cell in of_seed), *longest]
