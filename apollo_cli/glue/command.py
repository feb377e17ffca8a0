"""`apollo-glue`: parse, call, exit code. Heavy imports are deferred, so that `--help` is fast."""

import os
from datetime import datetime
from pathlib import Path

from apollo_cli.cli.exit_codes import report
from apollo_cli.cli.program import Program, unknown_flag
from apollo_cli.errors import ConfigError
from apollo_cli.training.distributed.environment import ProcessEnv

NAME = "apollo-glue"
PAGE = """\
apollo-glue: fine-tune a pretrained BERT or GPT on GLUE and measure it with the official metrics.

usage: apollo-glue run=RUN_DIR|model=FOLDER [task=NAMES] [KEY=VALUE ...]

  run=RUN_DIR                  a complete run of apollo-train
  model=FOLDER                 a BERT, GPT-2 or LLaMA of transformers (config.json, model.safetensors, tokenizer)
  task=cola,rte                cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli; all (the default)
  glue.data_dir=DIR            the original files, CoLA/train.tsv and so on; else nyu-mll/glue of the hub
  seed=0,1,2                   seeds of the head, the order of the rows, dropout
  optim.lr=2e-5,3e-5,5e-5      each with each seed; a narrow model needs more, say 1e-4,3e-4,1e-3
  glue.epochs=3  glue.max_length=128  glue.dropout=0.1  batch.size=32  optim.warmup=0.1
  device=auto  precision=auto  log.every=50  checkpoint.every=500  tracking=local
  out=DIR                      folder of the results; glue/ in the run directory, outputs/glue/... for a model
  resume=OUT                   continue what was interrupted, as the same command does; only keys of tracking,
                               checkpoint and on_nonfinite may be typed beside it

examples
  apollo-glue run=outputs/apollo/2026-01-31_12-00-00-000000 task=cola,rte
  apollo-glue model=bert-base task=all glue.data_dir=glue

Results: a table, results.json, and submission/ for gluebenchmark.com. The same command skips runs that are done.
Exit codes: 0 done; 2 an error to fix, in one message; 130 / 143 interrupted, resumable; 1 a bug.
"""


def _fine_tune(words: list[str]) -> int | None:
    if env := ProcessEnv.from_environ(os.environ):
        alone = f"start {NAME} once, not as {env.world_size} processes; for one on its own, type: {env.unset}"
        raise ConfigError(f"fine-tuning takes one device: {alone}")
    if flags := [word for word in words if word.startswith("-")]:
        raise ConfigError(*(unknown_flag(flag, NAME) for flag in flags))

    from apollo_cli.glue.grid import FineTuningGrid
    from apollo_cli.glue.section import compose_words, parse_glue
    from apollo_cli.tracking.wandb import check_variables

    config = parse_glue(compose_words(words))
    check_variables(config.tracking)
    of_model = Path("outputs/glue") / datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
    out = Path(config.out or (Path(config.run) / "glue" if config.run else of_model))
    try:
        FineTuningGrid(config, out).run()
    except Exception as error:
        return report(error, out, NAME)
    return None


_PROGRAM = Program(NAME, PAGE, _fine_tune)
main, run = _PROGRAM.main, _PROGRAM.run

if __name__ == "__main__":
    main()
