"""Files as other programs write, join and damage them."""

import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from apollo_cli.data.sources import TextFiles
from apollo_cli.errors import DataError

MARK = "\ufeff"


def read(path: Path, content: str | bytes | None = None, **options: Any) -> list[str]:
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(TextFiles((str(path),), **options).documents())


def refusal(path: Path, content: str | bytes | None = None, **options: Any) -> str:
    with pytest.raises(DataError) as error:
        read(path, content, **options)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(str(path))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", f"{MARK}one\n\ntwo\n\n{MARK}three\n", ["one", "two", "three"]),
        ("a.txt", f"one\r\n\r\n{MARK}two\r\n", ["one", "two"]),
        ("a.txt", f"{MARK}the first ends here{MARK}and here", ["the first ends hereand here"]),
        ("a.txt", f"a file without one has a word{MARK}joiner", [f"a file without one has a word{MARK}joiner"]),
        ("a.jsonl", f'{MARK}{{"text": "one"}}\n{MARK}{{"text": "two"}}\n', ["one", "two"]),
        ("a.json", f'{MARK}{{"text": "one"}}\n{MARK}{{"text": "two"}}', ["one", "two"]),
        ("a.csv", f"{MARK}n,text\n1,one\n{MARK}n,text\n2,two\n", ["one", "two"]),
        ("a.tsv", f"{MARK}n\ttext\n1\tone\n{MARK}n\ttext\n2\ttwo\n", ["one", "two"]),
    ],
)
def test_marks_and_names_of_joined_files_are_no_text(
    tmp_path: Path, name: str, content: str, expected: list[str]
) -> None:
    assert read(tmp_path / name, content) == expected


def test_a_mark_counts_in_the_offset_of_a_bad_byte(tmp_path: Path) -> None:
    content = f"{MARK}one\n{MARK}tw".encode() + b"\xff\n"
    assert ", line 2, byte offset 12 of the file: 0xff" in refusal(tmp_path / "a.txt", content)


def speech(names: str, rows: list[str]) -> str:
    """A table of which a quote in the first row closes in the last one."""
    rows = [f'{rows[0][:-4]}"{rows[0][-4:]}', *rows[1:-1], f'{rows[-1]}"']
    return "".join(f"{row}\n" for row in [names, "0\tbefore", *rows, "9\tafter"])


@pytest.mark.parametrize("distance", [2, 3, 20])
def test_a_quote_that_could_merge_rows_of_a_tsv_is_refused_where_it_opens(tmp_path: Path, distance: int) -> None:
    content = speech("id\ttext", [f"{i}\tline" for i in range(distance)])
    message = refusal(tmp_path / "a.tsv", content)
    assert f", line 3: a quote opens a field there and closes {distance - 1} lines below" in message
    assert ", line 2: a quote opens" in refusal(tmp_path / "b.tsv", 'text\n"one\ntwo"\nthree\n')


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ('1\t"one, ""two""\nthree"\n2\tfour\n', ['one, "two"\nthree', "four"]),
        ('1\t"one\ttab\nand a line"\n', ["one\ttab\nand a line"]),
        ('1\t"quoted"\n2\tthe "middle" one\n', ["quoted", 'the "middle" one']),
    ],
)
def test_fields_in_quotes_are_read_in_a_tsv(tmp_path: Path, rows: str, expected: list[str]) -> None:
    assert read(tmp_path / "a.tsv", f"id\ttext\n{rows}") == expected


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "a.csv",
            f"{MARK}id;text\r\n1;a\r\n",
            r", line 1: its columns are parted by ';', and those of a .csv by ','",
        ),
        ("a.csv", "\nid\ttext\n1\ta\n", r", line 2: its columns are parted by '\t', and those of a .csv by ','"),
        ("a.tsv", "id,text\n1,a\n", r", line 1: its columns are parted by ',', and those of a .tsv by '\t'"),
        ("a.csv", '"id";"text"\n1;a\n', ", line 1: its columns are parted by ';', and those of a .csv by ','"),
        ("a.csv", '"id" "text"\n1;a\n', ", line 1: not a table"),
        (
            "a.json",
            '["one"]',
            ', line 1: "one" is no object with a text; write an object for each text, {"text": "..."}',
        ),
        (
            "a.jsonl",
            '{"text": [1]}\n',
            ", line 1: the field 'text' holds [1], not text; write an object for each text",
        ),
        ("a.csv", 'text\na\n"b\nc\nd\n', ", line 3: not a table (a quote opens a field there and never closes)"),
        ("a.tsv", 'n\ttext\n1\t"b\n2\tc\n', ", line 2: not a table (a quote opens a field there and never closes)"),
        ("a.csv", 'text\n"a\nb" c\n', ", line 2: not a table"),
        ("a.csv", 'n,text\n1,"a\nb",c\n', ", line 2: 3 columns, and the first row names 2"),
    ],
)
def test_what_is_wrong_with_a_table_is_named_with_the_line_where_it_begins(
    tmp_path: Path, name: str, content: str, said: str
) -> None:
    assert refusal(tmp_path / name, content).startswith(said)


