"""Which runs belong together: a group is a method over its seeds, a family is what may be compared."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from apollo_cli.config.conf_folder import conf_folder
from apollo_cli.files import in_order
from apollo_cli.report.runs import Run, few, plain

# Cannot change the result; of the data the fingerprint counts.
_IDLE = ("seed", "name", "device", "resume", "plan", "on_nonfinite", "experiment", "format")
_IDLE_SECTIONS = ("tracking", "checkpoint", "log", "data")
# Of no effect where the whole model is stored from the first step.
_GROWTH_SECTIONS = ("sampler", "expander", "init_from")
_GROWTH_KEYS = ("schedule.ends", "schedule.trained", "schedule.widths", "optim.at_growth")
# In a label wherever they differ, in this order; other keys where nothing before says which runs they are.
_FIRST = (
    *("sampler.kind", "sampler.k", "expander.kind", "schedule.layers"),
    *("model.layers", "model.hidden", "optim.lr", "optim.schedule", "budget."),
)
_LAST = ("model.", "eval.", "sampler.", "schedule.ends", "optim.decay")
_SOURCE = "init_from.path"
_UNKNOWN = "not known yet"
_LONGEST_LABEL = 80


@dataclass(frozen=True)
class Measure:
    """What makes losses comparable: the objective, the corpus with its tokenizer, the rows that are measured.

    Attributes:
        kind: bert or gpt.
        mask_fraction: of BERT's tokens; empty for GPT.
        data: fingerprint of corpus and tokenizer, its rows and their length in it.
        evaluation_rows: held-out rows that are measured; None as long as no run has said it.
    """

    kind: str
    mask_fraction: str
    data: str
    evaluation_rows: int | None


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone, one a seed, under the name of their method."""

    label: str
    runs: tuple[Run, ...]

    @property
    def is_scratch(self) -> bool:
        """Whether all layers are stored from the first step."""
        return self.runs[0].is_scratch


@dataclass(frozen=True)
class Family:
    """Groups whose losses may be compared.

    Attributes:
        title: unique, for people.
        description: objective, data, tokenizer and evaluation rows.
        groups: in the order of their labels.
        notes: what a reader should know about the choice of the runs.
    """

    title: str
    description: str
    groups: tuple[Group, ...]
    notes: tuple[str, ...]


def families(runs: Sequence[Run]) -> tuple[list[Family], list[str]]:
    """The families of these runs, whatever their order, and warnings where one objective has several."""
    runs = sorted(runs, key=lambda run: in_order(run.place))
    members: dict[Measure, list[Run]] = {}
    unsaid: dict[Measure, list[str]] = {}
    known: dict[str, set[tuple[str, int]]] = {}
    for run in runs:
        if run.data is not None and run.evaluation_rows is not None:
            known.setdefault(_data_config(run), set()).add((run.data, run.evaluation_rows))
    for run in runs:
        measure = _measure(run, known)
        members.setdefault(measure, []).append(run)
        if run.data is None or run.evaluation_rows is None:
            unsaid.setdefault(measure, []).append(run.place)
    kinds = Counter(measure.kind for measure in members)
    found: list[Family] = []
    for measure in sorted(members, key=lambda m: (m.kind, in_order(members[m][0].place))):
        number = sum(family.title.startswith(f"{measure.kind.upper()} ") for family in found)
        title = measure.kind.upper() if kinds[measure.kind] == 1 else f"{measure.kind.upper()} {number + 1}"
        groups, of_groups = _groups(members[measure])
        description = _description(measure, members[measure][0])
        if places := unsaid.get(measure):
            of_groups.append(f"no summary yet, so the data is taken from the config: {few(places)}")
        found.append(Family(title, description, groups, tuple(of_groups)))
    return found, _warnings(found, kinds)


