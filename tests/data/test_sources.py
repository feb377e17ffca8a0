import bz2
import csv
import errno
import gzip
import io
import json
import lzma
import os
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from apollo_cli.data import sources
from apollo_cli.data.corpus import load_corpus
from apollo_cli.data.hub import Hub
from apollo_cli.data.mixture import Mixture
from apollo_cli.data.recipe import Bound, Recipe
from apollo_cli.data.sources import Part, PyDocs, Source, TextFiles, _docstrings, _documentation
from apollo_cli.errors import DataError

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": zstandard.compress,
}
TEXT = "first line\n second line\n\n \t\n\nthird line\n\nlast"


def read(*patterns: Path | str, **options: Any) -> list[str]:
    return list(TextFiles(tuple(map(str, patterns)), **options).documents())


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ("blank_line", ["first line\n second line", "third line", "last"]),
        ("line", ["first line", "second line", "third line", "last"]),
        ("file", [TEXT]),
    ],
)
def test_a_txt_file_is_cut_into_documents(tmp_path: Path, document: str, expected: list[str]) -> None:
    assert read(write(tmp_path / "a.txt", TEXT), document=document) == expected


def test_windows_line_ends_separate_documents_too(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.txt", "one\r\n\r\ntwo\r\n")) == ["one", "two"]


@pytest.mark.parametrize("text", ["", "\n\n \n"])
@pytest.mark.parametrize("document", ["blank_line", "line", "file"])
def test_a_file_without_text_has_no_documents(tmp_path: Path, document: str, text: str) -> None:
    assert read(write(tmp_path / "a.txt", text), document=document) == []


def test_documents_never_cross_files(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "one")
    write(tmp_path / "b.txt", "two")
    assert read(tmp_path / "*.txt") == ["one", "two"]


def test_a_name_without_a_suffix_is_text(tmp_path: Path) -> None:
    assert read(write(tmp_path / "corpus", "one\n\ntwo")) == ["one", "two"]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_compressed_txt_reads_as_the_plain_one(tmp_path: Path, suffix: str) -> None:
    assert read(write(tmp_path / f"a.txt{suffix}", COMPRESS[suffix](TEXT.encode()))) == [
        "first line\n second line",
        "third line",
        "last",
    ]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_archives_that_were_concatenated_are_read_to_the_end(tmp_path: Path, suffix: str) -> None:
    compress = COMPRESS[suffix]
    assert read(write(tmp_path / f"a.txt{suffix}", compress(b"one\n\n") + compress(b"two\n\n"))) == ["one", "two"]


def test_jsonl_takes_the_named_field(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", lines({"text": "no", "body": "yes"}) + "\n" + lines({"body": "also"}))
    assert read(path, text_field="body") == ["yes", "also"]


def test_rows_without_text_are_blank_documents_in_every_format(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["one", None, "", "two"]}), tmp_path / "a.parquet")
    rows = [{"text": text} for text in ("one", None, "", "two")]
    paths = [
        tmp_path / "a.parquet",
        write(tmp_path / "a.jsonl", lines(*rows)),
        write(tmp_path / "a.json", json.dumps(rows)),
        write(tmp_path / "a.csv", 'text,n\none,1\n,2\n"",3\ntwo,4\n'),
    ]
    for path in paths:
        assert read(path) == ["one", "", "", "two"]
        assert read(path, document="file") == ["one\ntwo"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("\n\ntext\na\n\nb\n\n", ["a", "b"]),
        ("\ufefftext\r\na\r\n\r\nb\r\n", ["a", "b"]),
        ('text\n""\n"a\n\nb"\n', ["", "a\n\nb"]),
        ("n,text\n1,12\n2,3.5\n", ["12", "3.5"]),
        ("text\nlast without an end", ["last without an end"]),
    ],
)
def test_tables_as_programs_write_them(tmp_path: Path, content: str, expected: list[str]) -> None:
    assert read(write(tmp_path / "a.csv", content)) == expected


