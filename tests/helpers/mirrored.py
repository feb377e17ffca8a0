"""A run reduced to its rows, with the real recorder, which measures its own times.

python -m tests.helpers.mirrored RUN_DIR MODE TIMEOUT ROWS GAP [FIRST]
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from apollo_cli.config.training import TrackingArgs
from apollo_cli.tracking.metrics_file import MetricsFile
from apollo_cli.tracking.wandb import Identity, open_mirror


def main(run_dir: Path, mode: str, timeout: float, rows: int, gap: float, first: int) -> None:
    """Prints the lines of the recorder, then the seconds of each part as JSON; continues before row `first`."""
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / "metrics.jsonl"
    kept = path.read_bytes().splitlines(keepends=True)[:first] if first else []
    metrics = MetricsFile(path, sum(map(len, kept)))
    tracking = TrackingArgs.model_validate({"wandb": mode, "project": None, "timeout": timeout})
    identity = Identity("abc", "n", "g", ("bert",))
    times: dict[str, float] = {"row": 0.0}
    start = time.monotonic()
    mirror = open_mirror(tracking, identity, {"a": 1}, run_dir, metrics.dropped_rows, _print_line)
    times["open"] = time.monotonic() - start
    for step in range(first, rows):
        row: dict[str, Any] = {"step": step, "flops": 10 * step, "train/loss": 1.0}
        metrics.append(row)
        start = time.monotonic()
        if mirror:
            mirror.row(row)
        times["row"] = max(times["row"], time.monotonic() - start)
        time.sleep(gap)
    print("closing", flush=True)
    start = time.monotonic()
    if mirror:
        mirror.close("completed", {"totals": {"steps": rows}, "losses": {"eval/loss": 2.0}})
    times["close"] = time.monotonic() - start
    print(json.dumps(times | {"ended": time.monotonic()}), flush=True)


def _print_line(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    where, how, *numbers = sys.argv[1:]
    timeout, rows, gap, first = (*map(float, numbers), 0)[:4]
    main(Path(where), how, timeout, int(rows), gap, int(first))
