"""Steps beyond one machine: `python -m benchmarks.run_scaling`, a minute.

Seconds of a block are measured here: on a GPU those of every model, kept in benchmarks/results/blocks.json, which
predict for clusters of that GPU; on a CPU those of the small models alone. All else are closed forms.
`python -m benchmarks.run_scaling here` also measures one and two processes here, which needs two idle cores.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time

import torch

from apollo_cli import files
from apollo_cli.growth.layer_maps import layer_map
from apollo_cli.models.build import build
from apollo_cli.models.flops import FORWARD_AND_BACKWARD
from apollo_cli.models.model_config import ModelConfig
from apollo_cli.models.transformer import Batch
from benchmarks import render_scaling, results_page
from benchmarks.scaling import CASES, Case


def block_seconds(model_config: ModelConfig, rows: int, device: torch.device) -> float:
    """Seconds of a block's forward and backward pass, from the fastest steps of models of two and six layers.

    On a CPU these are CPU seconds of one core, so that other load counts little.
    """
    shallow, deep = (_fastest(model_config, depth, rows, device) for depth in (2, 6))
    return (deep - shallow) / 4


def _fastest(model_config: ModelConfig, depth: int, rows: int, device: torch.device, repeats: int = 7) -> float:
    model = build(model_config, depth).to(device)
    for block in model.blocks if device.type == "cuda" else ():
        block.compile()  # as in a run
    tokens = torch.randint(model_config.vocabulary, (rows, model_config.positions), device=device)
    batch = Batch(tokens, torch.arange(rows, device=device), tokens[:, 0])  # few predictions: the head costs little
    clock = process_time if device.type == "cpu" else perf_counter
    times = []
    for _ in range(repeats):
        start = clock()
        with torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
            loss = model.loss(batch, layer_map("nearest", depth, depth))
        loss.backward()
        model.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(clock() - start)
    return min(times)


def measured() -> Iterator[tuple[str, float, float]]:
    """Name of a model, seconds of a block, and FLOP/s, for each model measured on this machine."""
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    small = [
        Case(f"{kind} {size}", ModelConfig(kind, 4096, 128, width, heads, 4 * width, 12), 16, 1)
        for kind in ("bert", "gpt")
        for size, width, heads in (("nano", 128, 2), ("mini", 256, 4))
    ]
    for case in CASES if on_gpu else small:
        seconds = block_seconds(case.model_config, case.rows, device)
        yield case.name, seconds, FORWARD_AND_BACKWARD * case.forward_flops(1, head=False) / seconds


def here(most: int = 2, steps: int = 40) -> Iterator[str]:
    """Section of the page: tokens a second of GPT nano on one and two processes of one thread."""
    rates = [_tokens_per_second(devices, steps) for devices in range(1, most + 1)]
    yield f"## {render_scaling.HERE}"
    yield ""
    yield "GPT nano, 16 sequences of 128 tokens a step, all 12 layers, ddp over gloo, one thread a process:"
    yield ""
    yield from results_page.table(
        ("processes", "tokens/s", "of the ideal"),
        ((str(n), f"{rate:.0f}", f"{rate / n / rates[0]:.0%}") for n, rate in enumerate(rates, 1)),
    )


def _tokens_per_second(devices: int, steps: int) -> float:
    """Median over the rows of a run without the first, which includes warming up."""
    words = [
        "model=gpt",
        "size=nano",
        "optim=adamw",
        "schedule=scratch",
        "sampler=full",
        "tracking=local",
        f"devices={devices}",
    ]
    words += [f"budget.steps={steps}", "log.every=2", f"eval.every={steps}", "eval.rows=16", "device=cpu"]
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "apollo_cli.train", *words, f"hydra.run.dir={folder}/run"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
        rows = (json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").open(encoding="utf-8"))
        rates = [row["perf/tokens_per_second"] for row in rows if "perf/tokens_per_second" in row]
    return median(rates[1:])


def main(words: Sequence[str]) -> None:
    """Measures, predicts and writes the page; with the word `here` also measures processes on this machine.

    On a GPU it writes blocks.json and no page.
    """
    torch.manual_seed(0)
    torch.set_num_threads(1)
    found = list(measured())
    if torch.cuda.is_available():
        seen = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "blocks": found}
        files.write_json(render_scaling.BLOCKS, seen)
        return
    section = list(here()) if "here" in words else []
    results_page.put(render_scaling.TITLE, render_scaling.report(found, section))


if __name__ == "__main__":
    main(sys.argv[1:])
