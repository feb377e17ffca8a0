"""The JSON schema of the config, by which editors complete, explain and check presets."""

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from apollo_cli.config.conf_folder import conf_folder
from apollo_cli.config.config import FAMILIES, RunArgs
from apollo_cli.config.schema import Section

_INTERPOLATION = {"$ref": "#/$defs/interpolation"}
_LAYERS = {"type": "string", "pattern": r"^([1-9]\d{0,3})?L(/[1-9]\d{0,3})?$"}  # of the target depth
_LISTS_OF_LAYERS = ("schedule.layers", "sampler.sizes")
_BOUNDS = {"gt": "exclusiveMinimum", "ge": "minimum", "lt": "exclusiveMaximum", "le": "maximum"}  # pydantic's names
_COMMENTED = re.compile(r"(?P<indent> *)(?P<key>\w+):(?P<value>.*?)(\s+# (?P<comment>.*))?")


def schema_text() -> str:
    """The schema as JSON: of a preset, every key of which may be missing; of a group's option in `$defs`.

    Types and ranges are those that `parse` checks; what a key means, and its value where all options of its group
    have the same, is read from the YAML files.
    """
    said, values = _said_in_yaml()
    groups = {name: _section(name, family, said, values) for name, family in FAMILIES.items()}
    own = _section("", (RunArgs,), said, values)["properties"]
    of_groups = {name: {"$ref": f"#/$defs/{name}"} for name in groups}
    of_hydra = {"defaults": {"type": "array"}, "hydra": {"type": "object"}, "experiment": {}}
    for group in groups.values():
        group["properties"]["defaults"] = {"type": "array"}
    return json.dumps(
        {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "title": "apollo-train",
            "description": "A preset of apollo-train: apollo-train --config-dir FOLDER experiment=NAME",
            "type": "object",
            "additionalProperties": False,
            "properties": own | of_groups | of_hydra,
            "$defs": {"interpolation": {"type": "string", "pattern": r"\$\{.+\}"}, **groups},
        },
        indent=1,
    )


def _section(
    name: str, family: tuple[type[Section], ...], said: Mapping[str, str], values: Mapping[str, list[Any]]
) -> dict[str, Any]:
    """An object with the keys of all kinds; a preset need not name the kind."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    owners: dict[str, list[str]] = defaultdict(list)
    for cls in family:
        schema = cls.model_json_schema()
        kind = schema["properties"].get("kind", {}).get("const")
        for key, of_key in schema["properties"].items():
            plain = _plain(of_key, schema.get("$defs", {}))
            found[key] += [plain] if plain not in found[key] else []
            owners[key] += [kind] if kind else []
    properties = {}
    for key, alternatives in found.items():
        dotted = f"{name}.{key}".lstrip(".")
        about = [said[dotted]] if dotted in said else []
        if 0 < len(owners[key]) < len(family):
            about.append(f"(of {', '.join(owners[key])})")
        known = values.get(dotted, [])
        properties[key] = {
            **({"description": " ".join(about)} if about else {}),
            **({"default": known[0]} if known and all(value == known[0] for value in known) else {}),
            **_also_written(dotted, alternatives, is_nullable=None in known),
        }
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _also_written(key: str, alternatives: list[dict[str, Any]], *, is_nullable: bool) -> dict[str, Any]:
    """What may stand in YAML, from what `parse` sees."""
    if all("const" in each for each in alternatives):
        return {"enum": [each["const"] for each in alternatives]}
    flat = [each for alternative in alternatives for each in alternative.get("anyOf", [alternative])]
    if all(each.get("type") == "string" and "enum" not in each for each in flat):
        return flat[0]  # an interpolation is a text as well
    for each in list(flat):
        if key in _LISTS_OF_LAYERS:
            each["items"] = {"anyOf": [each["items"], _LAYERS, _INTERPOLATION]}
        elif "items" in each:  # a text stands for a list of one
            items = each["items"].get("anyOf", [each["items"]])
            flat += [item for item in items if item in ({"type": "string"}, {"type": "null"})]
    flat += [{"type": "null"}] if is_nullable else []  # it follows from other keys
    return {"anyOf": [each for i, each in enumerate([*flat, _INTERPOLATION]) if each not in flat[:i]]}


def _plain(schema: Any, definitions: Mapping[str, Any]) -> Any:
    """Without titles, with the names of JSON schema for bounds, references replaced by what they refer to."""
    if isinstance(schema, list):
        return [_plain(each, definitions) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _plain(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    left_out = ("title", "default", "description", "discriminator", "required")
    renamed = {_BOUNDS.get(key, key): value for key, value in schema.items() if key not in left_out}
    return {
        key: {name: _plain(each, definitions) for name, each in value.items()}
        if key == "properties"
        else _plain(value, definitions)
        for key, value in renamed.items()
    }


def _said_in_yaml() -> tuple[dict[str, str], dict[str, list[Any]]]:
    """The comments on keys in `conf/`, the first one of each, and the values that its files give them."""
    said: dict[str, str] = {}
    values: dict[str, list[Any]] = {}
    chosen = yaml.safe_load((conf_folder() / "config.yaml").read_text(encoding="utf-8"))["defaults"]
    for path in sorted(conf_folder().glob("**/*.yaml"), key=lambda path: _rank(path, chosen)):
        group, *option = path.relative_to(conf_folder()).with_suffix("").parts
        if group in ("hydra", "experiment", "glue"):
            continue
        prefix = [] if not option or group == "size" else [group]
        for keys, value, comment in _lines(path):
            dotted = ".".join([*prefix, *keys])
            if comment and not comment.startswith("as in"):
                said.setdefault(dotted, comment)
            if value:
                values.setdefault(dotted, []).append(yaml.safe_load(value))
    return said, values


def _rank(path: Path, chosen: list[Any]) -> tuple[int, Path]:
    """Whose comments come first: config.yaml, the default options, others, those that begin with another option."""
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    begins_with = [each for each in values.get("defaults", []) if isinstance(each, str) and each[0] != "_"]
    if path.parent == conf_folder():
        return 0, path
    return 3 if begins_with else 1 if {path.parent.name: path.stem} in chosen else 2, path


def _lines(path: Path) -> list[tuple[list[str], str, str]]:
    """The keys of a file, with their parents, their values as they are written, and the comments beside them."""
    found: list[tuple[list[str], str, str]] = []
    parents: list[tuple[int, str]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith(" ") and line.strip().startswith("# ") and found and found[-1][2]:
            keys, value, comment = found[-1]
            found[-1] = keys, value, f"{comment} {line.strip()[2:]}"
        elif match := _COMMENTED.fullmatch(line):
            indent = len(match["indent"])
            parents = [*(parent for parent in parents if parent[0] < indent), (indent, match["key"])]
            found.append(([key for _, key in parents], match["value"].strip(), match["comment"] or ""))
    return found
