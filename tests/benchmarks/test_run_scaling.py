"""What is measured for the page on more than one machine, and the page."""

import itertools
from pathlib import Path

import pytest
import torch

from benchmarks import render_scaling, results_page, run_scaling
from benchmarks.scaling import CASES


def test_a_block_is_what_four_more_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_scaling, "_fastest", lambda model_config, depth, rows, device: {2: 1.0, 6: 3.0}[depth])
    assert run_scaling.block_seconds(CASES[0].model_config, 2, torch.device("cpu")) == 0.5


@pytest.mark.slow
def test_processes_here_are_set_beside_the_ideal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = list(run_scaling.here(steps=6))
    one, two = (line.strip("| ").split(" | ") for line in lines[-2:])
    assert one[0] == "1"
    assert one[2] == "100%"
    assert float(two[2].rstrip("%")) == pytest.approx(50 * float(two[1]) / float(one[1]), abs=1)


@pytest.mark.slow
def test_the_page_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = results_page.page_of(render_scaling.TITLE).read_text(encoding="utf-8")
    monkeypatch.setattr(results_page, "FOLDER", tmp_path)
    threads = torch.get_num_threads()
    run_scaling.main([])
    torch.set_num_threads(threads)
    sections = results_page.sections(render_scaling.TITLE)
    for name, section in sections.items():
        if name != "Blocks, measured":
            assert section in shipped, name
    rates = [float(line.split(" | ")[2].rstrip(" |")) for line in sections["Blocks, measured"].splitlines()[6:]]
    assert len(rates) == 4
    assert all(1e9 < rate < 1e12 for rate in rates)
    assert all(a != b for a, b in itertools.pairwise(rates))
