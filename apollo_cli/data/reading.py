"""Files of a corpus to documents. What is no text is refused in one sentence, and memory is bounded."""

import bz2
import gzip
import json
import lzma
import shlex
import stat
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

from apollo_cli.errors import DataError
from apollo_cli.files import in_units

LONGEST = 512_000_000  # bytes of a line and characters of a document: more is a mistake or a decompression bomb
_UNPACK = {".gz": "gzip -dc", ".xz": "xz -dc", ".bz2": "bzip2 -dc", ".zst": "zstd -dc"}
ARCHIVES = {".zip", ".tar", ".tgz", ".tbz", ".tbz2", ".txz", ".tzst", ".7z", ".rar", ".jar", ".whl"}
_OTHER_COMPRESSION = {".z", ".lz", ".lz4", ".lzma", ".lzo", ".br"}
_NOT_TEXT = {".pdf", ".doc", ".docx", ".odt", ".epub", ".png", ".jpg", ".jpeg", ".gif", ".mp3", ".mp4", ".exe"} | {
    *(".pkl", ".pickle", ".npy", ".npz", ".pt", ".pth", ".safetensors", ".bin", ".arrow", ".h5", ".sqlite", ".db")
}
_MARKS = {  # at the start of a file; the longer ones first
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
_UTF8_MARK = b"\xef\xbb\xbf"


@dataclass
class Replaced:
    """What `data.errors=replace` replaced in a file."""

    bytes: int = 0
    lines: int = 0


def refuse_unsuitable(path: Path) -> None:
    """Refuses what cannot be a file of text, by its kind and its name, before it is opened.

    Raises:
        DataError: a broken link, a pipe or device, an archive, out of reach.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if path.is_symlink() and isinstance(error, FileNotFoundError):
            raise DataError(
                f"{path} is a broken link: it points to {path.readlink()}, and nothing is there. Mend the link or "
                "leave it out of data.files"
            ) from error
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(mode):
        raise DataError(
            f"{path} is not a regular file but a pipe, socket or device, and a corpus is read more than once: "
            "write the text into a file, and name that"
        )
    suffixes = [suffix.lower() for suffix in path.suffixes]
    last = suffixes[-1] if suffixes else ""
    if last in ARCHIVES or (last in _UNPACK and ".tar" in suffixes[-2:-1]):
        raise DataError(f"{path} is an archive, not a text: extract it, then name the files in it in data.files")
    if last in _OTHER_COMPRESSION:
        raise DataError(f"{path}: this compression is not read: decompress it, or use .gz, .xz, .bz2 or .zst")
    if last in _NOT_TEXT:
        raise DataError(
            f"{path}: a {last} file is not text: put its text into a .txt or .jsonl file, and name that"
        )


def documents(path: Path, document: str, text_field: str, errors: str, replaced: Replaced) -> Iterator[str]:
    """The documents of a file, by the ending of its name.

    Args:
        path: txt or jsonl, each also compressed as .gz, .xz, .bz2 or .zst, or parquet.
        document: what a document of a .txt file is: `blank_line`, `line` or `file`.
        text_field: the field (jsonl) or column (parquet) that holds the text.
        errors: bytes that are not UTF-8 are refused (`strict`) or become U+FFFD (`replace`).
        replaced: counts the latter.

    Raises:
        DataError: names the file, and the line where there are lines.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _UNPACK:
        suffixes.pop()
    kind = suffixes[-1] if suffixes else ".txt"
    if kind == ".parquet":
        yield from _parquet_column(path, text_field)
    elif kind in (".jsonl", ".json", ".ndjson"):
        yield from _json_lines(path, _lines(path, errors, replaced), text_field)
    else:
        yield from _split(path, _lines(path, errors, replaced), document)


def _lines(path: Path, errors: str, replaced: Replaced) -> Iterator[str]:
    """The lines of a file that may be compressed; a byte-order mark of UTF-8 is dropped."""
    number = offset = 0
    try:
        with _open_binary(path) as stream:
            while line := stream.readline(LONGEST + 1):
                number += 1
                if len(line) > LONGEST:
                    raise DataError(
                        f"{path}, line {number}: longer than {in_units(LONGEST)}, the most that a line may have. "
                        "Break it into lines, or leave the file out if it is not what it claims to be"
                    )
                start, offset = offset, offset + len(line)
                if number == 1:
                    _refuse_other_encodings(path, line)
                    if line.startswith(_UTF8_MARK):
                        line, start = line[len(_UTF8_MARK) :], len(_UTF8_MARK)
                try:
                    text = line.decode()
                except UnicodeDecodeError as error:
                    if errors == "strict":
                        raise _not_utf8(path, number, start + error.start, line[error.start]) from error
                    text = line.decode(errors="replace")
                    replaced.bytes += len(line) - len(line.decode(errors="ignore").encode())
                    replaced.lines += 1
                del line  # a long one is not held twice while it is used
                yield text
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error
        raise DataError(
            f"{path}: damaged or cut off after line {number} ({str(error).strip() or type(error).__name__}); fetch "
            "or make it again"
        ) from error


def _open_binary(path: Path) -> IO[bytes]:
    """Opens a file by its ending; each of these readers notices a stream that is cut off."""
    suffix = path.suffix.lower()
    if suffix == ".zst":
        import pyarrow

        return BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))
    opener: Any = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(suffix, open)
    return opener(path, "rb")


