"""`apollo-eval`. Heavy imports are deferred, so that `--help` is fast."""

from apollo_cli.cli.program import Program

PAGE = """\
apollo-eval: what trained models are worth on a text: loss, perplexity, bits per byte, accuracy.

usage: apollo-eval run=DIR [run=DIR ...] [data=NAME] [data.KEY=VALUE ...] [KEY=VALUE ...]

  run=DIR                      a run of apollo-train, or a BERT, GPT-2 or LLaMA of transformers; may stand again
  data.files=FILES             the text, as apollo-train takes it (data=..., data.path=...), all of it, or its
                               validation split where it has one; without it the rows that the run held out
  checkpoint=step_00000100     of the run, instead of its exported model
  depth=6                      so many layers run: fewer than are stored (early exit), or more (shared)
  rows=1024                    at most so many rows; of a stream 512 if it is not typed
  stride=32                    GPT: overlapping windows, each token with at least seq_len - 32 tokens before it
  pseudo=16                    BERT: also the pseudo-perplexity of so many rows, each token masked alone
  per_layer=true               what each layer is worth: the loss without it, its update, its likeness to the next
  device=auto  precision=auto  auto: that of the run, where this device has it
  --json                       print JSON instead of a table

examples
  apollo-eval run=outputs/apollo/2026-01-31_12-00-00-000000
  apollo-eval run=a run=b data.files=book.txt --json

Bits per byte compare models with different tokenizers. Exit codes: 0 done; 2 an error to fix; 1 a bug.
"""

_PROGRAM = Program("apollo-eval", PAGE, "apollo_cli.inference.evaluation_command:evaluate_models")
main, run = _PROGRAM.main, _PROGRAM.run

if __name__ == "__main__":
    main()
