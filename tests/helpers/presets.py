"""The first texts of presets of the hub: `python -m tests.helpers.presets OPTION [data.key=value ...]`."""

import json
import sys

from apollo_cli.config.config import parse
from apollo_cli.config.data import HubArgs
from apollo_cli.config.hydra_syntax import compose_values
from apollo_cli.data.hub import Hub
from apollo_cli.errors import DataError


def first_texts(words: list[str]) -> list[str]:
    """The first text of each dataset of a preset, and of its split for validation, read as a stream."""
    data = parse(compose_values(words)).data
    assert isinstance(data, HubArgs)
    source = Hub(data.path, data.name, data.split, True, data.text_field, data.validation_split, data.revision)
    try:
        source.check_readable()
        found = [next(part.source.documents()) for part in source.parts()]
        return [*found, *([next(given)] if (given := source.validation()) else [])]
    except DataError as error:
        return [f"DataError: {error}"]


if __name__ == "__main__":
    print(
        json.dumps(
            {
                word: first_texts([f"data={part}" if "=" not in part else part for part in word.split()])
                for word in sys.argv[1:]
            }
        )
    )
