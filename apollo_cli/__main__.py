"""`python -m apollo_cli` is `apollo-train`."""

from apollo_cli.train import main

if __name__ == "__main__":
    main()
