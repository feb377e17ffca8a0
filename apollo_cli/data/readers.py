"""Documents from files. A file that holds no text is refused with one sentence, and memory is bounded."""

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
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

from apollo_cli.errors import DataError
from apollo_cli.files import in_units

MAX_LENGTH = 512_000_000  # bytes of a line, characters of a document: more is an error or a decompression bomb
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
_COLUMNAR = (".parquet", ".arrow", ".feather", ".ipc")
_STRINGS = ("string", "large_string", "string_view")  # types of pyarrow
_MAX_NAMES = 300  # characters of the names of columns in a message
_JSON_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


@dataclass
class Reading:
    """Progress of reading a file, and the count of what `data.errors=replace` replaced.

    Attributes:
        size: bytes of the file.
        file: the file as it is on the disk, before decompression; None before it is opened.
        replaced_bytes, replaced_lines: not UTF-8.
    """

    size: int
    file: IO[bytes] | None = None
    replaced_bytes: int = 0
    replaced_lines: int = 0

    @property
    def position(self) -> int:
        """Bytes of the file that were read."""
        if self.file is None:
            return 0
        return self.size if self.file.closed else self.file.tell()


def refuse_unsuitable(path: Path) -> None:
    """Checks a file by its type and its name, before it is opened.

    Raises:
        DataError: a broken link, a pipe or device, an archive, another format than text, or no permission.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if path.is_symlink() and isinstance(error, FileNotFoundError):
            raise DataError(
                f"{path} is a broken link: it points to {path.readlink()}, and nothing is there. Correct the link "
                "or leave it out of data.files"
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


def read_documents(path: Path, document: str, text_field: str, errors: str, reading: Reading) -> Iterator[str]:
    """The documents of a file; the suffix of its name decides the format.

    Args:
        path: txt, jsonl, json, csv, tsv, parquet or arrow, each also compressed as .gz, .xz, .bz2 or .zst.
        document: where a document of a .txt file ends: at a `blank_line`, a `line`, or the end of the `file`. In
            other formats every record is a document, but with `file` all of them are one.
        text_field: the field (json) or column (csv, parquet, arrow) that holds the text.
        errors: bytes that are not UTF-8 are refused (`strict`) or become U+FFFD (`replace`).
        reading: is updated while the file is read.

    Raises:
        DataError: names the file, and the line where there are lines.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _UNPACK:
        suffixes.pop()
    kind = suffixes[-1] if suffixes else ".txt"
    if kind in _COLUMNAR:
        records = _columnar(path, kind, text_field, reading)
    else:
        lines = _lines(path, errors, reading)
        if kind in (".jsonl", ".ndjson"):
            records = _json_lines(path, lines, text_field)
        elif kind == ".json":
            records = _json_values(path, lines, text_field)
        elif kind in (".csv", ".tsv"):
            records = _csv_column(path, lines, text_field, "," if kind == ".csv" else "\t")
        else:
            yield from _split(path, lines, document)
            return
    yield from _split(path, (f"{text}\n" for text in records if text), "file") if document == "file" else records


def _lines(path: Path, errors: str, reading: Reading) -> Iterator[str]:
    """The lines of a file that may be compressed; a byte-order mark of UTF-8 is dropped."""
    number = offset = 0
    try:
        with ExitStack() as opened:
            next_line = partial(_open_binary(path, opened, reading).readline, MAX_LENGTH + 1)
            while line := next_line():
                if not number and b"\r" in line and not line.endswith(b"\n") and len(line) <= MAX_LENGTH:
                    next_line = partial(next, iter(line.splitlines(keepends=True)), b"")  # as on old Macs
                    line = next_line()
                number += 1
                if len(line) > MAX_LENGTH:
                    raise DataError(
                        f"{path}, line {number}: longer than {in_units(MAX_LENGTH)}, the most that a line may have."
                        " Break it into lines, or leave the file out if it is not what its name says"
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
                del line  # so that a long one is not in memory twice
                yield text
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error
        raise DataError(
            f"{path}: damaged or cut off after line {number} ({str(error).strip() or type(error).__name__}); fetch "
            "or make it again"
        ) from error


def _open_binary(path: Path, opened: ExitStack, reading: Reading) -> IO[bytes]:
    """Opens a file by its suffix; each decompressor detects a truncated stream."""
    file = reading.file = opened.enter_context(path.open("rb"))
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
    return _command(path, ["iconv", "-f", encoding, "-t", "utf-8"], "utf8")


def _command(path: Path, words: list[str], mark: str) -> str:
    """A shell command that runs `words` on the file and writes their output beside it, under a name with `mark`."""
    unpack = _UNPACK.get(path.suffix.lower())
    plain = path.with_suffix("") if unpack else path
    new = shlex.quote(f"{plain.stem}.{mark}{plain.suffix}")
    if unpack:
        return f"{unpack} {shlex.quote(path.name)} | {shlex.join(words)} > {new}"
    return f"{shlex.join([*words, path.name])} > {new}"


def _split(path: Path, lines: Iterator[str], document: str) -> Iterator[str]:
    """Joins lines to documents that end at each `line`, at each `blank_line`, or at the end of the `file`."""
    waiting: list[str] = []
    length = 0
    for line in lines:
        blank = not line.strip()
        if not blank or document == "file":
            waiting.append(line)
            length += len(line)
            if length > MAX_LENGTH:
                raise DataError(
                    f"{path}: a document of more than {in_units(MAX_LENGTH)} (data.document={document}); type "
                    "data.document=line, or put blank lines between documents"
                )
        del line
        if waiting and (document == "line" or (document == "blank_line" and blank)):
            yield _joined(waiting)
            length = 0
    if text := _joined(waiting):
        yield text


def _joined(waiting: list[str]) -> str:
    """The document of these lines; empties the list, so that a long one is not in memory twice."""
    text = "".join(waiting)
    waiting.clear()
    return text.strip()


def _json_lines(path: Path, lines: Iterator[str], text_field: str) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if number == 1 and line.lstrip().startswith("["):
            raise DataError(
                f"{path} is one JSON array, and one object a line is read in such a file. Name it .json, or "
                f"convert it: {_command(path, ['jq', '-c', '.[]'], 'lines')}"
            )
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path}, line {number}: not JSON ({error}); one object a line is read: correct that line"
            ) from error
        yield _text_of(path, number, row, text_field)
        del row


