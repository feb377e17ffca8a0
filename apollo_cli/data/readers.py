"""Files of a corpus to documents. What is no text is refused in one sentence, and memory is bounded."""

import bz2
import csv
import gzip
import json
import lzma
import re
import shlex
import shutil
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
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
    *(".pkl", ".pickle", ".npy", ".npz", ".pt", ".pth", ".safetensors", ".bin", ".h5", ".sqlite", ".db")
}
_MARKS = {  # at the start of a file; the longer ones first
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
_UTF8_MARK = b"\xef\xbb\xbf"


_ARROW = (".arrow", ".feather", ".ipc")
_SHOWN = 300  # characters of the names of columns in a message
_JSON_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


@dataclass
class Reading:
    """How far a file was read, and what `data.errors=replace` replaced in it.

    Attributes:
        size: bytes of the file.
        tell: its position, while it is open, in bytes before they are decompressed.
    """

    size: int
    replaced_bytes: int = 0
    replaced_lines: int = 0
    tell: Callable[[], int] | None = None

    @property
    def position(self) -> int:
        """Bytes of the file that were read."""
        try:
            return self.tell() if self.tell else 0
        except ValueError:  # it was closed at its end
            return self.size


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


def documents(path: Path, document: str, text_field: str, errors: str, reading: Reading) -> Iterator[str]:
    """The documents of a file, by the ending of its name.

    Args:
        path: txt, jsonl, json, csv, tsv, parquet or arrow, each also compressed as .gz, .xz, .bz2 or .zst.
        document: where a document of a .txt file ends: at a `blank_line`, a `line` (or `row`), or the end of the
            `file`. In other files every row is a document, but with `file` they are one together.
        text_field: the field (json) or column (csv, parquet, arrow) that holds the text.
        errors: bytes that are not UTF-8 are refused (`strict`) or become U+FFFD (`replace`).
        reading: counts the latter.

    Raises:
        DataError: names the file, and the line where there are lines.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _UNPACK:
        suffixes.pop()
    kind = suffixes[-1] if suffixes else ".txt"
    if kind in (".parquet", *_ARROW):
        rows = _columnar(path, kind, text_field, reading)
    elif kind in (".jsonl", ".ndjson"):
        rows = _json_lines(path, _lines(path, errors, reading), text_field)
    elif kind == ".json":
        rows = _json_values(path, _lines(path, errors, reading), text_field)
    elif kind in (".csv", ".tsv"):
        rows = _csv_column(path, _lines(path, errors, reading), text_field, "," if kind == ".csv" else "\t")
    else:
        yield from _split(path, _lines(path, errors, reading), document)
        return
    yield from _split(path, (f"{row}\n" for row in rows if row), document) if document == "file" else rows


def _lines(path: Path, errors: str, reading: Reading) -> Iterator[str]:
    """The lines of a file that may be compressed; a byte-order mark of UTF-8 is dropped."""
    number = offset = 0
    try:
        with ExitStack() as opened:
            next_line = partial(_open_binary(path, opened, reading).readline, LONGEST + 1)
            while line := next_line():
                if not number and b"\r" in line and not line.endswith(b"\n") and len(line) <= LONGEST:
                    next_line = partial(next, iter(line.splitlines(keepends=True)), b"")  # as on old Macs
                    line = next_line()
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
                    reading.replaced_bytes += len(line) - len(line.decode(errors="ignore").encode())
                    reading.replaced_lines += 1
                del line  # a long one is not held twice while it is used
                yield text
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error
        raise DataError(
            f"{path}: damaged or cut off after line {number} ({str(error).strip() or type(error).__name__}); fetch "
            "or make it again"
        ) from error


def _open_binary(path: Path, opened: ExitStack, reading: Reading) -> IO[bytes]:
    """Opens a file by its ending; each of these readers notices a stream that is cut off."""
    file = opened.enter_context(path.open("rb"))
    reading.tell = file.tell
    suffix = path.suffix.lower()
    if suffix == ".zst":
        import pyarrow

        return opened.enter_context(BufferedReader(pyarrow.input_stream(file, compression="zstd")))
    opener: Any = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(suffix)
    return opened.enter_context(opener(file, "rb")) if opener else file


def _refuse_other_encodings(path: Path, line: bytes) -> None:
    for mark, encoding in _MARKS.items():
        if line.startswith(mark):
            raise DataError(
                f"{path} begins with the mark of {encoding.upper()}, and UTF-8 is read. Convert it: "
                f"{_conversion(path, encoding)}"
            )
    for encoding, zeros in (("utf-16le", line[1:1000:2]), ("utf-16be", line[:1000:2])):
        if len(line) > 2 and zeros.count(0) > 0.9 * len(zeros):  # a letter of Latin script has one
            raise DataError(
                f"{path}: every other byte of its first line is zero, as in {encoding.upper()} without a mark, and "
                f"UTF-8 is read. Convert it: {_conversion(path, encoding)}"
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
    """Lines to documents: `line` (or `row`), `blank_line`, or the whole `file`."""
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
        if waiting and (document in ("line", "row") or (document == "blank_line" and blank)):
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
        yield _text_of(path, number, row, text_field)
        del row


def _not_a_row(path: Path, number: int, line: str, reason: str) -> DataError:
    if number == 1 and line.lstrip().startswith("["):
        return DataError(
            f"{path} is one JSON array, and one object a line is read in such a file. Name it .json, or convert "
            f"it: {_command(path, ['jq', '-c', '.[]'], 'lines')}"
        )
    return DataError(f"{path}, line {number}: not JSON ({reason}); one object a line is read: mend that line")


def _text_of(path: Path, number: int, row: Any, text_field: str) -> str:
    """The text of a row of JSON; a null is a blank one.

    Raises:
        DataError: it has none, or none that can be written as UTF-8.
    """
    if not isinstance(row, dict) or text_field not in row:
        known = ", ".join(row) if isinstance(row, dict) else "no fields"
        raise DataError(
            f"{path}, line {number}: no text in the field {text_field!r} (it has: {known}); set data.text_field"
        )
    text = "" if row[text_field] is None else row[text_field]
    if not isinstance(text, str):
        raise DataError(
            f"{path}, line {number}: the field {text_field!r} holds {json.dumps(text)[:40]}, not text; write it in "
            f"quotes, or set data.text_field (it has: {', '.join(row)})"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{path}, line {number}: half of a surrogate pair is not text ({error}); mend that row"
        ) from error
    return text


def _json_values(path: Path, lines: Iterator[str], text_field: str) -> Iterator[str]:
    """The objects of one JSON array, or of a sequence of objects, however they are broken into lines.

    Lines wait until all brackets in them are closed again, so that each is parsed once.
    """
    waiting: list[str] = []
    depth, outer, first, number = 0, 0, 1, 0
    for number, line in enumerate(lines, 1):
        if not waiting:
            if not line.strip():
                continue
            if not outer and first == 1 and line.lstrip().startswith("["):
                outer, depth, line = 1, 1, line.lstrip()[1:]
            first = number
        waiting.append(line)
        bare = _JSON_STRING.sub("", line)
        depth += bare.count("{") + bare.count("[") - bare.count("}") - bare.count("]")
        if depth <= outer:
            yield from _values_in(path, "".join(waiting), first, text_field, in_array=bool(outer))
            waiting.clear()
            first = number + 1
    if waiting or (outer and depth > 0):
        raise DataError(f"{path}, line {number}: the JSON ends in the middle; fetch or make it again")


def _values_in(path: Path, text: str, first: int, text_field: str, *, in_array: bool) -> Iterator[str]:
    """The texts of whole objects, between which there are commas in an array; `first` is the text's line."""
    decoder, place, ends = json.JSONDecoder(), 0, False
    while place < len(text):
        mark = text[place]
        if mark.isspace() or (in_array and mark == "," and not ends):
            place += 1
        elif in_array and mark == "]" and not ends:
            place, ends = place + 1, True
        else:
            number = first + text.count("\n", 0, place)
            try:
                if ends:
                    raise ValueError("something follows the array")
                row, place = decoder.raw_decode(text, place)
            except (ValueError, RecursionError) as error:
                reason = str(error).replace(f": line {getattr(error, 'lineno', 0)} column", ": column")
                raise DataError(f"{path}, line {number}: not JSON ({reason}); mend it there") from error
            yield _text_of(path, number, row, text_field)


def _csv_column(path: Path, lines: Iterator[str], column: str, delimiter: str) -> Iterator[str]:
    """A column of a table whose first row has the names; a row without text in it is a blank document."""
    csv.field_size_limit(LONGEST)
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        names = next((row for row in rows if row), [])
        if names and column not in names:
            raise _no_column(path, column, names)
        place = names.index(column) if names else 0
        for row in rows:
            if row and len(row) != len(names):
                raise DataError(
                    f"{path}, line {rows.line_num}: {len(row)} columns, and the first row names {len(names)}; mend "
                    "that row (a text with commas or quotes is written in quotes)"
                )
            if row:
                yield row[place]
    except csv.Error as error:
        raise DataError(f"{path}, line {rows.line_num}: not a table ({error}); mend that row") from error


def _no_column(path: Path, column: str, names: Iterable[str]) -> DataError:
    known = ", ".join(names)
    known = known if len(known) <= _SHOWN else f"{known[:_SHOWN]}..."  # a table without names has a text there
    return DataError(f"{path}: no column {column!r} (it has: {known}); set data.text_field")


def _columnar(path: Path, kind: str, column: str, reading: Reading) -> Iterator[str]:
    """A column of a parquet or arrow file, batch by batch; a row without text in it is a blank document."""
    import pyarrow

    what = "parquet" if kind == ".parquet" else "arrow"
    try:
        with ExitStack() as opened:
            file = _seekable(path, opened, reading)
            schema, batches = _parquet(file, column) if what == "parquet" else _arrow(file)
            if column not in schema.names:
                raise _no_column(path, column, schema.names)
            if not _holds_text(kind_of_column := schema.field(column).type):
                raise DataError(
                    f"{path}: the column {column!r} holds {kind_of_column}, not text; set data.text_field"
                )
            for batch in batches:
                yield from (text or "" for text in batch.column(column).to_pylist())
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: the column {column!r} is not UTF-8 ({error}); write it again as text") from error
    except (OSError, EOFError, zlib.error, lzma.LZMAError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as {what} ({first_line(error)})") from error


def _seekable(path: Path, opened: ExitStack, reading: Reading) -> IO[bytes]:
    """The file, decompressed where it is compressed: these formats are not read from front to back."""
    stream = _open_binary(path, opened, reading)
    if path.suffix.lower() not in _UNPACK:
        return stream
    whole = opened.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
    shutil.copyfileobj(stream, whole)
    whole.seek(0)
    return whole


def _parquet(file: IO[bytes], column: str) -> tuple[Any, Iterator[Any]]:
    import pyarrow.parquet as parquet

    table = parquet.ParquetFile(file)
    return table.schema_arrow, table.iter_batches(batch_size=1000, columns=[column])


def _arrow(file: IO[bytes]) -> tuple[Any, Iterator[Any]]:
    """Both of its formats: the file, and the stream, which `datasets` writes."""
    import pyarrow

    if file.read(6) == b"ARROW1":
        table = pyarrow.ipc.open_file(file)
        return table.schema, (table.get_batch(i) for i in range(table.num_record_batches))
    file.seek(0)
    stream = pyarrow.ipc.open_stream(file)
    return stream.schema, iter(stream)


def _holds_text(kind: Any) -> bool:
    return str(getattr(kind, "value_type", kind)) in (
        "string",
        "large_string",
        "string_view",
    ) and "list" not in str(kind)


def first_line(error: BaseException) -> str:
    """What a library says, without its report."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
