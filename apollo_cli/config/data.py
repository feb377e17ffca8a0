"""The schema of `data`: the corpus, its tokenizer and its rows."""

import os
from collections.abc import Iterator, Mapping
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

    def problems_at(self, where: str) -> Iterator[str]:
        """Messages about its keys, which are `where`.path and so on."""
        for key, values in (("name", self.name), ("revision", self.revision if any(self.revision) else self.path)):
            if self.path and len(self.path) != len(values):
                yield (
                    f"{where}.path has {len(self.path)} entries and {where}.{key} {len(values)}: give one for each"
                )
                return
        if self.streaming and len(self.path) > 1:
            yield (
                f"{where}.streaming=true: a streamed dataset is not read to its end, so several need weights; type "
                "data=mixture with each of them in data.sources"
            )


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

    def rule_problems(self) -> Iterator[str]:
        return self.problems_at("data")


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

    def rule_problems(self) -> Iterator[str]:
        for i, source in enumerate(self.sources):
            if isinstance(source, HubKeys):
                yield from source.problems_at(f"data.sources[{i}]")
        weights = [source.weight for source in self.sources if source.weight is not None]
        if 0 < len(weights) < len(self.sources):
            yield "data.sources: some have a weight and some have none; give it to all or to none"
        elif not weights and len(self.sources) > 1 and is_streamed(self):
            yield "data.sources: a streamed source has no known size to be mixed by; give every source a weight"
        for weight in weights:
            if weight < sum(weights) / _FINEST:
                problem = f"data.sources: a weight of {weight} is under 0.01 % of all"
                yield f"{problem}: raise it or leave that source out"
        given = [
            bool(getattr(source, "validation_files", ()) or getattr(source, "validation_split", None))
            for source in self.sources
        ]
        if any(given) and not all(given):
            yield (
                "data.sources: validation_files or validation_split are given for some sources and not for others; "
                "give them for all, or for none to hold out data.validation of each"
            )

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


def is_streamed(data: DataArgs) -> bool:
    """Whether the corpus, or a part of it, is packed only as far as a run needs it."""
    each = data.sources if isinstance(data, MixtureArgs) else (data,)
    return any(isinstance(of, HubKeys) and of.streaming for of in each)
