"""`python -m apollo_cli` is `apollo-train`."""

from apollo_cli.train import main

main()
