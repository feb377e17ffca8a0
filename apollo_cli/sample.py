"""`apollo-sample`. Heavy imports are deferred, so that `--help` is fast."""

from apollo_cli.cli.program import Program

PAGE = """\
apollo-sample: text from a trained GPT, or the likeliest words for [MASK] from a trained BERT.

usage: apollo-sample run=DIR prompt=TEXT [KEY=VALUE ...]

  run=DIR                      a run of apollo-train, or a BERT, GPT-2 or LLaMA of transformers
  checkpoint=step_00000100     of the run, instead of its exported model
  depth=6                      so many layers run: fewer than are stored (early exit), or more (shared)
  prompt=TEXT                  taken as it is typed; or prompt_file=FILE, or standard input
  tokens=100  number=1         most tokens of a continuation, and how many continuations
  temperature=1                0 takes the likeliest token each time
  top_k=50  top_p=0.9          draw among the likeliest tokens only
  seed=0                       of the draws; the i-th continuation has seed + i
  candidates=5                 words for each [MASK]

examples
  apollo-sample run=outputs/apollo_gpt/2026-01-31_12-00-00-000000 prompt="The module" temperature=0.8
  apollo-sample run=outputs/apollo/2026-01-31_12-00-00-000000 prompt="the [MASK] of a list"

Exit codes: 0 done; 2 an error to fix; 130 interrupted; 1 a bug.
"""

_PROGRAM = Program("apollo-sample", PAGE, "apollo_cli.inference.sampling_command:sample")
main, run = _PROGRAM.main, _PROGRAM.run

if __name__ == "__main__":
    main()
