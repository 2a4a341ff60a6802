"""Work in a process of its own, which keeps its time, its memory and its crashes away from the asker.

The child says on standard output what it does, a JSON object a line, and last its result or error.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from tempfile import TemporaryFile
from typing import IO, Any

import orjson

from forgellm.errors import ForgeError, OutOfMemory

OnProgress = Callable[[float, str], None]

_NICENESS = 10
_GRACE_SECONDS = 10.0
_LOGGED_BYTES = 4000
_log = logging.getLogger(__name__)


def run_child(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    what: str,
    on_progress: OnProgress = lambda fraction, text: None,
    on_start: Callable[[Callable[[], None]], None] = lambda stop: None,
) -> dict[str, Any]:
    """The result of a child that calls `serve`. `environment` is added to this process's.

    `on_start` is called with a function that ends the work, for use by another thread.
    Raises the child's ForgeError, or one that says that `what` ended without a result.
    """
    with (
        TemporaryFile() as complaints,
        _child(arguments, os.environ | environment, complaints) as process,
    ):
        on_start(process.terminate)
        result = _follow(process, on_progress)
        if result is None:
            complaints.seek(0)
            said = complaints.read()[-_LOGGED_BYTES:].decode("utf-8", "replace")
            _log.error("%s failed: %s", what, said)
            raise ForgeError(
                f"{what} ended without a result (exit status {process.wait()})",
                suggestion="If memory ran out, close other programs and try again.",
            )
    return result


def serve(work: Callable[[OnProgress], dict[str, Any]]) -> int:
    """The child's side: do the work, tell of it, and return the exit code."""
    os.nice(_NICENESS)  # a run that trains meanwhile matters more
    # What libraries print must not get between our lines.
    lines, sys.stdout = sys.stdout, sys.stderr

    def say(item: dict[str, Any]) -> None:
        print(orjson.dumps(item).decode(), file=lines, flush=True)

    # Leaves by an exception, so that an unfinished folder is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        result = work(lambda fraction, text: say({"progress": fraction, "message": text}))
    except ForgeError as error:
        say({"error": error.to_dict()})
        return error.exit_code
    except MemoryError:
        say({"error": OutOfMemory("The machine ran out of memory").to_dict()})
        return 1
    say({"result": result})
    return 0


def error_of(envelope: dict[str, Any]) -> ForgeError:
    """The error whose envelope another process wrote."""
    kinds: list[type[ForgeError]] = [ForgeError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    chosen = next((kind for kind in kinds if kind.code == envelope["error_code"]), ForgeError)
    error = chosen.__new__(chosen)  # some take other arguments than these
    ForgeError.__init__(
        error, envelope["error"], suggestion=envelope["suggestion"], details=envelope["details"]
    )
    return error


@contextmanager
def _child(
    arguments: Sequence[str], environment: Mapping[str, str], complaints: IO[bytes]
) -> Iterator[subprocess.Popen[bytes]]:
    """A child process that has ended when this ends, whatever happens."""
    with subprocess.Popen(
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=complaints,
        env=environment,
    ) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _follow(process: subprocess.Popen[bytes], on_progress: OnProgress) -> dict[str, Any] | None:
    """Read what the child says, until its result or its error."""
    assert process.stdout is not None
    for line in process.stdout:
        item: dict[str, Any] = orjson.loads(line)
        if "result" in item:
            return dict(item["result"])
        if "error" in item:
            raise error_of(item["error"])
        on_progress(item["progress"], item["message"])
    return None
