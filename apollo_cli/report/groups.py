"""Grouping of runs: a group is one method over its seeds, a family is the groups with comparable losses."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from apollo_cli.config.config import FAMILIES
from apollo_cli.config.schema import Section, member
from apollo_cli.errors import one_line
from apollo_cli.files import in_order
from apollo_cli.models.model_config import TITLES
from apollo_cli.report.runs import Run, first_of

# Keys and sections that cannot change the result; the data is known by its fingerprint.
_IDLE = (
    *("seed.", "name.", "device.", "resume.", "plan.", "plan_device.", "profile.", "compile."),
    *("on_nonfinite.", "experiment.", "format.", "tracking.", "checkpoint.", "log.", "data.", "distributed."),
)
# Without effect where the whole model is trained from the first step.
_GROWTH = (
    *("sampler.", "expander.", "init_from."),
    *("schedule.ends.", "schedule.trained.", "schedule.widths.", "optim.at_growth."),
)
_PLATEAU = ("schedule.when.", "schedule.window.", "schedule.threshold.")  # the last two without effect elsewhere
# In a label wherever they differ, in this order; other keys where these do not distinguish the runs.
_FIRST = (
    *("sampler.kind", "sampler.k", "expander.kind", "schedule.layers", "schedule.when"),
    *("model.layers", "model.hidden", "optim.lr", "optim.schedule", "budget."),
)
_LAST = ("model.", "eval.", "sampler.", "schedule.ends", "optim.decay")
_SOURCE = "init_from.path"
_UNKNOWN = "not known yet"


class EvaluationSetup(NamedTuple):
    """What makes losses comparable: the objective, the corpus with its tokenizer, the held-out rows."""

    kind: str  # bert, gpt or llama
    masks: str  # of BERT: the share of tokens, and whether of whole words; else empty
    data: str  # fingerprint of corpus, tokenizer, rows and their length
    evaluation_rows: int | None  # None while no run has recorded it


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone, one a seed, under the label of their method."""

    label: str
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Family:
    """Groups whose losses may be compared."""

    title: str  # BERT, GPT, or with a number where there are several
    facts: tuple[str, ...]  # data, tokenizer and evaluation rows
    groups: tuple[Group, ...]  # in the order of their labels
    notes: tuple[str, ...]  # on runs that are left out or whose data is not known

    @property
    def description(self) -> str:
        return ", ".join(self.facts)


def families(runs: Sequence[Run]) -> tuple[list[Family], list[str]]:
    """The families of these runs, independent of their order, and a warning for each objective with several."""
    runs = sorted(runs, key=lambda run: in_order(run.place))
    known: dict[str, set[tuple[str, int]]] = defaultdict(set)
    for run in runs:
        if run.data is not None and run.evaluation_rows is not None:
            known[_data_config(run)].add((run.data, run.evaluation_rows))
    members: dict[EvaluationSetup, list[Run]] = defaultdict(list)  # in the order of their first places
    for run in runs:
        members[_evaluation_setup(run, known)].append(run)
    found, warnings = [], []
    for kind in sorted({setup.kind for setup in members}):
        setups = [setup for setup in members if setup.kind == kind]
        titles = [f"{TITLES[kind]} {n + 1}" for n in range(len(setups))] if len(setups) > 1 else [TITLES[kind]]
        of_kind = [_family(title, setup, members[setup]) for title, setup in zip(titles, setups, strict=True)]
        found += of_kind
        if len(of_kind) > 1:
            common = set.intersection(*(set(family.facts) for family in of_kind))
            parts = []
            for family in of_kind:
                places = [run.place for group in family.groups for run in group.runs]
                facts = ", ".join(fact for fact in family.facts if fact not in common) or family.description
                parts.append(f"{family.title} ({first_of(places)}): {facts}")
            warnings.append(
                f"these {TITLES[kind]} runs are not measured on the same data and are NOT compared: "
                f"{'; '.join(parts)}"
            )
    return found, warnings


