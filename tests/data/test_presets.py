"""What the presets of the hub name is there: `pytest -m network tests/data/test_presets.py` asks the hub.

Without a network a local server answers in its place (HF_ENDPOINT), as far as the datasets are described here.
"""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.helpers.stub_hub import SHA, stub_hub

PRESETS = ("wiki_books", "wikitext103", "wikitext2", "openwebtext", "fineweb_edu", "c4")


def parquet(**columns: str) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({name: [text] * 3 for name, text in columns.items()}), sink)
    return sink.getvalue()


def card(**configs: str) -> bytes:
    """The README.md of a dataset with these configurations: the folder of each."""
    listed = "".join(
        f"- config_name: {name}\n  data_files:\n"
        + "".join(f"  - split: {split}\n    path: {folder}/{split}*\n" for split in ("train", "validation"))
        for name, folder in configs.items()
    )
    return f"---\nconfigs:\n{listed}---\n".encode()


DATASETS = {
    "wikimedia/wikipedia": {
        "README.md": card(**{"20231101.en": "20231101.en"}).replace(
            b"  - split: validation\n    path: 20231101.en/validation*\n", b""
        ),
        "20231101.en/train-00000-of-00001.parquet": parquet(id="1", title="a", text="an article"),
    },
    "lucadiliello/bookcorpusopen": {"data/train-00000-of-00001.parquet": parquet(title="a", text="a whole book")},
    "EleutherAI/wikitext_document_level": {
        "README.md": card(**{name: name for name in ("wikitext-103-raw-v1", "wikitext-2-raw-v1")}),
        **{
            f"{name}/{split}-00000-of-00001.parquet": parquet(page=f"a page of {split}")
            for name in ("wikitext-103-raw-v1", "wikitext-2-raw-v1")
            for split in ("train", "validation")
        },
    },
    "Skylion007/openwebtext": {"openwebtext.py": b"raise SystemExit", "README.md": b""},
    "allenai/c4": {
        "README.md": card(en="en"),
        "en/train-0.parquet": parquet(other="no text", url="a"),
        "en/validation-0.parquet": parquet(other="no text", url="a"),
    },
}


def first_texts(home: Path, *words: str, endpoint: str = "https://huggingface.co") -> dict[str, list[str]]:
    """What `tests.helpers.presets` finds in a process of its own, which reaches the hub at `endpoint`."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.presets", *words],
        env={**environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.network
@pytest.mark.parametrize("option", PRESETS)
def test_the_hub_has_what_a_preset_names(option: str, tmp_path: Path) -> None:
    (texts,) = first_texts(tmp_path, option).values()
    assert all(len(text) > 3 and not text.startswith("DataError") for text in texts), texts


def test_presets_are_checked_against_what_a_hub_says(tmp_path: Path) -> None:
    pinned, gone = (f"wikitext2 data.revision={revision}" for revision in (SHA, "0" * 40))
    with stub_hub(DATASETS) as address:
        found = first_texts(tmp_path, *PRESETS, pinned, gone, endpoint=address)
    assert found["wiki_books"] == ["an article", "a whole book"]
    assert (
        found["wikitext103"] == found["wikitext2"] == found[pinned] == ["a page of train", "a page of validation"]
    )
    for option, said in {
        "openwebtext": r"a script of others is not run.*data\.revision=refs/convert/parquet",
        "c4": r"allenai/c4: no column 'text' \(it has: other, url\)",
        "fineweb_edu": "dataset 'HuggingFaceFW/fineweb-edu' cannot be opened",
        gone: f"of data.revision={'0' * 40} cannot be opened: .*404 Not Found",
    }.items():
        (error,) = found[option]
        assert re.search(f"^DataError: .*{said}", error), error