@pytest.mark.parametrize(
    "content",
    [
        json.dumps([{"text": f"document {i} of the array"} for i in range(40_000)]),
        json.dumps({"text": "a", "rest": [0] * 500_000}),
        json.dumps([{"text": "a", "rest": list(range(100_000))}], indent=0),
    ],
    ids=["one line", "one object", "many lines"],
)
def test_the_time_to_read_json_grows_with_its_length(tmp_path: Path, content: str) -> None:
    started = time.perf_counter()
    assert len(read(tmp_path / "a.json", content)) == content.count('"text"')
    assert time.perf_counter() - started < 3  # 20 s where it grew with the square


def test_a_cut_text_with_many_quotes_is_refused_at_once(tmp_path: Path) -> None:
    started = time.perf_counter()
    assert ", line 1: not JSON" in refusal(tmp_path / "a.json", '[{"text": "' + '\\"' * 300_000 + "\n")
    assert time.perf_counter() - started < 3


def test_rows_between_blocks_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apollo_cli.data.readers._JSON_BLOCK", 10)
    rows = [{"text": f"{i}", "more": {"a": [i] * (i % 7)}} for i in range(50)]
    expected = [row["text"] for row in rows]
    assert read(tmp_path / "a.json", json.dumps(rows, indent=1)) == expected
    assert read(tmp_path / "b.json", "\n".join(json.dumps(row, indent=2) for row in rows)) == expected
    assert ", line 4: not JSON" in refusal(tmp_path / "c.json", '[\n{"text":\n "a"},\n{"text":\n\n x}\n]')