def _evaluation_setup(run: Run, known: dict[str, set[tuple[str, int]]]) -> EvaluationSetup:
    """The setup of a run; one without a summary gets that of the runs with the same data config."""
    kind, mask = run.config["model.kind"], one_line(run.config.get("model.mask_fraction", ""))
    if run.config.get("model.whole_word_masking"):
        mask += " of whole words"
    if run.data is not None and run.evaluation_rows is not None:
        return EvaluationSetup(kind, mask, run.data, run.evaluation_rows)
    config = _data_config(run)
    alike = known.get(config, set())
    data, rows = next(iter(alike)) if len(alike) == 1 else (f"{_UNKNOWN}: {config}", None)
    return EvaluationSetup(kind, mask, data, rows)


def _data_config(run: Run) -> str:
    keys = [key for key in run.config if key.startswith("data.") and key != "data.cache_dir"]
    return repr({key: run.config.get(key) for key in sorted([*keys, "model.kind", "eval.rows"])})


def _family(title: str, setup: EvaluationSetup, runs: Sequence[Run]) -> Family:
    config = runs[0].config
    corpus = config.get("data.path") or config.get("data.files") or config.get("data.kind")
    corpus = " ".join(map(str, corpus)) if isinstance(corpus, list) else str(corpus)
    fingerprint = _UNKNOWN if setup.data.startswith(_UNKNOWN) else setup.data[:12]
    rows = config.get("eval.rows") if setup.evaluation_rows is None else setup.evaluation_rows
    facts = (
        f"data {shortened(corpus)} (fingerprint {fingerprint})",
        f"tokenizer {config.get('data.tokenizer')}",
        f"vocabulary {config.get('data.vocab_size')}",
        f"rows of {config.get('data.seq_len')} tokens",
        *([f"masked fraction {setup.masks}"] if setup.masks else []),
        f"{rows} evaluation rows",
    )
    groups, notes = _groups(runs)
    if unknown := [run.place for run in runs if run.data is None or run.evaluation_rows is None]:
        notes.append(f"no summary yet, so the data is taken from the config: {first_of(unknown)}")
    return Family(title, tuple(map(one_line, facts)), groups, tuple(notes))


def _groups(runs: Sequence[Run]) -> tuple[tuple[Group, ...], list[str]]:
    """The groups in the order of their labels, and a note for each seed that a method has twice."""
    members: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        members[repr(settings(run))].append(run)
    notes, groups = [], []
    for label, same in zip(_labels(list(members.values())), members.values(), strict=True):
        by_seed: dict[str, list[Run]] = defaultdict(list)
        for run in sorted(same, key=lambda run: in_order(str(run.seed))):
            by_seed[str(run.seed)].append(run)
        kept = []
        for seed, twins in by_seed.items():
            twins.sort(key=lambda run: (run.status != "completed", -max(row["flops"] for row in run.rows)))
            best, *others = twins
            kept.append(best)
            if others:
                left = first_of([run.place for run in others])
                notes.append(f"'{label}': seed {one_line(seed)} is there {len(twins)} times; left out: {left}")
        groups.append(Group(label, tuple(kept)))
    return tuple(sorted(groups, key=lambda group: in_order(group.label))), notes


def settings(run: Run) -> dict[str, Any]:
    """The keys that may change the result, but for the seed.

    Every seed may be initialized from a model of its own: paths that differ in digits alone are equal where the
    models cost as much. A key without a value, or with an empty list, is as one that is not there; a key that an
    older run lacks has its default.
    """
    idle = (
        _IDLE
        + (_GROWTH if run.is_scratch else ())
        + (("init_from.",) if run.config.get(_SOURCE) is None else ())
        + (_PLATEAU if run.config.get("schedule.when", "ends") == "ends" else ())
    )
    found = {
        key: value
        for key, value in sorted((_defaults_of(run.config) | run.config).items())
        if value not in (None, []) and not f"{key}.".startswith(idle)
    }
    if found.get(_SOURCE) is not None and run.source_flops is not None:
        found[_SOURCE] = f"{re.sub('[0-9]+', '#', str(found[_SOURCE]))} of {run.source_flops:g} FLOPs"
    return found


