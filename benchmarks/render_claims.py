"""benchmarks/CLAIMS.md: what of the paper's claims holds here; nothing is trained.

`python -m benchmarks.render_claims` makes it from the archives of `make reproduce` and `make methods`.
"""

import math
from collections.abc import Iterable, Iterator, Mapping

from apollo_cli.intervals import interval
from benchmarks import render_ladder, results_page
from benchmarks.archives import BenchmarkCorpus, growth_costs
from benchmarks.cells import DEFAULT, KINDS, ReproductionCell, headline_cells, variant_cells
from benchmarks.method_cells import NAME, method_cells

TITLE = "The paper's claims"
ABOUT = """\
Differences are paired by seed and written so that a positive one speaks for the claim, with 95 % intervals. A
claim **holds** where the interval lies above 0, **does not hold here** where it lies below, else the two are
**not told apart**; a saving is judged in the same way beside what is claimed. A difference of one seed is judged
beside t(n - 1) s sqrt(2), where s is the standard deviation of the n seeds of the same Apollo runs: so much would
two single runs of one method differ. "Authors'" are their stages (1-3-6-12) and k = 2; "ours" is `apollo_late`,
3-6-12 layers until 40, 80 and 100 % of the steps, and k = 4. Savings are those of [PYDOCS](PYDOCS.md), losses at
equal FLOPs those of [METHODS](METHODS.md), samplers and expanders those of `apollo_late`'s variants.
"""
CLAIMED = {"bert": 0.452, "gpt": 0.576}  # of scratch's FLOPs (arXiv 2401.09192)
SETTINGS = {"authors'": "apollo", "ours": "apollo_late"}
SMALLER = ("bert2bert", "ligo")
SAMPLERS = ("uniform", "edge", "full")


def write() -> None:
    results_page.put(TITLE, lines())


def lines() -> Iterator[str]:
    """The table, a row a claim and setting."""
    yield from [*ABOUT.splitlines(), ""]
    yield from results_page.table(("claim", "settings", *(kind.upper() for kind in reversed(KINDS))), rows())


def rows() -> Iterator[list[str]]:
    """The cells of the table."""
    kinds = tuple(reversed(KINDS))
    pydocs, methods = BenchmarkCorpus(DEFAULT), BenchmarkCorpus(NAME)
    claimed = " and ".join(f"{CLAIMED[kind]:.1%} ({kind.upper()})" for kind in kinds)
    for settings, apollo in SETTINGS.items():
        saved = {kind: render_ladder.savings_of(pydocs, kind, apollo) for kind in kinds}
        yield [f"Apollo saves {claimed}", settings, *(_saving(saved[kind], CLAIMED[kind]) for kind in kinds)]
        stacked = {kind: render_ladder.savings_of(pydocs, kind, "stackbert") for kind in kinds}
        yield ["saves more than StackBERT", settings, *(_more(saved[kind], stacked[kind]) for kind in kinds)]
    for other in ("stackbert", *SMALLER):
        pairs = [[_losses(methods, method_cells(kind, [name])) for name in ("apollo", other)] for kind in kinds]
        yield [f"ends below `{other}` at equal FLOPs", "authors'", *(_below(ours, its) for ours, its in pairs)]
    for other in (*SAMPLERS, "stack"):
        text = "interpolation ends below stacking" if other == "stack" else f"LVPS ends below `{other}`"
        pairs = [[_losses(pydocs, _variants(kind, name)) for name in ("apollo_late", other)] for kind in kinds]
        yield [text, "ours", *(_below(ours, its) for ours, its in pairs)]
    jumps = [[_jumps(pydocs, _variants(kind, name)) for name in ("apollo_late", "stack")] for kind in kinds]
    yield ["interpolation jumps less at growth", "ours", *(_below(ours, its) for ours, its in jumps)]


def _variants(kind: str, method: str) -> list[ReproductionCell]:
    """The cells of a variant of apollo_late; of itself those of all seeds."""
    found = [*variant_cells(kind), *headline_cells(kind, ["apollo_late"])]
    return [cell for cell in dict.fromkeys(found) if cell.method == method]


def _losses(corpus: BenchmarkCorpus, cells: Iterable[ReproductionCell]) -> dict[int, float]:
    return {cell.seed: corpus.summary(cell)["losses"]["eval/loss"] for cell in corpus.complete(cells)}


def _jumps(corpus: BenchmarkCorpus, cells: Iterable[ReproductionCell]) -> dict[int, float]:
    """The mean rise of the loss at a growth."""
    costs = {cell.seed: growth_costs(corpus.summary(cell)) for cell in corpus.complete(cells)}
    return {seed: sum(each) / len(each) for seed, each in costs.items()}


def _saving(saved: Mapping[int, float | None], claimed: float) -> str:
    """A saving, and whether it is what was claimed."""
    known = [value for value in saved.values() if value is not None]
    if not known or len(known) < len(saved):
        return "beyond the scratch runs"
    found = interval(known)
    verdict = _verdict(found.mean - claimed, found.half)
    return f"{found.format(1, 100)} % (n = {found.n}){verdict}"


def _more(saved: Mapping[int, float | None], other: Mapping[int, float | None]) -> str:
    """How much more one saves than the other, in points."""
    ours, theirs = ({seed: -share for seed, share in of.items() if share is not None} for of in (saved, other))
    return _below(ours, theirs, 100, 1, "points")


def _below(
    ours: Mapping[int, float],
    other: Mapping[int, float],
    scale: float = 1,
    digits: int = 3,
    unit: str = "nats",
) -> str:
    """How far one is below the other, seed by seed."""
    shared = [other[seed] - ours[seed] for seed in sorted(ours.keys() & other.keys())]
    if not shared:
        return "not measured"
    found, half = interval(shared), interval(shared).half
    if half is None and (of_seeds := interval(list(ours.values()))).half is not None:
        half = of_seeds.half * math.sqrt(2 * of_seeds.n)  # a prediction for two single runs
    return f"{found.format(digits, scale)} {unit} (n = {found.n}){_verdict(found.mean, half)}"


def _verdict(mean: float, half: float | None) -> str:
    """Whether a value of this half width is above 0; nothing without one."""
    if half is None:
        return ""
    return f": {_UNCLEAR if abs(mean) <= half else _HOLDS if mean > 0 else _FAILS}"


_UNCLEAR, _HOLDS, _FAILS = "**not told apart**", "**holds**", "**does not hold here**"

if __name__ == "__main__":
    write()
