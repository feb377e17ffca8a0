"""Documents from files. A file that holds no text is refused with one sentence, and memory is bounded."""

import bz2
import csv
import gzip
import json
import lzma
import re
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

from apollo_cli.data.compressed_streams import CompressedStreams
from apollo_cli.errors import DataError, first_line
from apollo_cli.files import in_units

MAX_LENGTH = 512_000_000  # bytes of a line, characters of a document: more is an error or a decompression bomb
_COLUMNAR = (".parquet", ".arrow", ".feather", ".ipc")
KINDS = (".txt", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", *_COLUMNAR)
_COMPRESSION = (".gz", ".xz", ".bz2", ".zst")
ARCHIVES = {".zip", ".tar", ".tgz", ".tbz", ".tbz2", ".txz", ".tzst", ".7z", ".rar", ".jar", ".whl"}
_NOT_TEXT = {
    *(".z", ".lz", ".lz4", ".lzma", ".lzo", ".br", ".pdf", ".doc", ".docx", ".odt", ".epub", ".png", ".jpg"),
    *(".jpeg", ".gif", ".mp3", ".mp4", ".exe", ".pkl", ".pickle", ".npy", ".npz", ".pt", ".pth", ".safetensors"),
    *(".bin", ".h5", ".sqlite", ".db"),
}
_MARKS = {  # at the start of a file; the longer ones first
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
_UTF8_MARK = "\ufeff"
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_MAX_NAMES = 300  # characters of the names of columns in a message
_JSON_BLOCK = 1 << 20  # characters of whole lines that are parsed together
_BETWEEN_VALUES = re.compile(r"[\s,]*")


@dataclass
class Reading:
    """Progress of reading a file, and the count of what `data.errors=replace` replaced."""

    size: int  # bytes of the file
    file: IO[bytes] | None = None  # as it is on the disk, before decompression; None before it is opened
    replaced_bytes: int = 0
    replaced_lines: int = 0

    @property
    def position(self) -> int:
        """Bytes of the file that were read."""
        if self.file is None:
            return 0
        return self.size if self.file.closed else self.file.tell()


def kind_of(path: Path) -> str:
    """The suffix that decides the format, in lower case: that before a suffix of compression."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSION:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def refuse_unsuitable(path: Path) -> None:
    """Raises a DataError for a broken link, a pipe or device, an archive, what is no text, or no permission."""
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
    last = path.suffix.lower()
    if last in ARCHIVES | _NOT_TEXT or kind_of(path) == ".tar":
        raise DataError(
            f"{path}: a {last} file is not read as text: name the files that it packs, or put its text into a .txt "
            f"or .jsonl ({', '.join(_COMPRESSION)} are decompressed)"
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
    kind = kind_of(path)
    if kind in _COLUMNAR:
        records = _columnar(path, kind, text_field, reading)
    elif kind in _DELIMITERS:
        records = _table(path, _lines(path, errors, reading), text_field, _DELIMITERS[kind])
    elif kind in (".jsonl", ".ndjson", ".json"):
        records = _json(path, _lines(path, errors, reading), text_field)
    else:
        yield from _split(path, _lines(path, errors, reading), document)
        return
    yield from _split(path, (f"{text}\n" for text in records if text), "file") if document == "file" else records


def _lines(path: Path, errors: str, reading: Reading) -> Iterator[str]:
    """The lines of a file that may be compressed, without byte-order marks.

    One at the start of a line is no text, but where a file was that now is joined to another. In a file that begins
    with one, a mark inside of a line is of a file that was joined to a last line without an end.
    """
    number = offset = 0
    is_marked = False
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
                if number == 1:
                    _refuse_other_encodings(path, line)
                try:
                    text = line.decode()
                except UnicodeDecodeError as error:
                    if errors == "strict":
                        raise _not_utf8(path, number, offset + error.start, line[error.start]) from error
                    text = line.decode(errors="replace")
                    reading.replaced_bytes += len(line) - len(line.decode(errors="ignore").encode())
                    reading.replaced_lines += 1
                offset += len(line)
                del line  # so that a long one is not in memory twice
                if _UTF8_MARK in text:
                    is_marked = is_marked or (number == 1 and text.startswith(_UTF8_MARK))
                    text = text.replace(_UTF8_MARK, "") if is_marked else text.removeprefix(_UTF8_MARK)
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
    if suffix == ".gz":
        unpacked: Any = gzip.open(file, "rb")  # noqa: SIM115
        return opened.enter_context(unpacked)
    decompressor: Any = {".bz2": bz2.BZ2Decompressor, ".xz": lzma.LZMADecompressor}.get(suffix)
    return opened.enter_context(BufferedReader(CompressedStreams(file, decompressor))) if decompressor else file


def _refuse_other_encodings(path: Path, line: bytes) -> None:
    encoding = next((name for mark, name in _MARKS.items() if line.startswith(mark)), None)
    seen = f"it begins with the mark of {str(encoding).upper()}"
    for name, zeros in (("utf-16le", line[1:1000:2]), ("utf-16be", line[:1000:2])):
        if not encoding and len(line) > 2 and zeros.count(0) > 0.9 * len(zeros):  # a letter of Latin script has one
            encoding = name
            seen = f"every other byte of its first line is zero, as in {name.upper()} without a mark"
    if encoding:
        raise DataError(f"{path}: {seen}, and UTF-8 is read: convert it, with iconv -f {encoding} -t utf-8")


def _not_utf8(path: Path, number: int, offset: int, bad: int) -> DataError:
    where = "of the decompressed text" if path.suffix.lower() in _COMPRESSION else "of the file"
    return DataError(
        f"{path}, line {number}, byte offset {offset} {where}: 0x{bad:02x} is not UTF-8. Convert the file, for "
        "example with iconv -f latin1 -t utf-8; or type data.errors=replace, which puts U+FFFD there"
    )


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


def _json(path: Path, lines: Iterator[str], text_field: str) -> Iterator[str]:
    """The texts of objects one after another, or of those in one array, with line breaks anywhere.

    Whole lines are parsed, as many as hold a complete object: what ends too early ends where they do. Lines that
    hold none are doubled in number, so that the time grows with the length of the file.
    """
    decode = json.JSONDecoder().raw_decode
    number, rest, has_begun = 1, "", False
    brackets = ""  # of the array around the objects, as far as they were read
    while block := _take(lines, max(_JSON_BLOCK, len(rest))):
        text, position, rest = rest + block, 0, ""
        if len(text) > MAX_LENGTH + 2 * _JSON_BLOCK:
            raise DataError(f"{path}, line {number}: an object of more than {in_units(MAX_LENGTH)}")
        while not rest:
            start, position = position, _BETWEEN_VALUES.match(text, position).end()  # type: ignore[union-attr]
            number += text.count("\n", start, position)
            if position == len(text):
                break
            if text[position] == {"": "[", "[": "]"}.get(brackets) and (brackets or not has_begun):
                brackets, position = brackets + text[position], position + 1
                continue
            try:
                if brackets == "[]":
                    raise ValueError("something follows the array")
                has_begun, (row, end) = True, decode(text, position)
            except (ValueError, RecursionError) as error:
                if getattr(error, "pos", 0) < len(text.rstrip()):
                    reason = getattr(error, "msg", error)
                    raise DataError(f"{path}, line {number}: not JSON ({reason}); correct it there") from error
                rest = text[position:]
                break
            yield _text_of(path, number, row, text_field)
            number += text.count("\n", position, end)
            position = end
            del row
    if rest or brackets == "[":
        raise DataError(f"{path}, line {number}: not JSON (the file ends in the middle); fetch or make it again")


def _take(lines: Iterator[str], length: int) -> str:
    """The next lines, of at least `length` characters together; fewer at the end."""
    taken: list[str] = []
    while length > 0 and (line := next(lines, None)) is not None:
        taken.append(line)
        length -= len(line)
    return "".join(taken)


def _text_of(path: Path, number: int, row: Any, text_field: str) -> str:
    """The text of a JSON object from line `number` on, empty for null; a DataError if it has no UTF-8 text."""
    where = f"{path}, line {number}"
    as_objects = f'write an object for each text, {{"{text_field}": "..."}}'
    if not isinstance(row, dict):
        raise DataError(f"{where}: {json.dumps(row)[:40]} is no object with a text; {as_objects}")
    if text_field not in row:
        raise nothing_in(where, "text in the field", text_field, row)
    text = "" if row[text_field] is None else row[text_field]
    if not isinstance(text, str):
        remedy = as_objects if isinstance(text, list | dict) else "write it in quotes"
        raise DataError(
            f"{where}: the field {text_field!r} holds {json.dumps(text)[:40]}, not text; {remedy}, or "
            f"set data.text_field (it has: {', '.join(row)[:_MAX_NAMES]})"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: half of a surrogate pair is not text ({error}); correct that row") from error
    return text


def _table(path: Path, lines: Iterator[str], column: str, delimiter: str) -> Iterator[str]:
    """A column of a table whose first row has the names; a row without text gives an empty document."""
    taken: list[str] = []  # lines of the current row

    def recorded() -> Iterator[str]:
        for line in lines:
            taken.append(line)
            yield line

    csv.field_size_limit(MAX_LENGTH)
    rows = csv.reader(recorded(), delimiter=delimiter, strict=True)
    names: list[str] = []
    try:
        for row in rows:
            where = f"{path}, line {rows.line_num - len(taken) + 1}"
            if row and not names:
                names = row
                if names.count(column) > 1:
                    raise _twice(path, column)
                if column not in names:
                    _refuse_other_delimiter(path, where, column, taken[-1], delimiter)
                    raise nothing_in(str(path), "column", column, names)
            elif row and len(row) != len(names):
                raise DataError(
                    f"{where}: {len(row)} columns, and the first row names {len(names)}; correct that row (a text "
                    "with commas or quotes is written in quotes)"
                )
            elif delimiter == "\t" and len(taken) > 1 and {line.count("\t") for line in taken} == {len(row) - 1}:
                raise DataError(
                    f"{where}: a quote opens a field there and closes {len(taken) - 1} lines below, and each of "
                    "these lines could be a row of its own. If the quotes are text, write a .jsonl, or double them "
                    "and put the text in quotes"
                )
            elif row and row != names:  # which come again where tables were joined
                yield row[names.index(column)]
            taken.clear()
    except csv.Error as error:
        if not names:
            _refuse_other_delimiter(path, f"{path}, line {rows.line_num}", column, taken[-1], delimiter)
        reason = "a quote opens a field there and never closes" if "end of data" in str(error) else str(error)
        raise DataError(
            f"{path}, line {rows.line_num - len(taken) + 1}: not a table ({reason}); correct that row: a text with "
            "quotes has them doubled and stands in quotes. If no quotes were meant so, write a .jsonl"
        ) from error


def _refuse_other_delimiter(path: Path, where: str, column: str, line: str, delimiter: str) -> None:
    """Raises a DataError if the line with the names has the column where it is parted otherwise."""
    for other in ",;\t|":
        if other != delimiter and column in next(csv.reader([line], delimiter=other)):
            raise DataError(
                f"{where}: its columns are parted by {other!r}, and those of a {kind_of(path)} by {delimiter!r}: "
                "write it so, or as .jsonl"
            )


def nothing_in(where: str, what: str, name: str, names: Iterable[str]) -> DataError:
    """The error for a record or table without `name`: `what` is a field or column, `names` are those it has."""
    known = ", ".join(names) or "no fields"
    if len(known) > _MAX_NAMES:  # of a table without names they are a text
        known = f"{known[:_MAX_NAMES]}..."
    return DataError(f"{where}: no {what} {name!r} (it has: {known}); set data.text_field")


def _twice(path: Path, column: str) -> DataError:
    return DataError(f"{path}: two columns are named {column!r}; rename one, or set data.text_field")


def _columnar(path: Path, kind: str, column: str, reading: Reading) -> Iterator[str]:
    """A column of a parquet or arrow file, batch by batch; a row without text gives an empty document.

    Text may be stored as bytes of UTF-8 or as categories. Everything is validated before a value is read, because
    an arrow file may point outside of itself.
    """
    import pyarrow
    from pyarrow import parquet

    what = "parquet" if kind == ".parquet" else "arrow"
    try:
        with ExitStack() as opened:
            file = _open_seekable(path, opened, reading)
            if what == "parquet":
                table = parquet.ParquetFile(file, page_checksum_verification=True)
                schema, batches = table.schema_arrow, table.iter_batches(batch_size=1000, columns=[column])
            else:
                schema, batches = _arrow(file)
            if schema.names.count(column) > 1:
                raise _twice(path, column)
            if (index := schema.get_field_index(column)) < 0:
                names = (f.name if _is_text(f.type) else f"{f.name} of {f.type}" for f in schema)
                raise nothing_in(str(path), "column", column, names)
            if not _is_text(type_ := schema.field(index).type):
                raise DataError(f"{path}: the column {column!r} holds {type_}, not text; set data.text_field")
            for batch in batches:
                texts = batch.column(column)
                texts.validate(full=True)
                yield from (text or "" for text in texts.cast(pyarrow.large_string()).to_pylist())
    except (OSError, EOFError, zlib.error, lzma.LZMAError, pyarrow.ArrowException) as error:
        if "UTF8" in str(error):
            raise DataError(
                f"{path}: the column {column!r} is not UTF-8 ({first_line(error)}); write it again as text"
            ) from error
        raise DataError(f"{path}: cannot be read as {what} ({first_line(error)})") from error


def _is_text(type_: Any) -> bool:
    """Whether a type of pyarrow holds text or bytes, plain or as categories."""
    name = str(getattr(type_, "value_type", type_) if str(type_).startswith("dictionary") else type_)
    return name in ("string", "large_string", "string_view") or "binary" in name.partition("<")[0]


def _open_seekable(path: Path, opened: ExitStack, reading: Reading) -> IO[bytes]:
    """Opens a file for random access; a compressed one is decompressed into a temporary file first."""
    stream = _open_binary(path, opened, reading)
    if path.suffix.lower() not in _COMPRESSION:
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

    def batches() -> Iterator[Any]:
        yield from stream
        if file.read(1):  # zeros in the middle are the mark of an end
            raise pyarrow.ArrowInvalid("its stream ends before the file does")

    return stream.schema, batches()
