"""Every file is packed, or refused by name in one sentence, and no unfinished corpus remains."""

import bz2
import gzip
import lzma
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from apollo_cli.config.config import parse
from apollo_cli.config.hydra_syntax import compose_values
from apollo_cli.data import readers
from apollo_cli.data.corpus import Corpus, Recipe, load_corpus
from apollo_cli.data.sources import TextFiles
from apollo_cli.errors import ConfigError, DataError

RECIPE = Recipe("gpt", "auto", 260, 16, 0.1)
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": zstandard.compress,
}
TEXT = "".join(f"The {i}th line tells a tale.\n" for i in range(60))
LETTERS = " ".join(random.Random(0).choices([f"{i}x{i * i}" for i in range(10_000)], k=12_000)).encode()
CHILD = """
import resource, sys
from pathlib import Path
from apollo_cli.data.corpus import Recipe, load_corpus
from apollo_cli.data.sources import TextFiles
from apollo_cli.errors import DataError
file, cache = sys.argv[1:]
say = lambda line: print(line, flush=True)
try:
    corpus = load_corpus(TextFiles((file,)), Recipe("gpt", "auto", 300, 16, 0.1), Path(cache), say)
    print("fingerprint", corpus.fingerprint)
except DataError as error:
    print("DataError", error)
status = Path("/proc/self/status")  # where it is there: ru_maxrss has what the parent had when it forked, too
lines = status.read_text().splitlines() if status.exists() else []
own = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
print("peak MB", (own or [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss])[0] // 1024)
"""


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def pack(file: Path | str, cache: Path, errors: str = "strict", document: str = "file") -> tuple[Corpus, list[str]]:
    said: list[str] = []
    return load_corpus(TextFiles((str(file),), document, "text", errors), RECIPE, cache, said.append), said


def text_of(corpus: Corpus) -> str:
    rows = [*corpus.training.ravel().tolist(), *corpus.validation.ravel().tolist()]
    return corpus.tokenizer.decode(rows, skip_special_tokens=False)


def refusal(file: Path | str, cache: Path, **options: str) -> str:
    """The message, after a look at what is left."""
    with pytest.raises(DataError) as error:
        pack(file, cache, **options)
    assert "\n" not in str(error.value)
    assert not cache.exists() or not [path for path in cache.iterdir() if path.suffix not in (".lock", ".TAG")]
    return str(error.value)


def assert_read_or_refused(source: TextFiles) -> None:
    refused = ""
    try:
        assert all(isinstance(text, str) for text in source.documents())
    except DataError as error:
        refused = str(error)
    assert not refused or Path(source.patterns[0]).name in refused


def spawn(file: Path, cache: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(file), str(cache)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def build(file: Path, cache: Path) -> tuple[Corpus, list[str]]:
    """What `CHILD` does, in this process."""
    said: list[str] = []
    return load_corpus(TextFiles((str(file),)), Recipe("gpt", "auto", 300, 16, 0.1), cache, said.append), said


def answer(output: str, word: str) -> str:
    (line,) = [line for line in output.splitlines() if line.startswith(word)]
    return line.removeprefix(word).strip()


@pytest.fixture(scope="module")
def corpus_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 8))) for _ in range(300)]
    return write(
        tmp_path_factory.mktemp("corpus") / "corpus.txt",
        "\n\n".join(" ".join(rng.choices(words, k=50)) for _ in range(2000)),
    )


