"""Writes configuration.md from the schema and the YAML files: python docs/configuration.py."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from apollo_cli.cli.help import groups
from apollo_cli.config.hydra_syntax import compose_values
from apollo_cli.config.json_schema import schema_text

PAGE = Path(__file__).with_name("configuration.md")
_HEAD = """\
# Configuration

<!-- Written by `python docs/configuration.py` from the schema and conf/; a test holds it current. -->

Every key is typed as `KEY=VALUE`, every option of a group as `GROUP=OPTION`.
`apollo-train --cfg job` prints the config of a command.
The default is that of `apollo-train` alone; an option of a group or an experiment may set another value.
A number may be an expression of Hydra such as `${model.layers}`.
"""
_BOUNDS = {"exclusiveMinimum": "> ", "minimum": "≥ ", "exclusiveMaximum": "< ", "maximum": "≤ "}
_OBVIOUS = 10_000_000  # upper bounds from here on only keep out typing errors
_PLURALS = {"array": "lists", "integer": "integers", "number": "numbers", "string": "texts", "null": "null"}


def page() -> str:
    """The whole page as Markdown: for each group its options, and its keys with type, default and meaning."""
    schema = json.loads(schema_text())
    defaults = compose_values([])
    options = groups()
    own = {key: of_key for key, of_key in schema["properties"].items() if "$ref" not in of_key}
    plain = {key: of_key for key, of_key in own.items() if key not in ("defaults", "hydra", "experiment")}
    lines = [_HEAD, "## Keys without a group", "", *_keys("", plain, defaults)]
    names = [key for key, of_key in schema["properties"].items() if "$ref" in of_key]
    for name in (*(group for group in options if group not in names), *names):
        lines += ["", f"## {name}", ""]
        if name in options:
            lines += ["| option | what it is |", "| --- | --- |"]
            lines += [f"| `{name}={option}` | {_said(option, text)} |" for option, text in options[name].items()]
            lines += [""]
        if name in names:
            lines += _keys(f"{name}.", schema["$defs"][name]["properties"], defaults.get(name) or {})
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def _said(option: str, sentence: str) -> str:
    """The first sentence of an option's file; that of an experiment without its command."""
    return _escaped(re.sub(rf"^apollo-train (-m )?experiment={option}: ", "", sentence))


def _keys(prefix: str, properties: Mapping[str, Any], defaults: Mapping[str, Any]) -> Iterator[str]:
    """The table of the keys of a group."""
    yield from ("| key | type | default | meaning |", "| --- | --- | --- | --- |")
    for key, of_key in properties.items():
        if key in ("kind", "defaults") or (key not in defaults and "description" not in of_key):
            continue  # set by the option of the group, or never typed
        value = defaults.get(key, of_key.get("default", ...))
        text = value if isinstance(value, str) else "" if value is ... else json.dumps(value, ensure_ascii=False)
        default = f"`{text}`" if text else ""
        yield f"| `{prefix}{key}` | {_type(of_key)} | {default} | {_escaped(of_key.get('description', ''))} |"


def _type(schema: Mapping[str, Any]) -> str:
    """What a value may be, for example "integer > 0, or null"."""
    alternatives = [each for each in schema.get("anyOf", [schema]) if "$ref" not in each]
    is_nullable = {"type": "null"} in alternatives
    found = list(dict.fromkeys(_plain_type(each) for each in alternatives if each != {"type": "null"}))
    return " or ".join(found) + (", or null" if is_nullable else "")


def _plain_type(schema: Mapping[str, Any]) -> str:
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return ", ".join(f"`{json.dumps(value).strip(chr(34))}`" for value in values)
    if schema.get("type") == "array":
        return f"list of {_items(schema)}"
    if schema.get("type") == "object":
        return "a mapping"
    bounds = [f"{sign}{schema[name]:,}" for name, sign in _BOUNDS.items() if schema.get(name, _OBVIOUS) < _OBVIOUS]
    return {"boolean": "`true`, `false`", "string": "text"}.get(
        schema["type"], ", ".join([schema["type"], *bounds])
    )


def _items(schema: Mapping[str, Any]) -> str:
    """The entries of a list, in the plural."""
    items = schema.get("items", {})
    if "prefixItems" in schema:
        return f"{len(schema['prefixItems'])} {_items({'items': schema['prefixItems'][0]})}"
    alternatives = [each for each in items.get("anyOf", [items]) if "$ref" not in each]
    if all("enum" in each or "const" in each for each in alternatives):
        return " or ".join(map(_plain_type, alternatives))
    names = [
        "parts of L" if "pattern" in each else _PLURALS.get(each.get("type"), "mappings") for each in alternatives
    ]
    return " or ".join(dict.fromkeys(names))


def _escaped(text: str) -> str:
    """Text for a cell of a table."""
    return re.sub(r"([|<>*])", r"\\\1", text)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