def _text_of(path: Path, number: int, row: Any, text_field: str) -> str:
    """The text of a JSON object; empty for null.

    Raises:
        DataError: it has no text, or none that can be written as UTF-8.
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
            f"{path}, line {number}: half of a surrogate pair is not text ({error}); correct that row"
        ) from error
    return text


def _json_values(path: Path, lines: Iterator[str], text_field: str) -> Iterator[str]:
    """The texts of one JSON array, or of a sequence of objects, with line breaks anywhere.

    Lines are collected until every bracket in them is closed, so that each is parsed once.
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
    """The texts of complete objects, with commas between them in an array; `first` is the line where they begin."""
    decoder, position, ended = json.JSONDecoder(), 0, False
    while position < len(text):
        character = text[position]
        if character.isspace() or (in_array and character == "," and not ended):
            position += 1
        elif in_array and character == "]" and not ended:
            position, ended = position + 1, True
        else:
            number = first + text.count("\n", 0, position)
            try:
                if ended:
                    raise ValueError("something follows the array")
                row, position = decoder.raw_decode(text, position)
            except (ValueError, RecursionError) as error:
                reason = str(error).replace(f": line {getattr(error, 'lineno', 0)} column", ": column")
                raise DataError(f"{path}, line {number}: not JSON ({reason}); correct it there") from error
            yield _text_of(path, number, row, text_field)


def _csv_column(path: Path, lines: Iterator[str], column: str, delimiter: str) -> Iterator[str]:
    """A column of a table whose first row has the names; a row without text gives an empty document."""
    csv.field_size_limit(MAX_LENGTH)
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        names = next((row for row in rows if row), [])
        if names and column not in names:
            raise _no_column(path, column, names)
        index = names.index(column) if names else 0
        for row in rows:
            if row and len(row) != len(names):
                raise DataError(
                    f"{path}, line {rows.line_num}: {len(row)} columns, and the first row names {len(names)}; "
                    "correct that row (a text with commas or quotes is written in quotes)"
                )
            if row:
                yield row[index]
    except csv.Error as error:
        raise DataError(f"{path}, line {rows.line_num}: not a table ({error}); correct that row") from error


def _no_column(path: Path, column: str, names: Iterable[str]) -> DataError:
    known = ", ".join(names)
    if len(known) > _MAX_NAMES:  # of a table without names they are a text
        known = f"{known[:_MAX_NAMES]}..."
    return DataError(f"{path}: no column {column!r} (it has: {known}); set data.text_field")


def _columnar(path: Path, kind: str, column: str, reading: Reading) -> Iterator[str]:
    """A column of a parquet or arrow file, batch by batch; a row without text gives an empty document."""
    import pyarrow
    from pyarrow import parquet

    what = "parquet" if kind == ".parquet" else "arrow"
    try:
        with ExitStack() as opened:
            file = _open_seekable(path, opened, reading)
            if what == "parquet":
                table = parquet.ParquetFile(file)
                schema, batches = table.schema_arrow, table.iter_batches(batch_size=1000, columns=[column])
            else:
                schema, batches = _arrow(file)
            if column not in schema.names:
                raise _no_column(path, column, schema.names)
            type_ = schema.field(column).type
            if str(type_.value_type if pyarrow.types.is_dictionary(type_) else type_) not in _STRINGS:
                raise DataError(f"{path}: the column {column!r} holds {type_}, not text; set data.text_field")
            for batch in batches:
                yield from (text or "" for text in batch.column(column).to_pylist())
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: the column {column!r} is not UTF-8 ({error}); write it again as text") from error
    except (OSError, EOFError, zlib.error, lzma.LZMAError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as {what} ({first_line(error)})") from error


def _open_seekable(path: Path, opened: ExitStack, reading: Reading) -> IO[bytes]:
    """Opens a file for random access; a compressed one is decompressed into a temporary file first."""
    stream = _open_binary(path, opened, reading)
    if path.suffix.lower() not in _UNPACK:
        return stream
    whole = opened.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
    shutil.copyfileobj(stream, whole)
    whole.seek(0)
    return whole


def _arrow(file: IO[bytes]) -> tuple[Any, Iterator[Any]]:
    """Schema and batches of Arrow's file format, or of its stream format, which `datasets` writes."""
    import pyarrow

    if file.read(6) == b"ARROW1":
        table = pyarrow.ipc.open_file(file)
        return table.schema, (table.get_batch(i) for i in range(table.num_record_batches))
    file.seek(0)
    stream = pyarrow.ipc.open_stream(file)
    return stream.schema, iter(stream)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its class."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
