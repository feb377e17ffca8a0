from pathlib import Path

import pytest
from rich.console import Console

from apollo_cli.data.batches import MaskedTokens, NextToken, TrainingBatches
from apollo_cli.data.corpus import load_corpus
from apollo_cli.data.inspect import inspection
from apollo_cli.data.mixture import Mixture
from apollo_cli.data.recipe import Recipe
from apollo_cli.data.sources import Part, TextFiles
from apollo_cli.data.tokenizer import special_ids


@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_inspection_shows_statistics_and_rows_with_their_masks(
    documents: list[str], tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join([*documents, documents[0]]), encoding="utf-8")
    (tmp_path / "b.txt").write_text("\n\n".join(documents[:50]), encoding="utf-8")
    source = Mixture(tuple(Part(TextFiles((str(tmp_path / f"{name}.txt"),)), 1.0) for name in "ab"))
    entries = {"bert": 200, "gpt": 300}[kind]
    corpus = load_corpus(source, Recipe(kind, "auto", entries, 32, 0.1), tmp_path / "cache", lambda line: None)
    task = (
        MaskedTokens(0.15, special_ids(kind, corpus.tokenizer)["mask"], entries) if kind == "bert" else NextToken()
    )
    batches = TrainingBatches(corpus.training, task, 0, 4, 4, corpus.order)
    console = Console(width=200, highlight=False)
    for table in inspection(corpus, batches):
        console.print(table, markup=False)
    shown = " ".join(capsys.readouterr().out.split())
    packed = corpus.packed
    held = packed.documents["validation"]
    assert f"351: {351 - held} training, {held} validation (held out)" in shown
    assert "51 of them are copies" in shown
    assert f"{packed.tokens:,} of a vocabulary of {entries}" in shown
    assert f"{packed.num_bytes / packed.tokens:.3f}" in shown
    assert "0 of the tokens (0.00%) are unknown to the tokenizer" in shown
    assert f"{len(corpus.training):,} training, {len(corpus.validation):,} validation, of 32 tokens" in shown
    assert "b.txt │ 1 │" in shown
    assert shown.count("→[MASK]⟧") == (
        int((batches.micro_batch(0, 0).tokens[:3] == task.mask_id).sum()) if isinstance(task, MaskedTokens) else 0
    )
    first = corpus.tokenizer.decode(batches.rows[batches.row_numbers(0, 0)[0]][1:5].tolist())
    assert first.split()[-1] in shown
