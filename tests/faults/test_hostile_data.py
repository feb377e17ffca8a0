"""Hostile or damaged datasets, tokenizers and cache entries are refused with a message, and execute nothing."""

import csv
import hashlib
import io
import json
import os
import pickle
import random
import re
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apollo_cli import files
from apollo_cli.data import corpus
from apollo_cli.data import tokenizer as tokenizers
from apollo_cli.data.corpus import Corpus, Recipe, load_corpus
from apollo_cli.data.hub import Hub
from apollo_cli.data.sources import TextFiles
from apollo_cli.errors import DataError

ROW = b'{"text": "own"}\n'
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<|endoftext|>"]
WORDS = {token: i for i, token in enumerate([*SPECIAL, "the", "tale"])}
NAMES = ("corpus.json", "tokenizer.json", "training.bin", "validation.bin")


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


def tar_of(members: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return content.getvalue()


def zip_of(members: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)
    return content.getvalue()


def card(value: str) -> bytes:
    return f"---\nconfigs:\n- config_name: default\n  data_files: {value}\n---\n".encode()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An untrusted folder; the cache of datasets is beside it."""
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True, raising=False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.jsonl").write_bytes(b'{"text": "secret"}\n')
    (tmp_path / "untrusted").mkdir()
    return tmp_path / "untrusted"


def hostile(folder: Path) -> dict[str, dict[str, bytes]]:
    """The folders by name; whatever of them runs makes the file EXECUTED."""
    mark = folder.parent / "EXECUTED"
    bomb, script = pickle.dumps(Bomb(mark)), f"open({str(mark)!r}, 'w')".encode()
    away = {"../../escaped.jsonl": ROW, "../escaped.csv": b"text\nx\n", f"{folder.parent}/escaped.jsonl": ROW}
    return {
        "script": {"untrusted.py": script, "a.jsonl": ROW},
        "pickle": {"a.pkl": bomb},
        "pickle_by_card": {"README.md": card("a.pkl"), "a.pkl": bomb},
        "webdataset": {"a.tar": tar_of({"0.pkl": bomb, "0.pyd": bomb, "0.pth": bomb, "0.txt": b"text"})},
        "tar_that_climbs": {"a.tar": tar_of({"../escaped.txt": b"x", "0.txt": b"text"})},
        "zip_that_climbs": {"a.zip": zip_of(away)},
        "zip_by_card": {"README.md": card("a.zip"), "a.zip": zip_of(away)},
        "card_that_climbs": {"README.md": card("../secret.jsonl"), "a.jsonl": ROW},
        "card_with_a_path": {"README.md": card(f"{folder.parent}/secret.jsonl"), "a.jsonl": ROW},
        "card_with_an_address": {"README.md": card("https://example.com/a.jsonl"), "a.jsonl": ROW},
        "card_that_runs": {
            "README.md": f"---\nconfigs: !!python/object/apply:os.system ['touch {mark}']\n---\n".encode(),
            "a.jsonl": ROW,
        },
        "other_format": {"a.toml": b"[a]\nb = 1\n"},
    }


REASONS = {
    "script": "scripts are no longer supported, but found untrusted.py",
    "pickle": "No (supported) data files",
    "pickle_by_card": "a.pkl' with any supported extension",
    "webdataset": "holds webdataset files",
    "tar_that_climbs": "holds webdataset files",
    "zip_that_climbs": "No (supported) data files",
    "zip_by_card": "",
    "card_that_climbs": "which is not in it",
    "card_with_a_path": "which is not in it",
    "card_with_an_address": "",  # where HTTP can be read at all, it is not in it
    "card_that_runs": "could not determine a constructor",
    "other_format": "holds harbor files",
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("case", REASONS)
def test_a_hostile_dataset_is_refused_and_executes_and_writes_nothing(
    folder: Path, case: str, streaming: bool
) -> None:
    for name, content in hostile(folder)[case].items():
        (folder / name).write_bytes(content)
    with pytest.raises(DataError, match="untrusted") as error:
        list(Hub((str(folder),), (None,), streaming=streaming).documents())
    assert REASONS[case] in str(error.value)
    assert "\n" not in str(error.value)
    assert not (folder.parent / "EXECUTED").exists()
    assert not list(folder.parent.parent.rglob("escaped*"))


def test_the_bomb_of_these_tests_explodes_where_it_is_unpickled(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "EXECUTED")))
    assert (tmp_path / "EXECUTED").exists()


@pytest.mark.parametrize("streaming", [False, True])
def test_a_script_that_is_not_the_loader_is_not_run_either(folder: Path, streaming: bool) -> None:
    (folder / "load.py").write_text(f"open({str(folder.parent / 'EXECUTED')!r}, 'w')", encoding="utf-8")
    (folder / "a.jsonl").write_bytes(ROW)
    assert list(Hub((str(folder),), (None,), streaming=streaming).documents()) == ["own"]
    assert not (folder.parent / "EXECUTED").exists()


@pytest.mark.parametrize("name", ["pandas", "json", "webdataset", "text"])
def test_the_name_of_a_format_does_not_read_the_working_directory(folder: Path, name: str) -> None:
    (folder.parent / "a.pkl").write_bytes(pickle.dumps(Bomb(folder.parent / "EXECUTED")))
    with pytest.raises(DataError, match=f"data.path={name} is a format, not a dataset"):
        list(Hub((name,), (None,)).documents())
    assert not (folder.parent / "EXECUTED").exists()


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_damaged_files_of_a_dataset_are_refused_in_one_line(folder: Path, suffix: str, streaming: bool) -> None:
    rng = random.Random(0)
    rows = io.StringIO()
    csv.writer(rows).writerows([["text"], ["fine"], ["one", "too", "many"]])
    content = rows.getvalue().encode() if suffix == "csv" else ROW + rng.randbytes(500)
    (folder / f"a.{suffix}").write_bytes(content)
    with pytest.raises(DataError, match="untrusted") as error:
        list(Hub((str(folder),), (None,), streaming=streaming).documents())
    assert "\n" not in str(error.value)


def word_level(words: Any = WORDS, **changes: Any) -> str:
    parts: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "[UNK]"},
    }
    return json.dumps({**parts, **changes})


def bpe(tokens: list[str], merges: list[str], prefix: str) -> str:
    words = {token: i for i, token in enumerate([*SPECIAL, *tokens])}
    model = {"type": "BPE", "vocab": words, "merges": merges, "continuing_subword_prefix": prefix}
    return word_level(model=model)


def refusal(path: Path, kind: str = "gpt") -> str:
    with pytest.raises(DataError) as error:
        tokenizers.load_tokenizer(kind, str(path))
    assert str(error.value).startswith(f"data.tokenizer={path}: ")
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "EOF"),
        pytest.param(b"\x00\xff\x80" * 100, "UTF-8", marks=pytest.mark.faults),
        pytest.param("{", "EOF", marks=pytest.mark.faults),
        pytest.param("null", "null", marks=pytest.mark.faults),
        ("[" * 100_000, "cannot be loaded"),
        pytest.param(
            word_level()[:-1] + ', "decoder": ' + '{"a":' * 100_000, "cannot be loaded", marks=pytest.mark.faults
        ),
        (word_level({**WORDS, "x": 2**32 - 1}), "gaps or come twice"),
        pytest.param(word_level({**WORDS, "x": 2**64}), "u32", marks=pytest.mark.faults),
        (word_level({**WORDS, "x": -1}), "u32"),
        pytest.param(word_level({**WORDS, "x": "9"}), "u32", marks=pytest.mark.faults),
        (word_level({**WORDS, "x": 5}), "gaps or come twice"),
        (word_level().replace('"the": 6', "6: 6"), "key must be a string"),
        pytest.param(word_level({}), "needs the token", marks=pytest.mark.faults),
        (
            word_level(
                pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": 0}
            ),
            "",
        ),
        pytest.param(
            word_level(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
            "precompiled_charsmap",
            marks=pytest.mark.faults,
        ),
        (word_level(pre_tokenizer={"type": "FixedLength", "length": 0}), "chunk size must be non-zero"),
        (bpe(["a", "b"], ["a b"], "####"), "range end index"),
        (bpe(["é", "a", "aé"], ["é a", "a é"], "#"), "cannot be loaded"),  # aborted the whole process
    ],
)
def test_a_hostile_tokenizer_json_is_refused_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], content: str | bytes, said: str
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    assert said in refusal(path)
    assert capfd.readouterr() == ("", "")  # not even of a panic


def replacing(pattern: dict[str, str], content: str, times: int = 1) -> str:
    step = {"type": "Replace", "pattern": pattern, "content": content}
    inner = {"type": "Sequence", "normalizers": [step]}
    return word_level(normalizer={"type": "Sequence", "normalizers": [inner] * times})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (replacing({"String": "e"}, "ee", 6), "its normalizer makes 32 characters of 1"),
        (replacing({"String": "e"}, "ee", 60), "its normalizer makes 32 characters of 1"),
        (replacing({"Regex": "[0-9]"}, "00", 6), "its normalizer makes 32 characters of 1"),
        (replacing({"String": 'rare " word'}, "x" * 1000), "its normalizer makes 1000 characters of 11"),
        (
            word_level(normalizer={"type": "Prepend", "prepend": "x" * 100}),
            "its normalizer makes 101 characters of 1",
        ),
    ],
)
def test_a_tokenizer_that_makes_texts_much_longer_is_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    assert said in refusal(tmp_path / "tokenizer.json")


def test_a_normalizer_as_they_are_is_taken(tmp_path: Path) -> None:
    steps = [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
        *({"type": kind} for kind in ("NFKD", "StripAccents", "Lowercase")),
    ]
    (tmp_path / "tokenizer.json").write_text(word_level(normalizer={"type": "Sequence", "normalizers": steps}))
    assert tokenizers.load_tokenizer("gpt", str(tmp_path / "tokenizer.json")).get_vocab_size() == len(WORDS)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\x00", b"\x00" * 50, b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\na\n"]
)
def test_a_damaged_vocab_txt_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "vocab.txt").write_bytes(content)
    refusal(tmp_path / "vocab.txt", "bert")


@pytest.mark.faults  # a process each
@pytest.mark.parametrize(
    ("vocabulary", "merges"),
    [
        (b"", b""),
        (b"[1]", b""),
        (b'{"a": -1}', b""),
        (b'{"a": 4294967295}', b""),
        (b'{"a": 1.5}', b""),
        (b"[" * 100_000, b""),
        (json.dumps(WORDS).encode(), b"x y z\n"),
        (json.dumps(WORDS).encode(), b"q z\n"),
        (json.dumps(WORDS).encode(), b"\xff\xfe"),
    ],
)
def test_a_damaged_vocab_json_is_refused_in_one_line(tmp_path: Path, vocabulary: bytes, merges: bytes) -> None:
    (tmp_path / "vocab.json").write_bytes(vocabulary)
    (tmp_path / "merges.txt").write_bytes(merges)
    refusal(tmp_path / "vocab.json")


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "/dev/zero", "..", "~nobody/x", ""])
def test_a_name_that_is_no_tokenizer_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = Recipe("gpt", name, 300, 16, 0.1)
    (tmp_path / "a.txt").write_text("text", encoding="utf-8")
    with pytest.raises(DataError, match=re.escape("data.tokenizer=")):
        load_corpus(TextFiles(("a.txt",)), recipe, tmp_path / "cache", print)


def test_a_tokenizer_without_an_unknown_token_is_refused_where_it_fails(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(word_level().replace('"unk_token": "[UNK]"', '"unk_token": "<no>"'))
    (tmp_path / "a.txt").write_text("other words")
    recipe = Recipe("gpt", str(tmp_path / "tokenizer.json"), len(WORDS), 16, 0.1)
    with pytest.raises(DataError, match=r"cannot tokenize .*a\.txt \(WordLevel error: Missing \[UNK\]"):
        load_corpus(TextFiles((str(tmp_path / "a.txt"),)), recipe, tmp_path / "cache", print)
    assert not list((tmp_path / "cache").glob("*/*"))


def test_no_module_of_the_working_directory_is_loaded_with_a_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tokenizers.py").write_text("open('EXECUTED', 'w')")
    (tmp_path / "tokenizer.json").write_text(word_level())
    monkeypatch.chdir(tmp_path)
    assert tokenizers.load_tokenizer("gpt", "tokenizer.json").get_vocab_size() == len(WORDS)
    assert not (tmp_path / "EXECUTED").exists()


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_signals_to_stop_are_not_turned_into_errors(stop: type[BaseException]) -> None:
    with pytest.raises(stop), tokenizers.refusing("anything"):
        raise stop


@pytest.mark.faults
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 10**6), value=st.integers(0, 255))
def test_a_damaged_byte_in_tokenizer_json_is_loaded_or_refused(tmp_path: Path, place: int, value: int) -> None:
    content = bytearray(word_level().encode())
    content[place % len(content)] = value
    (tmp_path / "tokenizer.json").write_bytes(bytes(content))
    refused = "data.tokenizer="
    try:
        assert tokenizers.load_tokenizer("gpt", str(tmp_path / "tokenizer.json")).get_vocab_size() > len(SPECIAL)
    except DataError as error:
        refused = str(error)
    assert refused.startswith("data.tokenizer=")


@pytest.fixture
def built(tmp_path: Path) -> Callable[[], tuple[Corpus, list[str]]]:
    """Prepares the same corpus again and again."""
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(f"the {i}th tale of {i * i} things" for i in range(400)), encoding="utf-8")
    said: list[str] = []

    def again() -> tuple[Corpus, list[str]]:
        said.clear()
        corpus = load_corpus(
            TextFiles((str(path),)), Recipe("gpt", "auto", 300, 16, 0.1), tmp_path / "cache", said.append
        )
        return corpus, said

    return again


def entry(tmp_path: Path) -> Path:
    (facts,) = (tmp_path / "cache").glob("*/corpus.json")
    return facts.parent


def change_facts(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes corpus.json and makes its checksum fit."""
    facts = json.loads((folder / "corpus.json").read_text())
    del facts["sha256_of_this"]
    change(facts)
    checksum = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    (folder / "corpus.json").write_text(json.dumps({**facts, "sha256_of_this": checksum}))


def gone(name: str) -> Callable[[Path], Any]:
    return lambda f: (f / name).unlink()


def empty(name: str) -> Callable[[Path], Any]:
    return lambda f: (f / name).write_bytes(b"")


def cut(name: str) -> Callable[[Path], Any]:
    return lambda f: (f / name).write_bytes((f / name).read_bytes()[:-1])


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "no json": lambda f: (f / "corpus.json").write_text("{"),
    "deep json": lambda f: (f / "corpus.json").write_text("[" * 100_000),
    "a list": lambda f: (f / "corpus.json").write_text("[]"),
    "no keys": lambda f: (f / "corpus.json").write_text("{}"),
    "binary": lambda f: (f / "corpus.json").write_bytes(b"\xff\x00"),
    "another fingerprint": lambda f: (f / "corpus.json").write_text(
        (f / "corpus.json").read_text().replace('"fingerprint": "', '"fingerprint": "0')
    ),
    "no rows": lambda f: change_facts(f, lambda facts: facts.pop("training")),
    "other rows": lambda f: change_facts(f, lambda facts: facts["training"].update(rows=10**30)),
    "no parts": lambda f: change_facts(f, lambda facts: facts["packed"].pop("parts")),
    **{f"{name} is gone": gone(name) for name in NAMES},
    **{f"{name} is empty": empty(name) for name in NAMES},
    **{f"{name} is cut": cut(name) for name in NAMES[1:]},
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_entry_is_built_again_once(
    built: Callable[[], tuple[Corpus, list[str]]], tmp_path: Path, damage: str
) -> None:
    fingerprint = built()[0].fingerprint
    folder = entry(tmp_path)
    DAMAGE[damage](folder)
    corpus, said = built()
    assert re.search(rf"{folder} is damaged \(.+\): .*building it again", said[0])
    assert corpus.fingerprint == fingerprint
    assert built()[1] == []


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(NAMES), place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_flipped_bit_is_found(
    built: Callable[[], tuple[Corpus, list[str]]], tmp_path: Path, name: str, place: int, bit: int
) -> None:
    fingerprint = built()[0].fingerprint
    path = entry(tmp_path) / name
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1 << bit
    path.write_bytes(bytes(content))
    corpus, _ = built()
    assert corpus.fingerprint == fingerprint
    assert path.read_bytes() != bytes(content) or name == "corpus.json"  # spaces between values may be flipped


def test_a_limited_number_of_blocks_of_a_large_corpus_is_checked(
    built: Callable[[], tuple[Corpus, list[str]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "_BLOCK", 64)
    monkeypatch.setattr(corpus, "_BLOCKS_CHECKED", 3)
    built()
    read: list[bytes] = []
    original = corpus.zlib.crc32

    def checksum(block: bytes) -> int:
        read.append(block)
        return original(block)

    monkeypatch.setattr(corpus.zlib, "crc32", checksum)
    assert built()[1] == []
    assert len(read) == 6
    monkeypatch.setattr(corpus, "_BLOCKS_CHECKED", 10**6)
    with (entry(tmp_path) / "training.bin").open("r+b") as file:
        file.seek(1000)
        file.write(b"\xff")
    assert "damaged" in built()[1][0]


def test_what_cannot_be_repaired_is_refused_with_what_to_delete(
    built: Callable[[], tuple[Corpus, list[str]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built()
    folder = entry(tmp_path)
    original = files.digest_of
    monkeypatch.setattr(
        files, "digest_of", lambda facts: original(facts) if isinstance(facts, list) else str(random.random())
    )
    with pytest.raises(DataError, match=rf"{folder} is damaged .*: delete it"):
        built()


def test_a_cache_entry_that_is_a_link_is_refused_and_its_target_is_kept(
    built: Callable[[], tuple[Corpus, list[str]]], tmp_path: Path
) -> None:
    built()
    folder = entry(tmp_path)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/thesis.txt").write_text("years of work")
    folder.rename(tmp_path / "away")
    folder.symlink_to(tmp_path / "precious")
    with pytest.raises(DataError, match=str(folder.parent)):
        built()
    assert (tmp_path / "precious/thesis.txt").read_text() == "years of work"
