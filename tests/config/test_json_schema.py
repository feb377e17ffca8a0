"""The schema that editors read: current, and right about every YAML file that is shipped."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from apollo_cli.config.conf_folder import conf_folder
from apollo_cli.config.json_schema import schema_text
from apollo_cli.train import run

SCHEMA: dict[str, Any] = json.loads(schema_text())
FILES = [
    path
    for path in sorted(conf_folder().glob("**/*.yaml"))
    if path.relative_to(conf_folder()).parts[0] not in ("hydra", "glue.yaml")
]


def problems(values: Any, schema: dict[str, Any]) -> list[str]:
    from jsonschema import Draft7Validator

    whole = {**schema, "$defs": SCHEMA["$defs"]}
    return [
        f"{'.'.join(map(str, error.path))}: {error.message}" for error in Draft7Validator(whole).iter_errors(values)
    ]


def test_the_shipped_file_is_current(capsys: pytest.CaptureFixture[str]) -> None:
    """Else: apollo-train --schema > conf/schema.json."""
    assert run(["--schema"]) == 0
    assert capsys.readouterr().out == (conf_folder() / "schema.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(conf_folder())))
def test_a_shipped_file_names_its_schema_and_is_valid(path: Path) -> None:
    head = "".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[:2])
    named = re.search(r"^# yaml-language-server: \$schema=([^#\n]*)#?(.*)$", head, flags=re.MULTILINE)
    assert named
    assert (path.parent / named[1]).resolve() == (conf_folder() / "schema.json").resolve()
    schema = SCHEMA
    for part in named[2].split("/")[1:]:
        schema = schema[part]
    assert problems(OmegaConf.to_container(OmegaConf.load(path)), schema) == []


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"optim": {"lr": 0}}, "optim.lr"),
        ({"optim": {"schedule": "cosin"}}, "optim.schedule"),
        ({"data": {"seq_len": 3}}, "data.seq_len"),
        ({"schedule": {"layers": ["K/2"]}}, "schedule.layers"),
        ({"sampler": {"kind": "lvp"}}, "sampler.kind"),
        ({"budget": {"stesp": 4}}, "budget"),
        ({"seed": -1}, "seed"),
    ],
)
def test_a_wrong_value_is_found(values: dict[str, Any], key: str) -> None:
    found = problems(values, SCHEMA)
    assert found
    assert all(problem.startswith(f"{key}: ") for problem in found)


def test_keys_say_what_they_mean() -> None:
    k, rate = (SCHEMA["$defs"][group]["properties"][key] for group, key in (("sampler", "k"), ("optim", "lr")))
    assert k["description"].startswith("density of depth/N")
    assert k["description"].endswith("(of lvps)")
    assert k["default"] == 2
    assert rate["anyOf"][0] == {"type": "number", "exclusiveMinimum": 0}
    assert SCHEMA["properties"]["seed"]["default"] == 0


def test_it_is_printed_without_heavy_imports() -> None:
    code = "import sys; from apollo_cli.train import run; run(['--schema']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
