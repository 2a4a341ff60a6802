"""The end of a run's `trainer.log`, fit to be shown: no traceback, and no path of this machine."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

import orjson

from forgellm.runs.store import Run

_TAIL_BYTES = 1 << 20
_TRACEBACK = "Traceback (most recent call last):"
_ABSOLUTE_PATH = re.compile(r"(?<![\w.:/~-])/(?:[^\s/'\":,;()<>]+/)+")


class LoggedLine(NamedTuple):
    """`timestamp` and `level` are None for output that is no log line."""

    timestamp: str | None
    level: str | None
    message: str


def tail_log(run: Run, num_lines: int) -> list[LoggedLine]:
    """The last `num_lines` of the log, oldest first."""
    try:
        with open(run.log_file, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            data = file.read()
    except FileNotFoundError:
        return []
    lines = data.decode("utf-8", "replace").splitlines()
    if size > _TAIL_BYTES:
        lines = lines[1:]  # begins in the middle
    shown = [_parse(line, str(run.workspace.root)) for line in _without_tracebacks(lines)]
    return shown[-num_lines:]


def _without_tracebacks(lines: list[str]) -> list[str]:
    """Of a traceback only its last line, which names the error, is kept."""
    kept, inside = [], False
    for line in lines:
        if line.startswith(_TRACEBACK):
            inside = True
        elif not (inside and (line.startswith(" ") or not line)):
            inside = False
            kept.append(line)
    return kept


def _parse(line: str, root: str) -> LoggedLine:
    try:
        entry = orjson.loads(line)
        timestamp, level, message = entry["timestamp"], entry["level"], entry["message"]
    except (ValueError, KeyError, TypeError):
        timestamp, level, message = None, None, line
    shown = _ABSOLUTE_PATH.sub("", str(message).replace(root + "/", ""))
    return LoggedLine(timestamp, level, shown)