def _defaults_of(config: dict[str, Any]) -> dict[str, Any]:
    """The defaults of the keys that the schema does not require, which older runs lack."""
    found: dict[str, Any] = {}
    for name, family in FAMILIES.items():
        if cls := member(name, family, {"kind": config.get(f"{name}.kind")}, []):
            found |= {f"{name}.{key}": value for key, value in _optional(cls).items()}
    return found


@cache
def _optional(cls: type[Section]) -> dict[str, Any]:
    values = {key: field.default for key, field in cls.model_fields.items() if not field.is_required()}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def differing(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """The settings in which these runs differ, each with its value in every run; an empty text for none."""
    found = [settings(run) for run in runs]
    keys = sorted({key for each in found for key in each}, key=_rank)
    return [
        (key, ["" if each.get(key) is None else shortened(one_line(_value_text(each[key]))) for each in found])
        for key in keys
        if _count(found, [key]) > 1
    ]


def _labels(groups: Sequence[Sequence[Run]]) -> list[str]:
    """A label for each group: its `name`, where no other group has it, else the values of what differs.

    Where names differ, as those of experiments do, groups of one name have it before the values.
    """
    names = [{str(run.config.get("name")) for run in group} for group in groups]
    owners = Counter(name for found in names for name in found)
    labels: list[str] = []
    for group, found in zip(groups, names, strict=True):
        name, *others = found
        alike = [
            their[0] for their, own in zip(groups, names, strict=True) if (len(own) > 1 if others else own == found)
        ]
        values = _label_of_values(group[0], alike)
        if not others and len(owners) > 1:
            values = f"{name} {values}"
        label = shortened(one_line(name if not others and owners[name] == 1 else values))
        twins = sum(other == label or other.startswith(f"{label} (") for other in labels)
        labels.append(f"{label} ({twins + 1})" if twins else label)
    return labels


def _label_of_values(run: Run, runs: Sequence[Run]) -> str:
    """`scratch`, or the sampler; and each key that distinguishes runs of this sort, in the order of `_rank`."""
    own = settings(run)
    peers = [settings(other) for other in runs if other.is_scratch == run.is_scratch]
    keys = sorted({key for other in peers for key in other}, key=_rank)
    keys = [key for key in keys if _count(peers, [key]) > 1]
    chosen: list[str] = []
    for key in keys:
        if key.startswith(_FIRST) or _count(peers, [*chosen, key]) > _count(peers, chosen):
            chosen.append(key)
    with_sampler = not keys or any(key.startswith("sampler.") for key in chosen)
    covered = ("schedule.layers",) if run.is_scratch else ("sampler.kind", "sampler.k") if with_sampler else ()
    tokens = [_token(key, own[key]) for key in chosen if key not in covered and own.get(key) is not None]
    if run.is_scratch:
        return " ".join(["scratch", *tokens])
    if with_sampler or not tokens:
        strength = [_token("sampler.k", own["sampler.k"])] if "sampler.k" in own else []
        tokens = [_token("sampler.kind", own.get("sampler.kind")), *strength, *tokens]
    return " ".join(tokens)


def _rank(key: str) -> tuple[int, str]:
    """The position of a key in a label."""
    first = next((i for i, start in enumerate(_FIRST) if key.startswith(start)), len(_FIRST))
    return first + (first == len(_FIRST) and key.startswith(_LAST)), key


def _count(methods: Sequence[dict[str, Any]], keys: Sequence[str]) -> int:
    """The number of methods that these keys distinguish."""
    return len({repr([method.get(key) for key in keys]) for method in methods})


def _token(key: str, value: Any) -> str:
    """`lr=0.001`, `expander=stack`, `layers=1-3-6-12`."""
    section, _, name = key.rpartition(".")
    if name in ("kind", "path"):
        name = section
    elif name in ("every", "rows", "size", "micro") or key == "model.layers":
        name = key
    return f"{name}={_value_text(value)}"


def _value_text(value: Any) -> str:
    if isinstance(value, list):
        return "-".join(map(str, value))
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{value:g}" if is_number else str(value)


def shortened(text: str, length: int = 80) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