@pytest.fixture(scope="module")
def expected(corpus_file: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The fingerprint of the corpus, from a build without a disturbance."""
    return build(corpus_file, tmp_path_factory.mktemp("cache"))[0].fingerprint


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("no_newline.txt", TEXT.rstrip(), TEXT),
        ("one_line.txt", TEXT.replace("\n", " "), TEXT.replace("\n", " ")),
        ("nul.txt", TEXT.replace("tale", "ta\0le"), TEXT.replace("tale", "ta\0le")),
        ("bom.txt", b"\xef\xbb\xbf" + TEXT.encode(), TEXT),
        ("crlf.txt", TEXT.replace("\n", "\r\n"), TEXT.replace("\n", "\r\n")),
        ("old_mac.txt", TEXT.replace("\n", "\r"), TEXT.replace("\n", "\r")),
        ("UPPER.TXT.GZ", gzip.compress(TEXT.encode(), mtime=0), TEXT),
        ("no_suffix", TEXT, TEXT),
    ],
)
def test_odd_text_trains_and_is_not_changed(tmp_path: Path, name: str, content: str | bytes, expected: str) -> None:
    corpus, _ = pack(write(tmp_path / name, content), tmp_path / "cache")
    decoded = text_of(corpus)
    assert expected.startswith(decoded)
    assert len(decoded) > len(expected) - 40  # less than a row is left over


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.txt", "", r"is empty: there is no text in .*empty\.txt"),
        ("empty.txt.gz", b"", r"is empty: there is no text in .*empty\.txt\.gz"),
        ("blank.txt", "\n \n", r"is empty.*blank\.txt"),
        (
            "word.txt",
            "wo",
            r"data\.vocab_size=260 is more than .*word\.txt: it fills 258 .*Type data\.vocab_size=258",
        ),
        ("small.txt", "a b c d " * 3, r"small.txt"),
        (
            "wide.txt",
            TEXT.encode("utf-16"),
            r"mark of UTF-16.*iconv -f utf-16 -t utf-8",
        ),
        ("wider.txt", TEXT.encode("utf-32"), r"mark of UTF-32.*iconv -f utf-32 -t utf-8"),
        (
            "bare.txt",
            TEXT.encode("utf-16-le"),
            r"UTF-16LE without a mark.*utf-16le -t utf-8",
        ),
        (
            "bare.csv",
            "text\n".encode("utf-16-be"),
            r"UTF-16BE without a mark.*utf-16be -t utf-8",
        ),
        ("nameless.csv", "x" * 9000 + "\nb\n", r"no column 'text' \(it has: x{300}\.\.\.\)"),
        ("big_end.txt", b"\xfe\xff" + TEXT.encode("utf-16-be"), "mark of UTF-16"),
        ("wide.txt.gz", gzip.compress(TEXT.encode("utf-16"), mtime=0), "mark of UTF-16"),
        ("latin.txt", b"caf\xe9\n" + TEXT.encode(), r"latin\.txt, line 1, byte offset 3 of the file: 0xe9"),
        ("mixed.txt", "süß\n".encode() + b"s\xfc\xdf\n", r"mixed\.txt, line 2, byte offset 7 of the file: 0xfc"),
        ("bom.txt", b"\xef\xbb\xbfab\xff\n", r"bom\.txt, line 1, byte offset 5 of the file: 0xff"),
        ("packed.txt.bz2", bz2.compress(b"ab\n\xff\n"), r"line 2, byte offset 3 of the decompressed text: 0xff"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', r"a\.jsonl, line 2, byte offset 24 of the file: 0xff"),
        ("bad.jsonl", '{"text": "a"}\n{"text": \n{"text": "b"}\n', r"bad\.jsonl, line 2: not JSON"),
        ("none.jsonl", '{"text": "a"}\n{"body": "b"}\n', r"none\.jsonl, line 2: no text in the field 'text'.*body"),
        ("number.jsonl", '{"text": 7}\n', r"number\.jsonl, line 1: the field 'text' holds 7, not"),
        ("cut.json", '[{"text": "a"}, {"text": "b"}', r"cut\.json, line 1: not JSON \(the file ends"),
        ("nested.json", '{"a":' * 100_000, r"nested\.json, line 1: not JSON"),
        ("nest.json", '{"a":' * 100_000 + "1" + "}" * 100_000, r"nest\.json, line 1: not JSON"),
        ("a.csv", "body\nb\n", r"a\.csv: no column 'text' \(it has: body\)"),
        ("deep.jsonl", "[" * 100_000 + "\n", r"deep\.jsonl, line 1: not JSON"),
        ("deeper.jsonl", '{"text": "a"}\n' + '{"a":' * 100_000 + "\n", r"deeper\.jsonl, line 2: not JSON"),
        ("a.zip", b"PK\3\4", "is not read as text"),
        ("a.tar", b"", "is not read as text"),
        ("a.tar.gz", gzip.compress(b"x", mtime=0), "is not read as text"),
        ("a.tgz", b"", "is not read as text"),
        ("a.TAR.XZ", b"", "is not read as text"),
        ("a.7z", b"", "is not read as text"),
        ("a.rar", b"", "is not read as text"),
        ("a.txt.lz4", b"", "is not read as text"),
        ("a.pdf", b"%PDF", r"a \.pdf file is not read as text"),
        ("a.pkl", b"\x80", r"a \.pkl file is not read as text"),
    ],
)
def test_what_cannot_train_is_refused_by_name_with_what_to_do(
    tmp_path: Path, name: str, content: str | bytes, said: str
) -> None:
    message = refusal(write(tmp_path / name, content), tmp_path / "cache")
    assert name in message
    assert re.search(said, message), message


def test_a_corpus_of_less_than_two_rows_is_refused_by_name(tmp_path: Path) -> None:
    recipe = Recipe("gpt", "auto", 257, 16, 0.1)
    with pytest.raises(DataError, match=r"too small: .*few\.txt fills 1 rows of data\.seq_len=16.*Give more text"):
        load_corpus(TextFiles((str(write(tmp_path / "few.txt", "a" * 20)),)), recipe, tmp_path / "cache", print)
    assert not list((tmp_path / "cache").glob("*/*"))


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.999])
def test_a_compressed_file_that_is_cut_off_is_refused(tmp_path: Path, suffix: str, kept: float) -> None:
    content = COMPRESS[suffix](random.Random(0).randbytes(20_000).hex().encode())
    message = refusal(write(tmp_path / f"a.txt{suffix}", content[: int(len(content) * kept)]), tmp_path / "cache")
    assert f"a.txt{suffix}: damaged or cut off" in message


@settings(max_examples=40, deadline=None)
@given(suffix=st.sampled_from(sorted(COMPRESS)), place=st.integers(0, 10**6), value=st.integers(1, 255))
def test_a_flipped_byte_in_a_compressed_file_never_ends_in_a_traceback(suffix: str, place: int, value: int) -> None:
    content = bytearray(COMPRESS[suffix](TEXT.encode()))
    content[place % len(content)] ^= value
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / f"a.txt{suffix}", bytes(content))
        assert_read_or_refused(TextFiles((str(path),), "file"))


@settings(max_examples=40, deadline=None)
@given(
    content=st.binary(max_size=200),
    name=st.sampled_from(
        ["a.txt", "a.jsonl", "a.json", "a.csv", "a.arrow", "a.txt.gz", "a.parquet", "a.parquet.gz", "a.zst"]
    ),
)
def test_random_bytes_are_read_or_refused_by_name(content: bytes, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / name, content)
        for errors in ("strict", "replace"):
            assert_read_or_refused(TextFiles((str(path),), errors=errors))


@settings(max_examples=40, deadline=None)
@given(
    lines=st.lists(st.binary(max_size=20).filter(lambda line: not {*b"\n\r\0"} & {*line}), min_size=1, max_size=6)
)
def test_the_offset_in_the_message_is_that_of_the_first_bad_byte(lines: list[bytes]) -> None:
    content = b"x" + b"\n".join(lines)  # no byte-order mark, no lines of old Macs, no zeros of UTF-16
    with tempfile.TemporaryDirectory() as folder:
        source = TextFiles((str(write(Path(folder) / "a.txt", content)),))
        try:
            content.decode()
        except UnicodeDecodeError as error:
            line = content[: error.start].count(b"\n") + 1
            with pytest.raises(DataError, match=rf"line {line}, byte offset {error.start} of the file"):
                list(source.documents())
        else:
            list(source.documents())


def test_parquet_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    column = pa.array([b"ok", b"caf\xe9"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    assert "a.parquet: the column 'text' is not UTF-8" in refusal(tmp_path / "a.parquet", tmp_path / "cache")


def test_a_directory_without_text_is_refused_with_the_kinds(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    write(tmp_path / "texts/a.bin", TEXT)
    message = refusal(tmp_path / "texts", tmp_path / "cache")
    assert f"{tmp_path}/texts is a directory without a file of .txt, .jsonl" in message


@pytest.mark.parametrize("pattern", ["link.txt", "*.txt"])
def test_a_broken_link_is_refused_with_its_target(tmp_path: Path, pattern: str) -> None:
    write(tmp_path / "a.txt", TEXT)
    (tmp_path / "link.txt").symlink_to(tmp_path / "gone.txt")
    assert f"link.txt is a broken link: it points to {tmp_path}/gone.txt" in refusal(
        tmp_path / pattern, tmp_path / "cache"
    )


def test_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    assert "loop.txt: cannot be read" in refusal(tmp_path / "loop.txt", tmp_path / "cache")


@pytest.mark.parametrize("kind", ["device", "pipe"])
def test_pipes_and_devices_are_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = Path("/dev/zero")
    if kind == "pipe":
        path = tmp_path / "pipe.txt"
        os.mkfifo(path)
    started = time.perf_counter()
    assert f"{path} is not a regular file" in refusal(path, tmp_path / "cache")
    assert time.perf_counter() - started < 5


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user who may not read")
@pytest.mark.parametrize("where", ["file", "folder"])
def test_an_unreadable_file_is_refused_by_name(where: str) -> None:
    folder = Path(tempfile.mkdtemp())
    (folder / "cache").mkdir(mode=0o777)
    (folder / "cache").chmod(0o777)
    (folder / "in").mkdir()
    write(folder / "in/secret.txt", TEXT)
    folder.chmod(0o755)
    (folder / "in/secret.txt").chmod(0o000 if where == "file" else 0o644)
    (folder / "in").chmod(0o755 if where == "file" else 0o000)
    try:
        os.seteuid(65534)
        message = refusal(folder / "in/secret.txt", folder / "cache")
    finally:
        os.seteuid(0)
        shutil.rmtree(folder)
    if where == "file":
        assert "secret.txt: cannot be read (Permission denied)" in message
    else:
        assert "no file matches" in message
        assert "secret.txt" in message


def test_replace_puts_a_mark_and_prints_their_number(tmp_path: Path) -> None:
    bad = TEXT.encode().replace(b"The 7th", b"The \xff\xfe7th").replace(b"The 9th", b"The\xe9 9th")
    path = write(tmp_path / "a.txt", bad)
    corpus, said = pack(path, tmp_path / "cache", errors="replace")
    expected = TEXT.replace("The 7th", "The \ufffd\ufffd7th").replace("The 9th", "The\ufffd 9th")
    assert expected.startswith(text_of(corpus))
    assert [line for line in said if "U+FFFD" in line] == [
        "data.errors=replace: 3 bytes in 2 lines of 1 files were not UTF-8 and became U+FFFD"
    ]
    assert pack(path, tmp_path / "cache", errors="replace")[1] == []
    with pytest.raises(DataError, match="is not UTF-8"):  # it is another corpus, not the cached one
        pack(path, tmp_path / "cache")


def test_replace_works_for_jsonl_and_prints_nothing_for_valid_files(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "caf\xe9"}\n')
    source = TextFiles((str(path),), errors="replace")
    assert list(source.documents()) == ["caf\ufffd"]
    assert list(source.documents()) == ["caf\ufffd"]
    assert source.remarks() == [
        "data.errors=replace: 1 bytes in 1 lines of 1 files were not UTF-8 and became U+FFFD"
    ]
    good = TextFiles((str(write(tmp_path / "b.txt", TEXT)),), errors="replace")
    list(good.documents())
    assert good.remarks() == []


@pytest.mark.parametrize("value", ["strict", "replace", "ignore"])
def test_the_key_has_two_values(value: str) -> None:
    values = compose_values(["data=text", "data.files=[a.txt]", f"data.errors={value}"])
    if value == "ignore":
        with pytest.raises(ConfigError, match=r"data\.errors=ignore: should be 'strict' or 'replace'"):
            parse(values)
    else:
        assert parse(values).data.model_dump()["errors"] == value


@pytest.mark.parametrize("document", ["blank_line", "line", "file"])
@pytest.mark.parametrize("suffix", ["", *COMPRESS])
def test_a_line_beyond_the_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, document: str
) -> None:
    monkeypatch.setattr(readers, "MAX_LENGTH", 100_000)
    content = COMPRESS.get(suffix, bytes)(b"a" * 5_000_000)
    message = refusal(write(tmp_path / f"a.txt{suffix}", content), tmp_path / "cache", document=document)
    assert re.search(rf"a\.txt{suffix}, line 1: longer than 100\.0 kB", message)


@pytest.mark.parametrize("document", ["blank_line", "file"])
def test_a_document_beyond_the_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, document: str
) -> None:
    monkeypatch.setattr(readers, "MAX_LENGTH", 1_000)
    path = write(tmp_path / "a.txt", TEXT)
    message = refusal(path, tmp_path / "cache", document=document)
    assert re.search(r"a\.txt: a document of more than 1\.0 kB .*type data\.document=line", message)
    assert len(list(TextFiles((str(path),), "line").documents())) == 60


@pytest.mark.faults
def test_a_line_of_200_megabytes_takes_less_than_a_gigabyte(tmp_path: Path) -> None:
    with (tmp_path / "line.txt").open("wb") as file:
        for i in range(200):
            file.write((f"the {i}th of many words " * 60_000).encode()[:900_000] + LETTERS)
    output, errors = spawn(tmp_path / "line.txt", tmp_path / "cache").communicate(timeout=500)
    assert "fingerprint" in output, errors
    assert int(answer(output, "peak MB")) < 1000


@pytest.mark.faults
def test_a_decompression_bomb_ends_at_the_limit(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "bomb.txt.gz", "wb", compresslevel=1) as file:
        for _ in range(2000):
            file.write(b"a" * 1_000_000)
    output, errors = spawn(tmp_path / "bomb.txt.gz", tmp_path / "cache").communicate(timeout=300)
    assert "bomb.txt.gz, line 1: longer than 512.0 MB" in answer(output, "DataError"), errors
    assert int(answer(output, "peak MB")) < 1500


@pytest.mark.parametrize("count", [2, pytest.param(8, marks=pytest.mark.faults)])
def test_processes_at_once_build_once(corpus_file: Path, tmp_path: Path, count: int) -> None:
    children = [spawn(corpus_file, tmp_path / "cache") for _ in range(count)]
    outputs = [child.communicate(timeout=120)[0] for child in children]
    assert sum(output.count("tokenizing and packing") for output in outputs) == 1
    assert len({answer(output, "fingerprint") for output in outputs}) == 1


@pytest.mark.parametrize("delay", [0, *(pytest.param(i / 20, marks=pytest.mark.faults) for i in range(1, 15))])
@pytest.mark.parametrize("moment", ["training a tokenizer", "tokenizing and packing"])
def test_after_a_killed_builder_the_next_one_builds_the_same(
    corpus_file: Path, expected: str, tmp_path: Path, moment: str, delay: float
) -> None:
    child = spawn(corpus_file, tmp_path / "cache")
    assert child.stdout
    while moment not in child.stdout.readline():
        pass
    time.sleep(delay)
    child.kill()
    child.communicate()
    assert delay or (child.returncode == -signal.SIGKILL and list((tmp_path / "cache").glob("*.building")))
    corpus, said = build(corpus_file, tmp_path / "cache")
    assert corpus.fingerprint == expected
    assert not any("waiting" in line for line in said)
    assert not list((tmp_path / "cache").glob("*.building"))


def lock_of(file: Path, cache: Path) -> FileLock:
    """The lock that a builder of this corpus takes; the corpus itself is removed."""
    folder = build(file, cache)[0].folder
    shutil.rmtree(folder)
    return FileLock(folder.with_suffix(".lock"))


def test_waiting_for_another_builder_is_printed_once_and_ends_with_it(corpus_file: Path, tmp_path: Path) -> None:
    with lock_of(corpus_file, tmp_path / "cache"):
        child = spawn(corpus_file, tmp_path / "cache")
        assert child.stdout
        assert child.stdout.readline() == "another process builds this corpus; waiting\n"
        assert child.poll() is None
    output, _ = child.communicate(timeout=60)
    assert "waiting" not in output
    assert answer(output, "fingerprint")


def test_waiting_can_be_interrupted(corpus_file: Path, tmp_path: Path) -> None:
    with lock_of(corpus_file, tmp_path / "cache"):
        child = spawn(corpus_file, tmp_path / "cache")
        assert child.stdout
        child.stdout.readline()
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=60)
    assert errors.strip().endswith("KeyboardInterrupt")


def test_a_full_disk_is_refused_with_what_is_needed_and_leaves_nothing(corpus_file: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    write(tmp_path / "child.py", CHILD)
    corpus = write(tmp_path / "corpus.txt", corpus_file.read_bytes() * 4)
    script = (
        f"mount -t tmpfs -o size=512k none {tmp_path}/disk && "
        f"{sys.executable} {tmp_path}/child.py {corpus} {tmp_path}/disk/cache; find {tmp_path}/disk -type f"
    )
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, timeout=60)
    if "tokenizing" not in done.stdout:
        pytest.skip(f"no file system of our own can be mounted here: {done.stderr.strip()[-200:]}")
    message = answer(done.stdout, "DataError")
    assert re.search(
        rf"{tmp_path}/disk/cache/\w+\.building: the disk is full\. .*0\.5 GB.*data\.cache_dir", message
    )
    left = [line for line in done.stdout.splitlines() if line.startswith(f"{tmp_path}/disk")]
    assert all(line.endswith((".lock", ".TAG")) for line in left)
    assert "Traceback" not in done.stderr