def _refuse_other_encodings(path: Path, line: bytes) -> None:
    for mark, encoding in _MARKS.items():
        if line.startswith(mark):
            raise DataError(
                f"{path} begins with the mark of {encoding.upper()}, and UTF-8 is read. Convert it: "
                f"{_conversion(path, encoding)}"
            )


def _not_utf8(path: Path, number: int, offset: int, bad: int) -> DataError:
    where = "of the decompressed text" if path.suffix.lower() in _UNPACK else "of the file"
    return DataError(
        f"{path}, line {number}, byte offset {offset} {where}: 0x{bad:02x} is not UTF-8. Convert the file, for "
        f"example: {_conversion(path, 'latin1')}; or type data.errors=replace, which puts U+FFFD there"
    )


def _conversion(path: Path, encoding: str) -> str:
    """A command that writes a file in UTF-8 beside this one."""
    return _command(path, ["iconv", "-f", encoding, "-t", "utf-8"], "utf8")


def _command(path: Path, words: list[str], mark: str) -> str:
    """A command that has these words read the file and writes what they say beside it, under a name with `mark`."""
    unpack = _UNPACK.get(path.suffix.lower())
    plain = path.with_suffix("") if unpack else path
    new = shlex.quote(f"{plain.stem}.{mark}{plain.suffix}")
    if unpack:
        return f"{unpack} {shlex.quote(path.name)} | {shlex.join(words)} > {new}"
    return f"{shlex.join([*words, path.name])} > {new}"


def _split(path: Path, lines: Iterator[str], document: str) -> Iterator[str]:
    """Lines to documents: `line`, `blank_line`, or the whole `file`."""
    waiting: list[str] = []
    length = 0
    for line in lines:
        blank = not line.strip()
        if not blank or document == "file":
            waiting.append(line)
            length += len(line)
            if length > LONGEST:
                raise DataError(
                    f"{path}: a document of more than {in_units(LONGEST)} (data.document={document}); type "
                    "data.document=line, or put blank lines between documents"
                )
        del line
        if waiting and (document == "line" or (document == "blank_line" and blank)):
            yield _joined(waiting)
            length = 0
    if text := _joined(waiting):
        yield text


def _joined(waiting: list[str]) -> str:
    """The document of these lines; the list is emptied, so that a long one is not held twice."""
    text = "".join(waiting)
    waiting.clear()
    return text.strip()


def _json_lines(path: Path, lines: Iterator[str], text_field: str) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _not_a_row(path, number, line, str(error)) from error
        if isinstance(row, list) and number == 1:
            raise _not_a_row(path, number, line, "a list")
        if not isinstance(row, dict) or not isinstance(row.get(text_field), str):
            known = ", ".join(row) if isinstance(row, dict) else "no fields"
            raise DataError(
                f"{path}, line {number}: no text in the field {text_field!r} (it has: {known}); set data.text_field"
            )
        text = row[text_field]
        del row
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{path}, line {number}: half of a surrogate pair is not text ({error}); mend that row"
            ) from error
        yield text


def _not_a_row(path: Path, number: int, line: str, reason: str) -> DataError:
    if number == 1 and line.lstrip().startswith("["):
        return DataError(
            f"{path} is one JSON array, and one object a line is read. Convert it: "
            f"{_command(path, ['jq', '-c', '.[]'], 'lines')}"
        )
    return DataError(f"{path}, line {number}: not JSON ({reason}); one object a line is read: mend that line")


def _parquet_column(path: Path, column: str) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        table = parquet.ParquetFile(path)
        if column not in table.schema_arrow.names:
            raise DataError(
                f"{path}: no column {column!r} (it has: {', '.join(table.schema_arrow.names)}); set data.text_field"
            )
        if "string" not in str(kind := table.schema_arrow.field(column).type):
            raise DataError(f"{path}: the column {column!r} holds {kind}, not text; set data.text_field")
        for batch in table.iter_batches(columns=[column]):
            yield from (text for text in batch.column(0).to_pylist() if text)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: the column {column!r} is not UTF-8 ({error}); write it again as text") from error
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as parquet ({first_line(error)})") from error


def first_line(error: BaseException) -> str:
    """What a library says, without its report."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
