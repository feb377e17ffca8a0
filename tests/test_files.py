import json
import os
from pathlib import Path
from typing import NoReturn

import pytest

from apollo_cli import files
from apollo_cli.files import write_json, write_text


def test_text_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    for text in ("größe €\n", "", "shorter"):
        write_text(path, text)
        assert path.read_bytes() == text.encode()
    assert list(tmp_path.iterdir()) == [path]


def test_a_text_that_cannot_be_encoded_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \ud800")
    assert path.read_text(encoding="utf-8") == "old"


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_failure_while_writing_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    def fail(*_: object) -> NoReturn:
        raise OSError("the disk is full")

    path = tmp_path / "notes.txt"
    write_text(path, "old")
    with monkeypatch.context() as patch:
        patch.setattr(os if fails == "fsync" else Path, fails, fail)
        with pytest.raises(OSError, match="the disk is full"):
            write_text(path, "new")
    assert path.read_text(encoding="utf-8") == "old"
    write_text(path, "newer")
    assert path.read_text(encoding="utf-8") == "newer"


def test_a_reader_never_sees_a_file_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "notes.txt"
    write_text(path, "old")
    seen = []
    sync = os.fsync

    def look(descriptor: int) -> None:
        seen.append(path.read_text(encoding="utf-8"))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    write_text(path, "new" * 10_000)
    assert seen[0] == "old"
    assert set(seen) <= {"old", "new" * 10_000}


@pytest.mark.parametrize("value", [{"a": 1, "b": [1.5, None, True], "c": {"d": "größe"}}, [], "text", 10**30, None])
def test_json_is_read_back_unchanged(tmp_path: Path, value: object) -> None:
    path = tmp_path / "values.json"
    write_json(path, value)
    content = path.read_text(encoding="utf-8")
    assert json.loads(content) == value
    assert content.endswith("\n")


def test_a_value_that_json_cannot_hold_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "values.json"
    write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        write_json(path, {"new": {1, 2}})
    assert json.loads(path.read_text(encoding="utf-8")) == {"old": 1}


def test_a_command_is_shown_as_it_is_typed_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    for name in ("python", "tool"):
        (tmp_path / "bin" / name).touch(mode=0o755)
    monkeypatch.setattr("sys.executable", str(tmp_path / "bin" / "python"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nonexistent")
    assert files.command("tool") == "bin/tool"
    assert files.command("other") == "other"
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert files.command("tool") == "tool"


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (12_345_678, "12.3 MB"), (10**13, "10.0 TB")],
)
def test_bytes_are_shown_with_units(size: int, text: str) -> None:
    assert files.in_units(size) == text


@pytest.mark.parametrize(("number", "text"), [(0, "0 heads"), (1, "1 head"), (1200, "1,200 heads")])
def test_a_number_has_its_noun(number: int, text: str) -> None:
    assert files.counted(number, "head") == text


def test_names_are_in_the_order_of_their_numbers() -> None:
    names = ["k=10", "k=2", "k=1.5", "k=1", "scratch-10", "scratch-9", "b", "a"]
    assert sorted(names, key=files.in_order) == ["a", "b", "k=1", "k=1.5", "k=2", "k=10", "scratch-9", "scratch-10"]
