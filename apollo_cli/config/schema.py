"""Base class and value types of all sections of the config, and messages about invalid values."""

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from apollo_cli.config.renamed import RENAMED


def whole(value: Any) -> Any:
    """An int for a float without fraction: 1e15 is a float in YAML."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def as_typed(value: Any) -> str:
    """A plain value as it is typed, a text without quotes."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots: {"sampler.k": 2, ...}."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def matching(pattern: str, meaning: str) -> AfterValidator:
    """A validator that refuses a text that does not match the pattern, with the message `meaning`."""

    def checked(value: str) -> str:
        if not re.search(pattern, value):
            raise ValueError(meaning)
        return value

    return AfterValidator(checked)


Whole = Annotated[int, BeforeValidator(whole), Field(gt=0, le=10**30)]
Size = Annotated[int, BeforeValidator(whole), Field(gt=0, le=10_000_000)]
Seed = Annotated[int, BeforeValidator(whole), Field(ge=0, le=2**63 - 1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Word = Annotated[str, BeforeValidator(lambda v: str(v) if type(v) is int else v)]  # 2024 is a valid name
List = Field(strict=False)  # a list of YAML becomes a tuple
Names = Annotated[tuple[str, ...], List, BeforeValidator(lambda v: [v] if isinstance(v, str) else v)]


class Section(BaseModel):
    """A section of the config: frozen, strict types, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @classmethod
    def located(cls, prefix: str, detail: Any) -> tuple[str, list[str]]:
        """The key of a pydantic error, and the known keys of its section."""
        return prefix + str(detail["loc"][0]), [prefix + name for name in cls.model_fields]

    def rule_problems(self) -> Iterable[str]:
        """Messages about keys that are valid each and do not fit together."""
        return ()


S = TypeVar("S", bound=Section)


def member(
    name: str, family: tuple[type[Section], ...], values: Mapping[str, Any], problems: list[str]
) -> type[Section] | None:
    """The class of the family for the `kind` of the values; None, and a new problem, for an unknown kind."""
    by_kind = {
        kind: cls
        for cls in family
        if "kind" in cls.model_fields
        for kind in get_args(cls.model_fields["kind"].annotation)
    }
    if not by_kind or (kind := values.get("kind")) is None:
        return family[0]
    if isinstance(kind, str) and kind in by_kind:
        return by_kind[kind]
    kinds = ", ".join(by_kind)
    problems.append(f"{name}.kind={kind}: should be one of {kinds}; type {name}=NAME, which also sets its keys")
    return None


def validate(cls: type[S], prefix: str, values: Mapping[str, Any], problems: list[str]) -> S | None:
    """The section of these values; None if a key is invalid. Adds a problem for each such key or broken rule."""
    try:
        section = cls.model_validate(dict(values))
        problems += section.rule_problems()
        return section
    except ValidationError as error:
        seen = set()
        for detail in error.errors():
            key, known = cls.located(prefix, detail)
            if key not in seen:  # a union has an error for each of its members
                seen.add(key)
                problems.append(_sentence(key, detail, known))
        return None


def _sentence(key: str, detail: Any, known: list[str]) -> str:
    typed = as_typed(detail["input"])
    if detail["type"] == "extra_forbidden":
        if new := RENAMED.get(key):
            return f"{key}={typed}: renamed to {new}={typed}"
        if key == "size":  # a size of the user's own, in the wrong place
            return "size: its file sets keys of other groups, so `# @package _global_` must be its first line"
        return f"{key}: no such key{closest(key, known)}"
    if detail["type"] == "missing" and len(detail["loc"]) == 1:
        remedy = "" if "[" in key else f"; type {key}={'RUN_DIR' if key == 'run' else 'VALUE'}"
        return f"{key}: missing{remedy}"
    if detail["type"] == "tuple_type":
        return f"{key}={typed}: should be a list, for example '{key}=[1,3]'"
    message = detail["msg"].replace("Input should", "should").removeprefix("Value error, ")
    hint = ""
    is_text = isinstance(detail["input"], str) and re.fullmatch(r"[-+.\deE]*\d[-+.\deE]*", detail["input"])
    if detail["type"] in ("int_type", "float_type") and is_text:
        hint = f"; this is a text: of an environment variable type '{key}=\"${{oc.decode:${{oc.env:NAME}}}}\"'"
    if detail["type"] == "literal_error":
        hint = closest(typed, re.findall(r"'([^']*)'", detail["ctx"]["expected"]))
    return f"{key}={typed}: {message}{hint}"


def closest(word: str, known: list[str]) -> str:
    """'; did you mean X?' with the closest known word, or an empty text; optim.lr is closest to lr."""
    if word.lower() in known:
        return f"; did you mean {word.lower()}?"
    ends = [key for key in known if key.rpartition(".")[2] == word.rpartition(".")[2]]
    near = get_close_matches(word, ends, n=3, cutoff=0) or get_close_matches(word, known, n=1)
    near = near or [key for key in known if key.startswith(word) and len(word) > 2][:3]
    return f"; did you mean {' or '.join(near)}?" if near else ""
