"""Fine-tunes the reproduction's BERT models on GLUE: `python -m benchmarks.run_glue GLUE_DIR`.

GLUE_DIR has the original files of the tasks. A model whose weights are not in outputs/reproduction is trained anew.
Results are kept with each cell and not made again; an interrupted run is resumed.
"""

import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from threading import Lock

import torch

from apollo_cli.glue.tasks import TASKS
from apollo_cli.training.calibration import seconds_by_depth
from apollo_cli.training.device import choose
from apollo_cli.training.planning import make_plan, make_task
from benchmarks import glue_cells, render_glue
from benchmarks.campaign import Campaign, clock
from benchmarks.cells import RATES, ReproductionCell
from benchmarks.configs import config_of
from benchmarks.glue_cells import GlueUnit

PRECISION = "precision=fp32"  # on a GPU too: models of several machines are compared
_LOCKS: defaultdict[ReproductionCell, Lock] = defaultdict(Lock)  # one unit of a model at a time


def main(data_dir: str) -> None:
    """Fine-tunes what is missing and writes the report."""
    units = glue_cells.units()
    missing = [unit for unit in units if unit.missing]
    at_once = max(1, min(os.cpu_count() or 1, len(missing)))
    print(f"{len(units)} parts, {len(missing)} to do, {at_once} at once", flush=True)
    campaign = Campaign(glue_cells.CORPUS, (PRECISION,))
    if missing:
        print(f"about {clock(seconds(campaign, missing) / at_once)}; complete parts are kept", flush=True)
    work = partial(fine_tune, campaign, Path(data_dir).resolve())
    campaign.run_all(missing, work, at_once, "the same command")
    render_glue.write()
    campaign.save()


def fine_tune(campaign: Campaign, data_dir: Path, unit: GlueUnit, threads: int) -> None:
    """Fine-tunes the model of a unit on the missing tasks, and keeps the results."""
    with _LOCKS[unit.cell]:
        folder = campaign.trained(unit.cell, threads)
        words = (
            f"run={folder}",
            f"task={','.join(unit.missing)}",
            f"glue.data_dir={data_dir}",
            f"optim.lr={','.join(unit.group.rates)}",
            f"seed={','.join(map(str, glue_cells.FINE_TUNING_SEEDS))}",
            f"glue.epochs={glue_cells.EPOCHS}",
            f"batch.size={glue_cells.BATCH}",
            PRECISION,
            "log.every=200",
            "tracking=local",
        )
        campaign.run("apollo_cli.glue.command", words, folder.with_name(f"{unit.cell.name}_glue.log"), threads)
        glue_cells.keep(unit.cell, folder)
    tasks = glue_cells.kept(unit.cell)["tasks"]
    scores = ", ".join(f"{name} {100 * tasks[name]['mean']:.1f}" for name in unit.group.tasks)
    print(f"{unit.cell.name}: {scores}", flush=True)


def seconds(campaign: Campaign, missing: Sequence[GlueUnit]) -> float:
    """Seconds on one core, from a pretraining micro-step timed here: its rows are as long as GLUE's longest."""
    torch.set_num_threads(1)
    config = config_of(ReproductionCell("bert", "scratch", RATES["bert"][0], 0).words)
    step = seconds_by_depth(config, choose(config.run), make_task(config))(config.model.layers)
    rows = sum(TASKS[name].splits.train.rows * len(unit.group.rates) for unit in missing for name in unit.missing)
    fine_tuning = rows / glue_cells.BATCH * glue_cells.EPOCHS * len(glue_cells.FINE_TUNING_SEEDS)
    pretraining = make_plan(config, choose(config.run)).steps
    untrained = {unit.cell for unit in missing if not (campaign.run_directory(unit.cell) / "model").is_dir()}
    return step * (fine_tuning + pretraining * len(untrained))


if __name__ == "__main__":
    main(*sys.argv[1:])
