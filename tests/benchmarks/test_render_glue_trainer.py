"""The table beside transformers' Trainer."""

import json
from pathlib import Path

import pytest

from benchmarks import render_glue_trainer


def test_scores_of_both_sides_are_in_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = {
        "apollo-glue": {"rte": {"0": 0.5, "1": 0.6}, "mrpc": {"0": 0.7}},
        "Trainer": {"rte": {"0": 0.55, "1": 0.55}},
    }
    monkeypatch.setattr(render_glue_trainer, "KEPT", tmp_path / "trainer.json")
    render_glue_trainer.KEPT.write_text(json.dumps(scores), encoding="utf-8")
    table = [line for line in render_glue_trainer.lines() if line.startswith("| ")]
    assert table[2:] == ["| RTE | 55.0 ± 63.5 (n = 2) | 55.0 ± 0.0 (n = 2) | 50.0, 60.0 | 55.0, 55.0 |"]
