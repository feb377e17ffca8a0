"""The schema of `data`: the corpus, its tokenizer and its rows."""

import os
from collections.abc import Mapping
from copy import deepcopy
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from apollo_cli.config.schema import List, Names, Section, Seed, Size
from apollo_cli.data.recipe import BYTES, SPECIAL_TOKENS, byte_vocabulary

Weight = Annotated[float, Field(gt=0)] | None


class PyDocsKeys(Section):
    """Keys of a source: the documentation on this machine."""

    kind: Literal["pydocs"]
    weight: Weight = None  # of a source in data.sources


class TextKeys(Section):
    """Keys of a source: text files."""

    kind: Literal["text"]
    files: Names
    validation_files: Names
    document: Literal["blank_line", "line", "file"]
    text_field: str
    errors: Literal["strict", "replace"]
    weight: Weight = None


OneOfEach = Annotated[tuple[str | None, ...], List, BeforeValidator(lambda v: v if isinstance(v, list) else [v])]


class HubKeys(Section):
    """Keys of a source: datasets of the hub."""

    kind: Literal["hub"]
    path: Annotated[Names, AfterValidator(lambda paths: tuple(map(os.path.expanduser, paths)))]
    name: OneOfEach
    revision: OneOfEach
    split: str
    validation_split: str | None
    streaming: bool
    text_field: str
    weight: Weight = None


_FINEST = 10_000  # rows in which each source has its share
_SOURCES: dict[str, type[Section]] = {"pydocs": PyDocsKeys, "text": TextKeys, "hub": HubKeys}
MixedSource = Annotated[PyDocsKeys | TextKeys | HubKeys, Field(discriminator="kind")]


class DataArgs(Section):
    """`data`: the corpus, its tokenizer, its rows."""

    seq_len: Annotated[Size, Field(ge=4)]
    vocab_size: Size
    tokenizer: str
    validation: Annotated[float, Field(gt=0, le=0.5)]  # more is probably the share for training
    validation_seed: Seed
    cache_dir: str | None
    inspect: bool


class PyDocsArgs(PyDocsKeys, DataArgs):
    """data=pydocs."""


class TextArgs(TextKeys, DataArgs):
    """data=text."""


class HubArgs(HubKeys, DataArgs):
    """data=hub and its presets."""


class MixtureArgs(DataArgs):
    """data=mixture: keys that a source leaves out are taken from those beside `sources`."""

    kind: Literal["mixture"]
    sources: Annotated[tuple[MixedSource, ...], List]
    validation_files: Names
    document: str
    text_field: str
    errors: str
    name: str | None
    revision: str | None
    split: str
    validation_split: str | None
    streaming: bool
    weight: Weight

    @classmethod
    def located(cls, prefix: str, detail: Any) -> tuple[str, list[str]]:
        """The key within one of the sources, for an error in `sources`."""
        if detail["loc"][0] != "sources" or len(detail["loc"]) == 1:
            return super().located(prefix, detail)
        number, *rest = detail["loc"][1:]
        detail["loc"] = detail["loc"][:1]
        source = f"{prefix}sources[{number}]"
        if detail["type"].startswith("union_tag"):
            detail |= {"input": detail["input"].get("kind"), "msg": f"should be one of {', '.join(_SOURCES)}"}
            return f"{source}.kind", []
        if not rest:
            return source, []
        kind, *key = rest
        known = [f"{source}.{name}" for name in _SOURCES[str(kind)].model_fields]
        return ".".join([source, *map(str, key[:1])]), known


DATA_FAMILY: tuple[type[Section], ...] = (PyDocsArgs, TextArgs, HubArgs, MixtureArgs)


def completed(values: Mapping[str, Any], model: Any) -> Mapping[str, Any]:
    """The plain values of the section, with those that follow from others.

    In a mixture each source gets its missing keys from those beside `sources`. With data.tokenizer=bytes,
    `vocab_size` is the number of entries of that tokenizer for this kind of model. Both may be invalid.
    """
    values = dict(values)
    if values.get("tokenizer") == BYTES and model in list(SPECIAL_TOKENS):
        values["vocab_size"] = byte_vocabulary(model)
    if values.get("kind") == "mixture" and isinstance(sources := values.get("sources"), list):
        values["sources"] = [_whole_source(source, values) for source in sources]
    return values


def _whole_source(source: Any, beside: Mapping[str, Any]) -> Any:
    kind = source.get("kind") if isinstance(source, Mapping) else None
    if kind not in list(_SOURCES):
        return source
    shared = {key: beside[key] for key in _SOURCES[kind].model_fields if key in beside and key != "kind"}
    return deepcopy(shared | dict(source))  # YAML would write shared objects as aliases


def data_problems(data: DataArgs) -> list[str]:
    """Messages of the rules between keys."""
    mixed = data.sources if isinstance(data, MixtureArgs) else ()
    of_one = [("data", data), *((f"data.sources[{i}]", source) for i, source in enumerate(mixed))]
    found = [problem for where, of in of_one if isinstance(of, HubKeys) for problem in _hub_problems(where, of)]
    return found + _weight_problems(mixed, is_streamed(data)) + _validation_problems(mixed)


def is_streamed(data: DataArgs) -> bool:
    """Whether the corpus, or a part of it, is packed only as far as a run needs it."""
    each = data.sources if isinstance(data, MixtureArgs) else (data,)
    return any(isinstance(of, HubKeys) and of.streaming for of in each)


def _hub_problems(where: str, of: HubKeys) -> list[str]:
    for key, values in (("name", of.name), ("revision", of.revision if any(of.revision) else of.path)):
        if of.path and len(of.path) != len(values):
            return [f"{where}.path has {len(of.path)} entries and {where}.{key} {len(values)}: give one for each"]
    if of.streaming and len(of.path) > 1:
        return [
            f"{where}.streaming=true: a streamed dataset is not read to its end, so several need weights; type "
            "data=mixture with each of them in data.sources"
        ]
    return []


def _weight_problems(mixed: tuple[MixedSource, ...], streamed: bool) -> list[str]:
    weights = [source.weight for source in mixed]
    found = []
    if None in weights and any(weight is not None for weight in weights):
        found.append("data.sources: some have a weight and some have none; give it to all or to none")
    elif None in weights and len(weights) > 1 and streamed:
        found.append("data.sources: a streamed source has no known size to be mixed by; give every source a weight")
    shares = [weight for weight in weights if weight is not None]
    return found + [
        f"data.sources: a weight of {weight} is under 0.01 % of all: raise it or leave that source out"
        for weight in shares
        if weight < sum(shares) / _FINEST
    ]


def _validation_problems(mixed: tuple[MixedSource, ...]) -> list[str]:
    given = [bool(getattr(s, "validation_files", ()) or getattr(s, "validation_split", None)) for s in mixed]
    if not any(given) or all(given):
        return []
    return [
        "data.sources: validation_files or validation_split are given for some sources and not for others; "
        "give them for all, or for none to hold out data.validation of each"
    ]
