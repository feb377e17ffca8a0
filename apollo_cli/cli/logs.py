"""Which messages of Python's logging are shown."""

import logging


class OwnOrWarning(logging.Filter):
    """Passes warnings of all libraries, and every message of this program that its level lets through."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING or record.name.partition(".")[0] == "apollo_cli"
