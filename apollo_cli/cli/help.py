"""The help page: groups with their options, read from `conf/` itself, and examples."""

import re
from pathlib import Path

from apollo_cli.config.conf_folder import conf_folder

_FOR_PROGRAMS = re.compile("@package|yaml-language-server")  # comments that say nothing to people

_HEAD = """\
apollo-train: pretrain BERT, GPT and LLaMA while their depth grows (Apollo, arXiv 2401.09192).

usage: apollo-train [GROUP=OPTION ...] [KEY=VALUE ...] [-m]
"""

_TAIL = """\
keys, for example (all of them: apollo-train --cfg job)
  seed=0  name=apollo  device=auto  precision=auto  compile=auto
  plan=true                    print the plan and its exact FLOPs, train nothing
  resume=RUN_DIR               continue an interrupted run
  budget.steps=1600            or budget.tokens, budget.flops, budget.seconds
  batch.size=32  batch.micro=8 sequences a step, and a micro-step
  devices=2                    of this machine, a process each; or torchrun, srun (docs/devices.md)
  sampler.k=2  expander.moments=map  schedule.ends=[0.05,0.1,0.25,1]  optim.lr=1e-3

examples
  apollo-train
  apollo-train model=gpt sampler=lvps sampler.k=2
  apollo-train experiment=scratch_bert
  apollo-train data=text 'data.files=["corpus/*.txt"]' size=mini budget.tokens=1e8
  apollo-train -m seed=0,1 sampler=lvps,uniform,edge,full
  apollo-train -m experiment=ablation/k model=gpt

flags
  -m, --multirun               sweep over comma-separated values, one run each; typed again with the
                               hydra.sweep.dir that it prints, it continues; hydra/launcher=joblib: in parallel,
                               hydra/launcher=slurm: as jobs of Slurm; hydra/sweeper=optuna: search intervals
  --config-dir DIR             presets of your own beside the shipped ones: DIR/experiment/mine.yaml, ...
  -sc install=SHELL            completion of groups and keys: eval "$(apollo-train -sc install=bash)"; zsh, fish
  --cfg job                    print the config and exit
  --schema                     print the JSON schema of presets, for editors: > schema.json
  --version                    print the version and exit
  --hydra-help                 Hydra's own flags

Exit codes: 0 done; 2 wrong input, explained in one message; 130 / 143 interrupted, resumable; 1 a bug.
"""


def groups(folder: Path | None = None) -> dict[str, dict[str, str]]:
    """{group: {option: the first sentence of its file}}, by default the shipped ones; in folders as paper/gpt2."""
    found: dict[str, dict[str, str]] = {}
    folder = folder or conf_folder()
    for path in sorted(folder.glob("*/**/[!_]*.yaml")):
        group, *option = path.relative_to(folder).with_suffix("").parts
        if group == "hydra" or any(part.startswith("_") for part in option):
            continue
        lines = path.read_text(encoding="utf-8").splitlines()
        said = [line for line in lines if line.startswith("#") and not _FOR_PROGRAMS.search(line)]
        comments = [line.lstrip("# ") for line in said]
        found.setdefault(group, {})["/".join(option)] = comments[0] if comments else ""
    return found


def page() -> str:
    order = ("model", "size", "sampler", "expander", "schedule", "data", "optim", "tracking", "experiment")
    known = groups()
    lines = []
    for group in (*order, *(g for g in known if g not in order)):
        lines.append(group)
        width = max(map(len, known[group]))
        for option, sentence in known[group].items():
            sentence = re.sub(rf"^apollo-train (-m )?experiment={option}: ", "", sentence)
            lines.append(f"  {option:<{max(width, 14)}}  {sentence}")
    return "\n".join([_HEAD, *lines, "", _TAIL])