def _measure(run: Run, known: dict[str, set[tuple[str, int]]]) -> Measure:
    """What a run is measured by; one that has not said it yet is taken for those of the same data config."""
    kind, mask = run.config["model.kind"], plain(run.config.get("model.mask_fraction", ""))
    if run.data is not None and run.evaluation_rows is not None:
        return Measure(kind, mask, run.data, run.evaluation_rows)
    config = _data_config(run)
    alike = known.get(config, set())
    data, rows = next(iter(alike)) if len(alike) == 1 else (f"{_UNKNOWN}: {config}", None)
    return Measure(kind, mask, data, rows)


def _data_config(run: Run) -> str:
    keys = [key for key in run.config if key.startswith("data.") and key != "data.cache_dir"]
    return json.dumps({key: run.config.get(key) for key in sorted([*keys, "model.kind", "eval.rows"])}, default=str)


def _description(measure: Measure, run: Run) -> str:
    config = run.config
    corpus = config.get("data.path") or config.get("data.files") or config.get("data.kind")
    corpus = " ".join(map(str, corpus)) if isinstance(corpus, list) else str(corpus)
    fingerprint = _UNKNOWN if measure.data.startswith(_UNKNOWN) else measure.data[:12]
    rows = config.get("eval.rows") if measure.evaluation_rows is None else measure.evaluation_rows
    return plain(
        f"data {_cut(corpus)} (fingerprint {fingerprint}), tokenizer {config.get('data.tokenizer')}, "
        f"vocabulary {config.get('data.vocab_size')}, rows of {config.get('data.seq_len')} tokens"
        f"{', masked fraction ' * bool(measure.mask_fraction)}{measure.mask_fraction}, {rows} evaluation rows"
    )


def _warnings(found: Sequence[Family], kinds: Counter[str]) -> list[str]:
    """One for each objective whose runs cannot all be compared, with who has what."""
    warnings = []
    for kind in sorted(kind for kind, count in kinds.items() if count > 1):
        parts = []
        for family in (family for family in found if family.title.startswith(f"{kind.upper()} ")):
            shown = few([run.place for group in family.groups for run in group.runs])
            parts.append(f"{family.title} ({shown}): {family.description}")
        warnings.append(
            f"these {kind.upper()} runs are measured on different data, tokenizers or evaluation rows and are NOT "
            f"compared with each other: {'; '.join(parts)}"
        )
    return warnings


def _groups(runs: Sequence[Run]) -> tuple[tuple[Group, ...], list[str]]:
    """The groups in the order of their labels, and a note for each run that is there twice."""
    members: dict[str, list[Run]] = {}
    for run in runs:
        members.setdefault(json.dumps(settings(run), default=str), []).append(run)
    notes, groups = [], []
    for label, same in zip(_labels(list(members.values())), members.values(), strict=True):
        by_seed: dict[str, list[Run]] = {}
        for run in sorted(same, key=lambda run: in_order(str(run.seed))):
            by_seed.setdefault(str(run.seed), []).append(run)
        kept = []
        for seed, twins in by_seed.items():
            best, *others = sorted(twins, key=lambda run: (run.status != "completed", -run.rows[-1]["flops"]))
            kept.append(best)
            if others:
                left = few([run.place for run in others])
                notes.append(f"'{label}': seed {plain(seed)} is there {len(twins)} times; left out: {left}")
        groups.append(Group(label, tuple(kept)))
    return tuple(sorted(groups, key=lambda group: in_order(group.label))), notes


def settings(run: Run) -> dict[str, Any]:
    """The keys that may change the result, but for the seed.

    Every seed may have a source of its own in a folder of its own: one is the same as another that took as much and
    whose path is the same but for numbers.
    """

    def counts(key: str) -> bool:
        section = key.partition(".")[0]
        idle = key in _IDLE or section in _IDLE_SECTIONS
        return not idle and not (run.is_scratch and (section in _GROWTH_SECTIONS or key in _GROWTH_KEYS))

    found = {key: run.config[key] for key in sorted(run.config) if counts(key)}
    if found.get(_SOURCE) is not None and run.source_flops is not None:
        found[_SOURCE] = f"{re.sub('[0-9]+', '#', str(found[_SOURCE]))} of {run.source_flops:g} FLOPs"
    return found