def test_globs_are_sorted_recursive_and_give_each_file_once(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "deep/c.txt", "deep/er/a.txt", "deep/skip.md"):
        write(tmp_path / name, name)
    assert read(tmp_path / "**/*.txt") == ["a.txt", "b.txt", "deep/c.txt", "deep/er/a.txt"]
    assert read(tmp_path / "b.txt", tmp_path / "*.txt") == ["b.txt", "a.txt"]


def test_a_glob_of_files_and_folders_has_the_files_of_both(tmp_path: Path) -> None:
    for name in ("a.txt", "deep/b.txt", "deep/er/c.txt", "empty/skip.md"):
        write(tmp_path / name, name)
    assert read(tmp_path / "*") == ["a.txt", "deep/b.txt", "deep/er/c.txt"]
    with pytest.raises(DataError, match=r"e\*y is a directory without a file of"):
        read(tmp_path / "e*y")


def test_a_folder_that_datasets_has_saved_is_read(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["one", "two"]}).save_to_disk(tmp_path / "saved")
    assert {path.suffix for path in (tmp_path / "saved").iterdir()} == {".arrow", ".json"}
    assert read(tmp_path / "saved") == ["one", "two"]


def test_paths_may_be_relative_or_start_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.txt", "one")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read("a.txt") == read("~/a.txt") == ["one"]


@pytest.mark.parametrize("name", ["two words.txt", "notes [1].txt", "a::b.txt", "größe.txt", "100%.txt"])
def test_a_file_may_have_any_name(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, "one")
    assert read(tmp_path / "*.txt") == ["one"]


def test_a_pattern_without_a_file_is_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "one")
    with pytest.raises(DataError, match=r"data\.files.*no file matches.*nothing-\*\.txt"):
        read(tmp_path / "a.txt", tmp_path / "nothing-*.txt")
    with pytest.raises(DataError, match=r"gone\.txt"):
        TextFiles((str(tmp_path / "gone.txt"),)).identity()


@pytest.mark.parametrize("document", ["blank_line", "line", "file"])
def test_bytes_that_are_not_utf8_are_refused_with_file_line_and_byte(tmp_path: Path, document: str) -> None:
    path = write(tmp_path / "a.txt", b"one\n\ncaf\xe9 noir\n")
    with pytest.raises(DataError, match=r"a\.txt, line 3, byte offset 8 of the file: 0xe9 is not UTF-8.*iconv"):
        read(path, document=document)


def test_jsonl_that_is_not_utf8_is_refused_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.jsonl, line 2, .*0xff"):
        read(write(tmp_path / "a.jsonl", b'{"text": "one"}\n{"text": "\xff"}\n'))


