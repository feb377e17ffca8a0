"""benchmarks/CLAIMS.md: what of the paper's claims holds here; nothing is trained.

`python -m benchmarks.render_claims` makes it from the archives of `make reproduce` and `make methods`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from apollo_cli.intervals import interval
from benchmarks import render_ladder, results_page
from benchmarks.archives import BenchmarkCorpus, growth_costs
from benchmarks.cells import DEFAULT, KINDS, ReproductionCell, headline_cells, variant_cells
from benchmarks.method_cells import NAME, method_cells

TITLE = "The paper's claims"
ABOUT = """\
Differences are paired by seed and written so that a positive one speaks for the claim, with 95 % intervals. A claim
**holds** where the interval lies above 0, **does not hold here** where it lies below (or below the saving that is
claimed), else the two are **not told apart**. Of one seed a difference is judged beside the largest one between
seeds of the same Apollo runs. "Authors'" are their stages (1-3-6-12) and k = 2; "ours" is `apollo_late`, 3-6-12
layers until 40, 80 and 100 % of the steps, and k = 4. Savings are those of [PYDOCS](PYDOCS.md), losses at equal
FLOPs those of [METHODS](METHODS.md), samplers and expanders those of `apollo_late`'s variants.
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
    if (known := _known(saved)) is None:
        return "beyond the scratch runs"
    found = interval(known)
    top = found.mean + (found.half or 0)
    verdict = "**holds**" if found.mean >= claimed else "**does not hold here**" if top < claimed else _UNCLEAR
    return f"{found.format(1, 100)} % (n = {found.n}): {verdict}"


def _more(saved: Mapping[int, float | None], other: Mapping[int, float | None]) -> str:
    """How much more one saves than the other, in points."""
    ours, theirs = _known(saved), _known(other)
    if ours is None or theirs is None:
        return "beyond the scratch runs"
    return _judged([a - b for a, b in zip(ours, theirs, strict=True)], max(ours) - min(ours), 100, 1, "points")


def _below(ours: Mapping[int, float], other: Mapping[int, float]) -> str:
    """How far one is below the other, seed by seed."""
    shared = [other[seed] - ours[seed] for seed in sorted(ours.keys() & other.keys())]
    return _judged(shared, max(ours.values()) - min(ours.values()), 1, 3, "nats")


def _judged(differences: Sequence[float], between_seeds: float, scale: float, digits: int, unit: str) -> str:
    found = interval(differences)
    half = between_seeds if found.half is None else found.half
    verdict = _UNCLEAR if abs(found.mean) <= half else "**holds**" if found.mean > 0 else "**does not hold here**"
    return f"{found.format(digits, scale)} {unit} (n = {found.n}): {verdict}"


def _known(values: Mapping[int, float | None]) -> list[float] | None:
    known = [value for _, value in sorted(values.items()) if value is not None]
    return known if known and len(known) == len(values) else None


_UNCLEAR = "**not told apart**"

if __name__ == "__main__":
    write()