def differing(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """The settings in which these runs differ, each with its value in every run; empty for none."""
    found = [settings(run) for run in runs]
    keys = sorted({key for each in found for key in each}, key=_rank)
    return [
        (key, ["" if each.get(key) is None else _cut(plain(_value(each[key]))) for each in found])
        for key in keys
        if _count(found, [key]) > 1
    ]


def _labels(groups: Sequence[Sequence[Run]]) -> list[str]:
    """A label for each group: the `name` that is its own, else the values of what differs.

    The default name says nothing, but for one among others that all have names of their own.
    """
    names = [{str(run.config.get("name")) for run in group} for group in groups]
    owners = Counter(name for found in names for name in found)
    own = [len(found) == 1 and all(owners[n] == 1 for n in found) for found in names]
    only = len(groups) > 1 and all(own)
    named = [is_own and (only or _default_name() not in found) for is_own, found in zip(own, names, strict=True)]
    unnamed = [settings(group[0]) for group, has_name in zip(groups, named, strict=True) if not has_name]
    labels: list[str] = []
    for group, found, has_name in zip(groups, names, named, strict=True):
        label = next(iter(found)) if has_name else _by_values(group[0], unnamed)
        label = _cut(plain(label), _LONGEST_LABEL)
        twins = sum(other == label or other.startswith(f"{label} (") for other in labels)
        labels.append(f"{label} ({twins + 1})" if twins else label)
    return labels


def _by_values(run: Run, methods: Sequence[dict[str, Any]]) -> str:
    """`scratch`, or the sampler; and each key in which runs of this sort differ, what tells most first."""
    own = settings(run)
    peers = [other for other in methods if _is_scratch(other) == run.is_scratch]
    keys = sorted({key for other in peers for key in other}, key=_rank)
    differing = [key for key in keys if _count(peers, [key]) > 1]
    told: list[str] = []
    for key in differing:
        if key.startswith(_FIRST) or _count(peers, [*told, key]) > _count(peers, told):
            told.append(key)
    named = not differing or any(key.startswith("sampler.") for key in told)
    covered = ("schedule.layers",) if run.is_scratch else ("sampler.kind", "sampler.k") if named else ()
    tokens = [_token(key, own[key]) for key in told if key not in covered and own.get(key) is not None]
    first = ["scratch"] if run.is_scratch else list(_sampler(own)) if named or not tokens else []
    return " ".join([*first, *tokens])


def _rank(key: str) -> tuple[int, str]:
    """The place of a key in a label."""
    first = next((i for i, start in enumerate(_FIRST) if key.startswith(start)), len(_FIRST))
    return first + (first == len(_FIRST) and key.startswith(_LAST)), key


def _count(methods: Sequence[dict[str, Any]], keys: Sequence[str]) -> int:
    """How many of these methods are told apart by the keys."""
    return len({_text(method, keys) for method in methods})


def _text(method: dict[str, Any], keys: Sequence[str]) -> str:
    return json.dumps([method.get(key) for key in keys], default=str)


def _is_scratch(method: dict[str, Any]) -> bool:
    return bool(method.get("schedule.layers") == [method.get("model.layers")])


def _sampler(method: dict[str, Any]) -> Iterator[str]:
    yield f"sampler={method.get('sampler.kind')}"
    if "sampler.k" in method:
        yield _token("sampler.k", method["sampler.k"])


def _token(key: str, value: Any) -> str:
    """`lr=0.001`, `expander=stack`, `layers=1-3-6-12`."""
    section, _, name = key.rpartition(".")
    short = {"kind": section, "every": key, "rows": key, "size": key, "micro": key}.get(name, name)
    short = key if key == "model.layers" else short
    return f"{short}={_value(value)}"


def _value(value: Any) -> str:
    return (
        "-".join(map(str, value)) if isinstance(value, list) else f"{value:g}" if _is_number(value) else str(value)
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _default_name() -> str:
    return str(yaml.safe_load((conf_folder() / "config.yaml").read_text(encoding="utf-8"))["name"])


def _cut(text: str, length: int = 80) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