def test_lines_of_old_macs_are_lines_where_no_line_feed_is(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.txt", b"one\rtwo\r\rthree"), document="blank_line") == ["one\rtwo", "three"]
    assert read(write(tmp_path / "b.txt", b"one\rtwo\r\rthree"), document="line") == ["one", "two", "three"]
    assert read(write(tmp_path / "c.txt", b"one\r\r\ntwo\rthree"), document="line") == ["one", "two\rthree"]
    assert read(write(tmp_path / "a.csv", b"n,text\r1,one\r2,two\r")) == ["one", "two"]
    assert read(write(tmp_path / "a.jsonl", b'{"text": "one"}\r{"text": "two"}')) == ["one", "two"]


def test_a_file_is_refused_as_a_dataset_of_the_hub(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "one"}')
    source = Hub((str(path),), (None,))
    with pytest.raises(DataError, match=r"cannot be opened.*it is a file: type data=text data\.files=.*a\.jsonl"):
        source.check_readable()


@pytest.mark.parametrize(("name", "content"), [("a.txt", "one"), ("a.jsonl", '{"text": "one"}\n')])
def test_a_byte_order_mark_is_dropped(tmp_path: Path, name: str, content: str) -> None:
    assert read(write(tmp_path / name, b"\xef\xbb\xbf" + content.encode())) == ["one"]


def test_broken_json_is_refused_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "one"}\n\n{"text": "two"\n')
    with pytest.raises(DataError, match=r"a\.jsonl, line 3: not JSON"):
        read(path)


def test_a_jsonl_row_without_text_is_refused_with_its_fields(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", lines({"text": "one"}, {"body": "x", "url": "y"}))
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: .*'text' \(it has: body, url\).*data\.text_field"):
        read(path)


@pytest.mark.parametrize("value", [5, 1.5, True, ["x"], {"a": "b"}])
def test_what_is_not_text_is_refused_with_its_value(tmp_path: Path, value: Any) -> None:
    path = write(tmp_path / "a.jsonl", lines({"text": "one"}, {"text": value, "id": 1}))
    said = rf"line 2: the field 'text' holds {re.escape(json.dumps(value))}, not text; .*\(it has: text, id\)"
    with pytest.raises(DataError, match=said):
        read(path)


def test_half_a_character_escaped_in_json_is_refused_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "one"}\n{"text": "cut \\ud83d"}\n')
    with pytest.raises(DataError, match="line 2"):
        read(path)


def test_a_missing_parquet_column_is_refused_with_the_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["x"], "url": ["y"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: no column 'text' \(it has: body, url\).*data\.text_field"):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_truncated_archive_is_refused(tmp_path: Path, suffix: str) -> None:
    content = COMPRESS[suffix](random.Random(0).randbytes(50_000).hex().encode())
    path = write(tmp_path / f"a.txt{suffix}", content[:-1000])
    with pytest.raises(DataError, match=rf"a\.txt\{suffix}: damaged or cut off"):
        read(path)


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_file_that_is_not_compressed_as_its_name_says_is_refused_with_a_reason(
    tmp_path: Path, suffix: str
) -> None:
    with pytest.raises(DataError, match=rf"a\.txt\{suffix}: .*\([^)]+\)"):
        read(write(tmp_path / f"a.txt{suffix}", "plain text, not compressed"))


def test_a_truncated_parquet_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["x" * 1000]}), tmp_path / "a.parquet")
    write(tmp_path / "a.parquet", (tmp_path / "a.parquet").read_bytes()[:-20])
    with pytest.raises(DataError, match=r"a\.parquet: cannot be read as parquet"):
        read(tmp_path / "a.parquet")


def test_the_identity_of_files_changes_with_their_content_their_time_and_how_they_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "one")
    os.utime(path, (1, 1))
    source = TextFiles((str(path),))
    before = source.identity()
    assert json.dumps(source.identity()) == json.dumps(before)
    assert TextFiles((str(path),), document="line").identity() != before
    assert TextFiles((str(path),), text_field="body").identity() != before
    assert TextFiles((str(path),), errors="replace").identity() != before
    os.utime(path, (2, 2))
    assert source.identity() != before
    write(path, "longer")
    os.utime(path, (1, 1))
    assert source.identity() != before


def test_the_identity_of_a_glob_changes_with_a_new_file(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "one")
    source = TextFiles((str(tmp_path / "*.txt"),))
    before = source.identity()
    write(tmp_path / "b.txt", "two")
    assert source.identity() != before


MODULE = '''
"""The module."""
import os

class Thing:
    """A class,

    in two paragraphs.
    """
    def method(self):
        """A method."""
        text = """not a docstring"""

    async def wait(self):
        """An async method."""

    def silent(self): ...

if os.name == "posix":
    def conditional():
        """Under a condition."""

def last():
    """The last."""
'''


def test_docstrings_come_in_the_order_of_the_source(tmp_path: Path) -> None:
    assert _docstrings(write(tmp_path / "m.py", MODULE)) == [
        "The module.",
        "A class,\n\nin two paragraphs.",
        "A method.",
        "An async method.",
        "Under a condition.",
        "The last.",
    ]


