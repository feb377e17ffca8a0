"""lm-evaluation-harness reads the exported GPT, and gives texts the likelihood that ours does."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from apollo_cli.inference.trained import load_trained
from apollo_cli.tracking.console import Console

TASK = """\
task: own_words
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: loglikelihood
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
metric_list:
  - metric: perplexity
    aggregation: perplexity
    higher_is_better: false
"""
ROWS = [("some words", " in a"), ("the end", " of it all"), ("a", " b c")]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt", "llama"])
def test_the_harness_gives_the_same_likelihoods(
    kind: str, finished: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = pytest.importorskip("lm_eval", reason="pip install 'lm-eval[hf]'")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    lines = [json.dumps({"prompt": prompt, "answer": answer}) for prompt, answer in ROWS]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "task.yaml").write_text(TASK.format(file=tmp_path / "rows.jsonl"), encoding="utf-8")
    from lm_eval.tasks import TaskManager

    results = harness.simple_evaluate(
        model="hf",
        model_args=f"pretrained={finished(kind)}/model,dtype=float32",
        tasks=["own_words"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        device="cpu",
        batch_size=2,
        bootstrap_iters=0,
        log_samples=True,
    )
    trained = load_trained(finished(kind), Console(quiet=True))
    for sample, (prompt, answer) in zip(results["samples"]["own_words"], ROWS, strict=True):
        start, whole = (trained.tokenizer.encode(text).ids for text in (prompt, prompt + answer))
        with torch.no_grad():
            logits = trained.model.logits(torch.tensor([whole[:-1]]), range(4))[0].log_softmax(-1)
        expected = sum(logits[i - 1, whole[i]].item() for i in range(len(start), len(whole)))
        assert sample["filtered_resps"][0][0] == pytest.approx(expected, rel=1e-4)
