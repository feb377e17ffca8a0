import json
from pathlib import Path

import matplotlib.image

from apollo_cli.report.runs import RunFiles
from benchmarks.picture import loss_against_flops


def test_a_picture_of_two_runs(tmp_path: Path) -> None:
    runs = []
    for name in ("apollo", "scratch"):
        (tmp_path / name).mkdir()
        rows = [{"flops": f, "layers": 3, "eval/loss_full_depth": 9 - f / 1e12} for f in (0, 10**12, 2 * 10**12)]
        rows[1] |= {"growth/from": 1, "growth/to": 3}
        lines = [json.dumps(row) + "\n" for row in rows]
        (tmp_path / name / "metrics.jsonl").write_text("".join(lines) + '{"torn": ')
        runs.append(RunFiles(tmp_path / name))
    assert len(runs[0].rows) == 3
    loss_against_flops(runs, ["Apollo", "scratch"], tmp_path / "loss.png")
    picture = matplotlib.image.imread(tmp_path / "loss.png")
    assert picture.shape[:2] == (540, 960)
    assert len({tuple(pixel) for pixel in picture.reshape(-1, picture.shape[2]).round(2).tolist()}) > 10