@pytest.mark.parametrize(
    "content", ["", "x = 1", '"""\n    """\n', 'def broken(:\n    """Text."""', b'"""caf\xe9"""', b'"""nul"""\x00']
)
def test_a_module_without_readable_docstrings_gives_none(tmp_path: Path, content: str | bytes) -> None:
    assert _docstrings(write(tmp_path / "m.py", content)) == []


def test_the_identity_of_the_documentation_names_the_python_version() -> None:
    identity = PyDocs().identity()
    assert sys.version.split()[0] in identity.values()
    assert identity == PyDocs().identity()
    json.dumps(identity)


def test_a_package_is_documented_wherever_it_is_imported_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some environments take their packages from others: the same installation, so the same text."""
    (tmp_path / "numpy").mkdir()
    write(tmp_path / "numpy/__init__.py", "")
    write(tmp_path / "numpy/a.py", '"""Found."""')
    here = ModuleSpec("numpy", None, is_package=True)
    assert here.submodule_search_locations is not None
    here.submodule_search_locations.append(str(tmp_path / "numpy"))
    monkeypatch.setattr(sources, "find_spec", lambda name: find_spec(name) if name != "numpy" else here)
    monkeypatch.setattr(sources, "_docstrings", lambda path: [str(path)])
    monkeypatch.setattr(sources, "DOCUMENTED_PACKAGES", ("numpy", "rich"))
    _documentation.cache_clear()
    found = list(PyDocs().documents())
    _documentation.cache_clear()
    assert str(tmp_path / "numpy/a.py") in found
    assert any("/rich/" in path for path in found)


@pytest.mark.slow
def test_this_machine_documents_thousands_of_pieces_of_prose_the_same_every_time() -> None:
    _documentation.cache_clear()
    found = list(PyDocs().documents())
    words = Counter(word for text in found for word in text.lower().split())
    assert len(found) > 5000
    assert all(isinstance(text, str) and text.strip() for text in found)
    assert sum(words.values()) > 500_000
    assert words.most_common(1)[0][0] == "the"
    assert {"of", "to", "is", "a", "and"} <= {word for word, _ in words.most_common(20)}
    _documentation.cache_clear()
    assert list(PyDocs().documents()) == found


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder as the hub would hold it; datasets caches beside it."""
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write(tmp_path / "corpus/a.jsonl", lines(*({"text": f"document {i}", "n": i} for i in range(5))))
    return tmp_path / "corpus"


@pytest.mark.parametrize("streaming", [False, True])
def test_a_hub_dataset_gives_its_column_row_by_row(hub: Path, streaming: bool) -> None:
    source = Hub((str(hub),), (None,), streaming=streaming)
    assert list(source.documents()) == [f"document {i}" for i in range(5)]
    assert list(source.documents()) == [f"document {i}" for i in range(5)]


def test_hub_datasets_come_one_after_another(hub: Path) -> None:
    write(hub.parent / "other/a.jsonl", lines({"text": "other"}))
    source = Hub((str(hub.parent / "other"), str(hub)), (None, None))
    assert list(source.documents()) == ["other", *(f"document {i}" for i in range(5))]


def test_two_configurations_of_one_hub_dataset_are_both_read(hub: Path) -> None:
    write(hub / "b.jsonl", lines({"text": "from b"}))
    write(
        hub / "README.md",
        "---\nconfigs:\n- config_name: a\n  data_files: a.jsonl\n- config_name: b\n  data_files: b.jsonl\n---\n",
    )
    source = Hub((str(hub), str(hub)), ("a", "b"))
    assert list(source.documents()) == [*(f"document {i}" for i in range(5)), "from b"]


