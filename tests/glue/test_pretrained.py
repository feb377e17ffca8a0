"""Models in one file and in several."""

import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file

from apollo_cli.errors import CheckpointError
from apollo_cli.glue.pretrained import Pretrained
from apollo_cli.models.hf import load_trunk


def test_a_model_in_several_files_is_the_same_model(pretrained: Path, tmp_path: Path) -> None:
    run_dir, whole = tmp_path / "run", Pretrained.of_run(pretrained)
    shutil.copytree(pretrained, run_dir)
    tensors = load_file(run_dir / "model" / "model.safetensors")
    (run_dir / "model" / "model.safetensors").unlink()
    save_torch_state_dict(tensors, run_dir / "model", max_shard_size=20_000, metadata={"format": "pt"})
    parts = sorted((run_dir / "model").glob("model-*.safetensors"))
    assert len(parts) > 1
    for found in (Pretrained.of_run(run_dir), Pretrained.of_folder(run_dir / "model")):
        (one, _), (other, _) = (load_trunk(each.folder, 0.0) for each in (found, whole))
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
        assert found.facts["weights"] != whole.facts["weights"]
    before = Pretrained.of_folder(run_dir / "model").facts["weights"]
    parts[-1].write_bytes(parts[0].read_bytes())  # each file counts
    assert Pretrained.of_folder(run_dir / "model").facts["weights"] != before
    parts[-1].unlink()
    with pytest.raises(CheckpointError, match="not a BERT, GPT-2 or LLaMA model"):
        Pretrained.of_folder(run_dir / "model")


@pytest.mark.parametrize("index", ["[]", "{", "{}", '{"weight_map": 3}', '{"weight_map": {"a": "../a"}}'])
def test_a_damaged_index_is_an_error_of_the_user(index: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match="not a BERT, GPT-2 or LLaMA model"):
        Pretrained.of_folder(tmp_path)
