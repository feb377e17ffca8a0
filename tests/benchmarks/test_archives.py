"""Archives of kept cells: reproducible, complete and small."""

import json
import os
import re
from pathlib import Path

import pytest

from apollo_cli.config.config import parse
from apollo_cli.run_directory import RunDirectory
from benchmarks import archives
from benchmarks.archives import BenchmarkCorpus, corpora
from benchmarks.cells import cells
from benchmarks.configs import config_of


def test_packing_what_was_unpacked_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = sorted(archives.RESULTS.glob("*.tar.bz2"), key=lambda path: path.stat().st_size)
    names = {
        "gpu_gpt",
        "long_bert",
        "long_gpt",
        "methods_bert",
        "methods_gpt",
        "mixing_bert",
        "mixing_gpt",
        "pydocs_bert",
        "pydocs_gpt",
    }
    names |= {"wikipedia_novels_bert", "wikipedia_novels_gpt"}
    assert {path.name for path in kept} == {f"{name}.tar.bz2" for name in names}
    corpus = next(corpus for corpus in corpora() if kept[0].name.startswith(f"{corpus.name}_"))  # the smallest
    before = {path.name: path.read_bytes() for path in kept if path.name.startswith(f"{corpus.name}_")}
    folder = corpus.folder
    monkeypatch.setattr(archives, "RESULTS", tmp_path)
    corpus.pack(folder)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_all_archives_are_packed_and_unpacked_by_a_command(no_results: None, tmp_path: Path) -> None:
    for cell in ("one/gpt_a", "two/bert_b"):
        (tmp_path / "cells" / cell).mkdir(parents=True)
        (tmp_path / "cells" / cell / "config.yaml").write_text(cell)
    archives.main("pack", str(tmp_path / "cells"))
    assert {path.name for path in archives.RESULTS.iterdir()} == {"one_gpt.tar.bz2", "two_bert.tar.bz2"}
    archives.main("unpack", str(tmp_path / "again"))
    assert (tmp_path / "again" / "two" / "bert_b" / "config.yaml").read_text() == "two/bert_b"


def test_an_archive_depends_on_names_and_content_alone(no_results: None, tmp_path: Path) -> None:
    def packed(names: list[str], time: int) -> bytes:
        folder = tmp_path / str(time)
        for name in names:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
            path.chmod(0o600 if time else 0o644)
            os.utime(path, (time, time))
        BenchmarkCorpus("made").pack(folder)
        return (archives.RESULTS / "made_gpt.tar.bz2").read_bytes()

    names = ["gpt_a/config.yaml", "gpt_a/glue/results.json", "gpt_times.json", ".gpt_b.tmp/config.yaml"]
    assert packed(names, 0) == packed(names[::-1], 1000)
    BenchmarkCorpus("made").unpack(tmp_path / "again")
    files = {
        path.relative_to(tmp_path / "again").as_posix() for path in tmp_path.glob("again/**/*") if path.is_file()
    }
    assert files == set(names[:3])
    assert not (archives.RESULTS / "made_bert.tar.bz2").exists()


def test_added_cells_are_in_the_archive_of_a_finished_campaign(no_results: None) -> None:
    corpus = BenchmarkCorpus("made")
    (corpus.folder / "gpt_a").mkdir()
    (corpus.folder / "gpt_a" / "summary.json").write_text("{}")
    assert BenchmarkCorpus("made").folder == corpus.folder
    corpus.save()
    assert not corpus.folder.exists()
    newer = BenchmarkCorpus("made")
    assert newer.folder != corpus.folder
    assert [path.name for path in newer.folder.iterdir()] == ["gpt_a"]


def test_a_campaign_of_one_kind_of_model_does_not_touch_another_beside_it(no_results: None) -> None:
    gpt, llama = (BenchmarkCorpus("made", kind=kind) for kind in ("gpt", "llama"))
    for corpus in (gpt, llama):
        (corpus.folder / f"{corpus.kind}_a").mkdir()
        (corpus.folder / f"{corpus.kind}_a" / "summary.json").write_text("{}")
    gpt.save()
    assert [path.name for path in llama.folder.iterdir()] == ["llama_a"]
    llama.save()
    assert {path.name for path in BenchmarkCorpus("made").folder.iterdir()} == {"gpt_a", "llama_a"}


def test_an_unknown_command_is_refused() -> None:
    with pytest.raises(SystemExit, match="burn: no such command; they are unpack and pack"):
        archives.main("burn", "somewhere")


def test_every_kept_cell_is_complete_and_names_no_path_of_a_machine() -> None:
    folders = [path.parent for corpus in corpora() for path in corpus.folder.glob("*/summary.json")]
    assert len(folders) == 350
    for folder in folders:
        run = RunDirectory(folder)
        assert run.summary()["status"] == "completed"
        last = json.loads((folder / "metrics.jsonl").read_bytes().splitlines()[-1])
        assert last["flops"] == run.plan()["flops"] == run.summary()["totals"]["flops"]
        assert not re.search(r'": "[/~]', (folder / "summary.json").read_text(encoding="utf-8"))
        assert not re.search(r": ['\"]?[/~](?!$)", (folder / "config.yaml").read_text(encoding="utf-8"))
    assert sum(path.stat().st_size for path in archives.RESULTS.iterdir()) < 3.5e6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pydocs", "wikipedia_novels"])
def test_kept_cells_were_trained_by_what_their_words_are_today(name: str) -> None:
    sections = ("model", "sampler", "expander", "schedule", "init_from", "optim", "budget", "batch", "eval")
    corpus = BenchmarkCorpus(name)
    for cell in corpus.complete(cells(name)):
        kept = parse(RunDirectory(corpus.kept(cell)).config())
        today = config_of([*cell.words, "device=cpu"])
        differing = [section for section in sections if getattr(kept, section) != getattr(today, section)]
        assert not differing, cell.name
