"""`apollo-push`: parse, call, exit code."""

from apollo_cli.cli.program import Program

PAGE = """\
apollo-push: uploads a trained model, its tokenizer and its card to the Hugging Face hub.

usage: apollo-push RUN_DIR REPO [--public] [--ema]

  RUN_DIR     a run of apollo-train that is complete, or a folder in transformers' format
  REPO        NAME/MODEL, or MODEL in your own account; made there if it does not exist
  --public    a new repository is public; without it only you see it. One that exists stays as it is
  --ema       the average of the weights (model_ema) instead of the weights

Only the model's own files are uploaded: config, weights, tokenizer, card. The token is that of `hf auth login` or
HF_TOKEN.

example
  apollo-push outputs/apollo_gpt/2026-01-31_12-00-00-000000 my-name/apollo-gpt

Exit codes: 0 done; 2 an error to fix; 1 a bug.
"""

_PROGRAM = Program("apollo-push", PAGE, "apollo_cli.inference.publishing:push")
main, run = _PROGRAM.main, _PROGRAM.run

if __name__ == "__main__":
    main()