def test_text_of_the_hub_may_be_stored_as_bytes(hub: Path) -> None:
    (hub / "a.jsonl").unlink()
    pq.write_table(pa.table({"text": ["zwei €".encode(), None]}), hub / "a.parquet")
    assert list(Hub((str(hub),), (None,)).documents()) == ["zwei €", ""]
    pq.write_table(pa.table({"text": [b"caf\xe9"]}), hub / "a.parquet")
    with pytest.raises(DataError, match="cannot be read: 'utf-8' codec can't decode"):
        list(Hub((str(hub),), (None,)).documents())


def test_a_revision_is_part_of_the_identity_where_one_is_typed(hub: Path) -> None:
    plain = Hub((str(hub),), (None,))
    assert replace(plain, revisions=(None,)).identity() == plain.identity()
    assert replace(plain, revisions=("v1",)).identity() == plain.identity() | {"revisions": ("v1",)}


def test_hub_rows_without_text_are_blank(hub: Path) -> None:
    write(hub / "a.jsonl", lines({"text": "one"}, {"text": None}, {"text": "two"}))
    assert list(Hub((str(hub),), (None,)).documents()) == ["one", "", "two"]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_whose_files_or_place_changed_is_another_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    found = []
    for place, text in (("one", "alpha"), ("two", "beta"), ("two", "gamma ray")):
        folder = tmp_path / place / "set"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "train.jsonl").write_text(json.dumps({"text": text}) + "\n")
        monkeypatch.chdir(folder.parent)
        source = Hub(("set",), (None,), streaming=streaming)
        assert list(source.documents()) == [text]
        found.append(source.identity())
        assert Hub(("set",), (None,), streaming=streaming).identity() == found[-1]
    assert found[0] != found[1] != found[2]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_missing_hub_column_is_refused_with_the_columns(hub: Path, streaming: bool) -> None:
    source = Hub((str(hub),), (None,), text_field="body", streaming=streaming)
    with pytest.raises(DataError, match=r"no column 'body' \(it has: text, n\).*data\.text_field"):
        list(source.documents())


def test_the_identity_of_a_hub_dataset_changes_with_its_rows(hub: Path) -> None:
    before = Hub((str(hub),), (None,)).identity()
    assert json.dumps(Hub((str(hub),), (None,)).identity()) == json.dumps(before)
    write(hub / "a.jsonl", lines({"text": "changed"}))
    assert Hub((str(hub),), (None,)).identity() != before


@pytest.mark.parametrize("path", ["nobody/nothing", "nothing", "/no/such/folder"])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_hub_dataset_out_of_reach_is_refused_quickly_in_one_line(hub: Path, path: str, streaming: bool) -> None:
    started = time.perf_counter()
    with pytest.raises(DataError, match=rf"dataset '{path}' cannot be opened: .*data=text") as error:
        list(Hub((path,), (None,), streaming=streaming).documents())
    assert "\n" not in str(error.value)
    assert time.perf_counter() - started < 5


