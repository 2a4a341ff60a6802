"""A run's `trainer.log`: a JSON object a line."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson

from forgellm.paths import iso_utc


class JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "timestamp": iso_utc(),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(line).decode()


@contextmanager
def logging_to(file: Path) -> Iterator[None]:
    """While it lasts, what this package logs also goes to `file`."""
    handler = logging.FileHandler(file)
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("forgellm")
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
        handler.close()
