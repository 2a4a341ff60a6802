"""Asks a machine over ssh what it has, and keeps how far that came."""

from __future__ import annotations

import re
import shlex
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from tempfile import TemporaryFile

from pydantic import ValidationError

from forgellm.hosts.remote import ask, remote_command
from forgellm.schema.hosts import Host, ProbeReport

NO_WORKSPACE, NO_PYTHON = 91, 92

_REACHED = "forgellm-reached"
_PYTHON = re.compile(r"Python (\d+\.\d+\S*)")
_SAID_BYTES = 8000


@dataclass
class Answer:
    """Attributes:
    seconds: until the first word over ssh; None where none came.
    python_version: as `python -V` says it.
    report: None where the probe did not run to its end, or speaks another language.
    status: the exit status of ssh, negative where it was killed for taking too long.
    said: what was printed on the way to standard error.
    """

    seconds: float | None = None
    python_version: str | None = None
    report: ProbeReport | None = None
    status: int = 0
    said: str = ""


def ask_host(host: Host, probe_arguments: Sequence[str], limit_seconds: float) -> Answer:
    """Runs the probe on `host`. Raises Unavailable where this machine has no ssh."""
    answer, started = Answer(), time.monotonic()
    with (
        TemporaryFile() as complaints,
        ask(host, _script(host, probe_arguments), complaints) as process,
    ):
        timer = threading.Timer(limit_seconds, process.kill)
        timer.daemon = True
        timer.start()
        assert process.stdout is not None
        for raw in process.stdout:
            line = raw.decode("utf-8", "replace").strip()
            if line == _REACHED:
                answer.seconds = time.monotonic() - started
            else:
                _read(line, answer)
        answer.status = process.wait()
        timer.cancel()
        complaints.seek(0)
        answer.said = complaints.read()[-_SAID_BYTES:].decode("utf-8", "replace")
    return answer


def _script(host: Host, probe_arguments: Sequence[str]) -> str:
    """Each step says of itself whether it was the one that failed."""
    workspace, python = shlex.quote(host.workspace), shlex.quote(host.python)
    return (
        f"echo {_REACHED}; cd {workspace} || exit {NO_WORKSPACE}; "
        f"{python} -V 2>&1 || exit {NO_PYTHON}; "
        + remote_command(host, ["forgellm.hosts.probe", *probe_arguments])
    )


def _read(line: str, answer: Answer) -> None:
    """A line of output; what a shell's start-up files print is passed over."""
    if match := _PYTHON.fullmatch(line):
        answer.python_version = match[1]
    elif line.startswith("{"):
        try:
            answer.report = ProbeReport.model_validate_json(line)
        except ValidationError:
            pass
