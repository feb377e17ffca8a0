"""Reads the `.wandb` file of an offline run; the library no longer has a reader."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def history(path: Path) -> Iterator[dict[str, Any]]:
    """The rows, without what wandb adds to them."""
    for record in _parsed(path):
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            row = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}
            yield {key: value for key, value in row.items() if not key.startswith("_")}


def started(path: Path) -> Any:
    """The record of the run's start: its names, its tags and its config."""
    return next(record.run for record in _parsed(path) if record.WhichOneof("record_type") == "run")


def printed(path: Path) -> str:
    """The text of the log tab."""
    return "".join(r.output_raw.line for r in _parsed(path) if r.WhichOneof("record_type") == "output_raw")


def summary(path: Path) -> dict[str, Any]:
    """The final numbers."""
    found: dict[str, Any] = {}
    for record in _parsed(path):
        if record.WhichOneof("record_type") == "summary":
            found |= {u.key or ".".join(u.nested_key): json.loads(u.value_json) for u in record.summary.update}
    return found


def exit_codes(path: Path) -> list[int]:
    """The ends that were recorded: one, if the file was closed."""
    return [record.exit.exit_code for record in _parsed(path) if record.WhichOneof("record_type") == "exit"]


def _parsed(path: Path) -> Iterator[Any]:
    from wandb.proto import wandb_internal_pb2

    messages: Any = wandb_internal_pb2  # makes its classes when it is imported
    for content in _records(path.read_bytes()):
        record = messages.Record()
        record.ParseFromString(content)
        yield record


def _records(data: bytes) -> Iterator[bytes]:
    """LevelDB's log format: 7 bytes of W&B's own, then blocks of 32 KiB; 1 whole, 2 first, 3 middle, 4 last."""
    block, position, parts = 32768, 7, b""
    while position + 7 <= len(data):
        if block - position % block < 7:
            position += block - position % block
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""
