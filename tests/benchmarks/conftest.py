"""Kept results are unpacked once; campaigns of tests have folders of their own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import archives, campaign, results_page


@pytest.fixture(scope="session", autouse=True)
def _unpacked_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(archives, "UNPACKED", tmp_path_factory.mktemp("unpacked"))
        yield


@pytest.fixture
def no_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is kept yet."""
    monkeypatch.setattr(archives, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(archives, "UNPACKED", tmp_path / "unpacked")
    monkeypatch.setattr(campaign, "RUNNING", tmp_path / "running")
    monkeypatch.setattr(results_page, "FOLDER", tmp_path)


def part(title: str) -> list[str]:
    """Lines of a part of a page of results, without pictures."""
    text = results_page.page_of(title).read_text(encoding="utf-8")
    return without_pictures(text.partition(f"# {title}\n")[2].partition("\n# ")[0].splitlines())


def without_pictures(lines: list[str]) -> list[str]:
    return [line for line in lines if line and not line.startswith("![")]
