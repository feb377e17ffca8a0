"""Fine-tuning on a CUDA device: the numbers of the CPU, and no wait between two rows."""

from pathlib import Path

import pytest

from apollo_cli.glue.command import run
from apollo_cli.glue.finetuning import FineTuning
from tests.conftest import read_rows
from tests.training.test_gpu import refuse_to_wait

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_losses_scores_and_flops_are_those_of_the_cpu(
    kind: str, pretrained: Path, gpt_folder: Path, quick: tuple[str, ...], tmp_path: Path
) -> None:
    model = f"run={pretrained}" if kind == "bert" else f"model={gpt_folder}"
    words = [model, "task=stsb", *quick, "glue.dropout=0", "precision=fp32"]
    for device in ("cpu", "cuda"):
        assert run([*words, f"device={device}", f"out={tmp_path / device}"]) == 0
    cpu, cuda = (read_rows(tmp_path / device / "stsb" / "lr0.001_seed0") for device in ("cpu", "cuda"))
    close = ("train/loss", "eval/loss", "eval/pearson", "eval/spearman")
    for ours, expected in zip(cuda, cpu, strict=True):
        assert ours.keys() == expected.keys()
        assert (ours["flops"], ours["tokens"]) == (expected["flops"], expected["tokens"])
        found, wanted = ({name: row[name] for name in close if name in row} for row in (ours, expected))
        assert found == pytest.approx(wanted, rel=1e-3)
    assert sum("eval/pearson" in row for row in cuda) == 3  # before, and after each epoch


@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_between_rows_nothing_waits_for_the_device(
    kind: str,
    pretrained: Path,
    gpt_folder: Path,
    quick: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done = refuse_to_wait(FineTuning, 2, monkeypatch)  # before is what is done once
    model = f"run={pretrained}" if kind == "bert" else f"model={gpt_folder}"
    words = [model, "task=mrpc", *quick, "device=cuda", "log.every=100", "checkpoint.every=100"]
    assert run([*words, f"out={tmp_path}"]) == 0
    assert done == list(range(1, 7))