TEXTS = ["one", "zwei €", None, ""]
KINDS = {
    "text": pa.array(TEXTS),
    "long": pa.array(TEXTS, pa.large_string()),
    "view": pa.array(TEXTS, pa.string_view()),
    "bytes": pa.array([t if t is None else t.encode() for t in TEXTS], pa.binary()),
    "long bytes": pa.array([t if t is None else t.encode() for t in TEXTS], pa.large_binary()),
    "categories": pa.array(TEXTS).dictionary_encode(),
    "categories of bytes": pa.array([t if t is None else t.encode() for t in TEXTS]).dictionary_encode(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_text_is_read_however_a_column_stores_it(tmp_path: Path, kind: str) -> None:
    table = pa.table({"n": range(4), "text": KINDS[kind]})
    pq.write_table(table, tmp_path / "a.parquet", store_schema=kind != "bytes")
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    assert read(tmp_path / "a.parquet") == read(tmp_path / "a.arrow") == ["one", "zwei €", "", ""]


@pytest.mark.parametrize(
    ("columns", "field", "said"),
    [
        ({"text": [["a", "b"]]}, "text", ": the column 'text' holds list<"),
        ({"text": [1.5]}, "text", ": the column 'text' holds double, not text"),
        ({"text": pa.array([1, 1]).dictionary_encode()}, "text", ": the column 'text' holds int64"),
        ({"doc": [{"text": "a"}]}, "doc.text", ": no column 'doc.text' (it has: doc of struct<text: string>)"),
        ({"text": [b"caf\xe9"]}, "text", ": the column 'text' is not UTF-8"),
    ],
)
def test_what_is_no_text_is_named_with_its_kind(
    tmp_path: Path, columns: dict[str, Any], field: str, said: str
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert refusal(tmp_path / "a.parquet", text_field=field).startswith(said)


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    assert refusal(tmp_path / "a.arrow") == ": two columns are named 'text'; rename one, or set data.text_field"
    assert "two columns are named 'text'" in refusal(tmp_path / "a.csv", b"id,text,text\n1,good,bad\n")


@pytest.mark.parametrize("form", [pa.ipc.new_file, pa.ipc.new_stream])
def test_an_arrow_file_that_points_outside_of_itself_is_refused(tmp_path: Path, form: Any) -> None:
    texts = pa.array(["one", "two"], pa.large_string())
    with form(str(tmp_path / "a.arrow"), pa.schema({"text": texts.type})) as writer:
        writer.write_table(pa.table({"text": texts}))
    content = (tmp_path / "a.arrow").read_bytes()
    offsets, outside = (np.array(o, np.int64).tobytes() for o in ([0, 3, 6], [0, 3, 1 << 40]))
    assert content.count(offsets) == 1
    assert read(tmp_path / "a.arrow") == ["one", "two"]
    assert ": cannot be read as arrow (" in refusal(tmp_path / "a.arrow", content.replace(offsets, outside))


def test_an_arrow_stream_with_zeros_in_its_middle_is_refused(tmp_path: Path) -> None:
    """Four zeros are the mark of its end, so the batches behind them would be left out."""
    table = pa.table({"text": [f"document {i}" for i in range(400)]})
    with pa.ipc.new_stream(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=100)
    content = (tmp_path / "a.arrow").read_bytes()
    starts = [match.start() for match in re.finditer(b"\xff\xff\xff\xff", content)]
    assert len(starts) == 6  # the schema, four batches, the end
    assert len(read(tmp_path / "a.arrow")) == 400
    damaged = content[: starts[3]] + bytes(50) + content[starts[3] + 50 :]
    said = "its stream ends before the file does"
    assert f": cannot be read as arrow ({said})" in refusal(tmp_path / "a.arrow", damaged)
    assert said in refusal(tmp_path / "a.arrow", content + content)  # two joined by cat


def test_a_page_of_parquet_that_differs_from_its_checksum_is_refused(tmp_path: Path) -> None:
    table = pa.table({"text": [f"document {i}" for i in range(400)]})
    options: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
    pq.write_table(table, tmp_path / "a.parquet", **options)
    content = (tmp_path / "a.parquet").read_bytes()
    assert len(read(tmp_path / "a.parquet")) == 400
    damaged = content.replace(b"document 200", b"dOcument 200", 1)
    assert ": cannot be read as parquet (" in refusal(tmp_path / "a.parquet", damaged)


def test_a_directory_stands_for_the_files_of_known_kinds_in_it(tmp_path: Path) -> None:
    for name in (
        "b.txt",
        "a.jsonl.gz",
        "deep/c.csv",
        "code.py",
        "picture.png",
        ".hidden/d.txt",
        "deep/.e.txt",
        "f",
    ):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text("text\nbody\n")
    found = [path.name for path in TextFiles((str(tmp_path / "in"),)).paths()]
    assert found == ["a.jsonl.gz", "b.txt", "c.csv"]
    assert [path.name for path in TextFiles((str(tmp_path / "*"),)).paths()] == found