def test_an_unknown_split_is_refused_with_those_there_are(hub: Path) -> None:
    with pytest.raises(DataError, match="train"):
        list(Hub((str(hub),), (None,), split="tset").documents())


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), OSError("Not enough disk space. Needed: 1 KiB")]
)
def test_a_full_disk_of_the_hub_is_named_with_what_to_do(
    hub: Path, error: OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("wrapped") from error

    monkeypatch.setattr("datasets.ArrowBasedBuilder._prepare_split", fail)
    with pytest.raises(
        DataError, match=r"cannot be opened: .*(isk space|No space).* HF_HOME .*data\.streaming=true"
    ):
        list(Hub((str(hub),), (None,)).documents())


def test_the_folder_of_a_relative_name_is_in_the_message() -> None:
    for pattern, said in (("gone/*.txt", True), ("/gone/*.txt", False), ("~/gone.txt", False)):
        with pytest.raises(DataError, match="no file matches") as error:
            TextFiles((pattern,)).paths()
        assert ("from the folder where it began" in str(error.value)) == said


ROWS: list[dict[str, Any]] = [
    {"text": 'one, "two"\nthree', "n": 1},
    {"text": "vier € 😀", "n": 2},
    {"text": "five", "n": 3},
]
EXPECTED = [row["text"] for row in ROWS]


def arrow_of(kind: str) -> bytes:
    table, sink = pa.table({"n": [r["n"] for r in ROWS], "text": EXPECTED}), pa.BufferOutputStream()
    if kind == "parquet":
        pq.write_table(table, sink, row_group_size=2)
    else:
        opened = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
        with opened(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    return sink.getvalue().to_pybytes()


def csv_of(delimiter: str) -> bytes:
    content = io.StringIO()
    csv.writer(content, delimiter=delimiter).writerows([["n", "text"], *([r["n"], r["text"]] for r in ROWS)])
    return content.getvalue().encode()


FORMATS: dict[str, bytes] = {
    "a.jsonl": lines(*ROWS).encode(),
    "array.jsonl": json.dumps(ROWS).encode(),
    "a.json": json.dumps(ROWS).encode(),
    "pretty.json": json.dumps(ROWS, indent=2).encode(),
    "lines.json": lines(*ROWS).encode(),
    "objects.json": "\n".join(json.dumps(row, indent=1) for row in ROWS).encode(),
    "rows.json": ("[\n" + ",\n".join(map(json.dumps, ROWS)) + "\n]\n").encode(),
    "a.csv": csv_of(","),
    "a.tsv": csv_of("\t"),
    "a.parquet": arrow_of("parquet"),
    "a.arrow": arrow_of("file"),
    "stream.arrow": arrow_of("stream"),
}


@pytest.mark.parametrize("suffix", ["", *COMPRESS])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_its_texts_plain_and_compressed(tmp_path: Path, name: str, suffix: str) -> None:
    content = COMPRESS[suffix](FORMATS[name]) if suffix else FORMATS[name]
    path = write(tmp_path / f"{name}{suffix}", content)
    assert read(path) == read(path, document="line") == EXPECTED
    assert read(path, document="file") == ["\n".join(EXPECTED)]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", '[{"text": "a"}', r"line 1: not JSON \(the file ends in the middle"),
        ("a.json", '[{"text": "a"},\n{"text": \n', r"line 2: not JSON \(the file ends in the middle"),
        ("a.json", '[{"text": "a"},\n{"text": x}]', r"line 2: not JSON \(Expecting value"),
        ("a.json", '[{"text": "a"}] {"text": "b"}', r"line 1: not JSON \(something follows the array"),
        ("a.json", '{"text": "a"}\n{"body": "b"}', r"line 2: no text in the field 'text' \(it has: body\)"),
        ("a.json", '{"data": [{"text": "a"}]}', r"no text in the field 'text' \(it has: data\).*data\.text_field"),
        ("a.json", '{"text": "\\ud83d"}', r"half of a surrogate pair"),
        ("a.csv", "body,url\nx,y\n", r"a\.csv: no column 'text' \(it has: body, url\); set data\.text_field"),
        ("a.csv", "text,n\nx,1\ny\n", r"a\.csv, line 3: 1 columns, and the first row names 2"),
        ("a.csv", 'text\n"x" y\n', r"a\.csv, line 2: not a table"),
        ("a.csv", b"text\n\xff\n", r"a\.csv, line 2, byte offset 5"),
        ("a.arrow", b"ARROW1 and nothing else", r"a\.arrow: cannot be read as arrow"),
        ("a.arrow", b"", r"a\.arrow: cannot be read as arrow"),
        ("a.parquet.gz", b"no", r"a\.parquet\.gz: cannot be read as parquet"),
    ],
)
def test_damaged_tables_are_refused_with_their_line(
    tmp_path: Path, name: str, content: str | bytes, said: str
) -> None:
    with pytest.raises(DataError, match=said) as error:
        read(write(tmp_path / name, content))
    assert "\n" not in str(error.value)


def test_tables_without_rows_have_no_documents(tmp_path: Path) -> None:
    for name, content in {
        "a.json": "[]",
        "b.json": " \n",
        "a.csv": "text\n",
        "b.csv": "",
        "c.json": "[\n]",
    }.items():
        assert read(write(tmp_path / name, content)) == []


def test_files_for_validation_are_not_for_training(tmp_path: Path) -> None:
    for name in ("a", "b", "held"):
        write(tmp_path / f"{name}.txt", name)
    source = TextFiles((str(tmp_path / "*.txt"),), validation_patterns=(str(tmp_path / "held.txt"),))
    given = source.validation()
    assert given is not None
    assert (list(source.documents()), list(given)) == (["a", "b"], ["held"])
    assert TextFiles((str(tmp_path / "*.txt"),)).validation() is None
    assert source.identity() != TextFiles((str(tmp_path / "*.txt"),)).identity()
    with pytest.raises(DataError, match="none is left for training"):
        TextFiles((str(tmp_path / "a.txt"),), validation_patterns=(str(tmp_path / "*.txt"),)).paths()
    with pytest.raises(DataError, match=r"data\.validation_files: no file matches"):
        list(TextFiles((str(tmp_path / "a.txt"),), validation_patterns=("gone.txt",)).documents())


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_the_fraction_read_grows_to_one(tmp_path: Path, suffix: str) -> None:
    rng = random.Random(0)
    for name in ("a", "b"):
        content = "\n\n".join(rng.randbytes(2000).hex() for _ in range(500)).encode()
        write(tmp_path / f"{name}.txt{suffix}", COMPRESS[suffix](content) if suffix else content)
    source = TextFiles((str(tmp_path / "*.txt*"),))
    shares: list[Any] = [source.fraction_read() for _ in source.documents()]
    assert shares == sorted(shares)
    assert 0 < shares[0] < 0.2
    assert 0.4 < shares[500] < 0.7
    assert source.fraction_read() == 1


@pytest.mark.parametrize("streaming", [False, True])
def test_a_split_of_the_hub_is_for_validation(hub: Path, streaming: bool) -> None:
    (hub / "a.jsonl").unlink()
    write(hub / "train.jsonl", lines({"text": "t"}))
    write(hub / "validation.jsonl", lines({"text": "v"}))
    source = Hub((str(hub),), (None,), streaming=streaming, validation_split="validation")
    given = source.validation()
    assert given is not None
    assert (list(source.documents()), list(given)) == (["t"], ["v"])
    assert source.fraction_read() == (None if streaming else 1)
    assert Hub((str(hub),), (None,)).validation() is None


@pytest.mark.parametrize("streaming", [False, True])
def test_what_cannot_be_read_is_refused_before_anything_is_packed(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    """Neither is the rest of a mixture packed, nor a dataset downloaded."""
    write(tmp_path / "a.txt", "one\n\ntwo\n\n" * 500)
    here, there = (
        Hub((str(hub),), (None,), streaming=streaming),
        Hub(("no/such",), (None,), streaming=streaming),
    )
    text, late = TextFiles((str(tmp_path / "a.txt"),)), TextFiles((str(hub / "a.jsonl"),), text_field="body")
    recipe = Recipe("gpt", "bytes", 257, 16, 0.1, bound=Bound(10, 2) if streaming else None)
    for source, tokenizer, said in (
        (mixed(text, here, there), "bytes", "dataset 'no/such' cannot be opened"),
        (mixed(text, late, here), "bytes", "no text in the field 'body'"),
        (mixed(text, here), "/no/such.json", "there is no file /no/such.json"),
    ):
        for reading_class in (Hub, TextFiles):
            monkeypatch.setattr(reading_class, "_read", lambda *_: pytest.fail("something was read"))
        with pytest.raises(DataError, match=said):
            load_corpus(source, replace(recipe, tokenizer=tokenizer), tmp_path / "packed", lambda _: None)
    assert not list(tmp_path.glob("cache/**/*.arrow"))


def mixed(*sources: Source) -> Mixture:
    return Mixture(tuple(Part(source, 1.0) for source in sources))


def test_a_column_or_split_that_the_hub_says_is_not_there_is_refused_before_a_download(hub: Path) -> None:
    info = "dataset_info:\n  features:\n  - name: body\n    dtype: string\n  splits:\n  - name: train\n"
    write(hub / "README.md", f"---\n{info}---\n")
    with pytest.raises(DataError, match=r"no column 'text' \(it has: body\)"):
        Hub((str(hub),), (None,)).check_readable()
    with pytest.raises(DataError, match=r"has no split 'tset' \(it has: train\)"):
        Hub((str(hub),), (None,), "tset", text_field="body").check_readable()
    Hub((str(hub),), (None,), "train[:10%]", text_field="body").check_readable()


def test_the_version_of_a_stream_on_the_hub_is_in_its_fingerprint(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The packed rows are found without a network; another version has another fingerprint."""

    class Builder:
        __module__ = "datasets.packaged_modules.parquet.parquet"

        def __init__(self, *_: Any, **__: Any) -> None:
            self.hash, self.config = next(versions), type("Config", (), {"data_files": {}})
            self.info = type("Info", (), {"features": None, "splits": None})

        def as_streaming_dataset(self, _: str) -> list[dict[str, str]]:
            return [{"text": f"document {i} of the stream"} for i in range(500)]

    monkeypatch.setattr("datasets.load_dataset_builder", Builder)
    recipe = Recipe("gpt", "bytes", 257, 16, 0.1, bound=Bound(20, 2))
    found: list[str] = []
    versions = iter("aab")
    for _ in range(3):
        source = Hub(("some/stream",), (None,), streaming=True)
        found.append(load_corpus(source, recipe, hub.parent / f"packed{len(found)}", lambda _: None).fingerprint)
        with monkeypatch.context() as offline:
            offline.setattr("datasets.load_dataset_builder", lambda *_: pytest.fail("the hub was asked"))
            source = Hub(("some/stream",), (None,), streaming=True)
            load_corpus(source, recipe, hub.parent / f"packed{len(found) - 1}", lambda _: None)
    assert found[0] == found[1] != found[2]


def test_offline_variables_are_named_with_what_to_do(hub: Path) -> None:
    with pytest.raises(DataError, match=r"; unset HF_HUB_OFFLINE.*HF_HOME, or put text into files"):
        list(Hub(("nobody/nothing",), (None,)).documents())


def test_without_a_network_the_message_has_what_to_do_in_one_sentence(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.delenv("HF_DATASETS_OFFLINE")
    monkeypatch.setattr("datasets.load_dataset_builder", no_network)
    with pytest.raises(
        DataError, match=r"^dataset 'a/b' cannot be opened: .*; there is no way to the hub .*name a cache .*HF_HOME"
    ):
        list(Hub(("a/b",), (None,)).documents())


def test_a_dataset_in_the_cache_needs_no_network(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was prepared under a name once is found by it again, offline."""
    from datasets import load_dataset_builder

    builder = load_dataset_builder(str(hub))
    builder.download_and_prepare()
    place = Path(builder.cache_dir)
    home = hub.parent / "cache" / "somebody___corpus" / "default" / "0.0.0"
    home.mkdir(parents=True)
    (home / "abc").mkdir()
    for file in place.iterdir():
        name = file.name.replace(builder.dataset_name, "corpus")
        (home / "abc" / name).write_bytes(file.read_bytes().replace(builder.dataset_name.encode(), b"corpus"))
    assert len(list(Hub(("somebody/corpus",), (None,)).documents())) == 5
