"""The other machines of a run, made to train along over ssh by the machine that writes it."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from forgellm.engines.machines import Meeting, free_port
from forgellm.engines.stop_requests import running
from forgellm.errors import ConfigError, TrainingFailed
from forgellm.hosts.file import find_hosts
from forgellm.hosts.network import own_address_towards
from forgellm.hosts.remote import start_on
from forgellm.runs.store import Run
from forgellm.schema.recipe import Recipe

_POLL_SECONDS = 0.5
_FAREWELL_SECONDS = 20.0


def endpoint_for(run: Run, recipe: Recipe) -> str:
    """Where the others find this machine. Raises ConfigError."""
    if recipe.rdzv_endpoint is not None:
        return recipe.rdzv_endpoint
    first = find_hosts(run.workspace, recipe.hosts)[0]
    address = own_address_towards(first)
    if address is None:
        raise ConfigError.one("hosts", f"no way leads from here to {first.address}")
    shown = f"[{address}]" if ":" in address else address
    return f"{shown}:{free_port(address)}"


@contextmanager
def training_along(
    run: Run, recipe: Recipe, meeting: Meeting, command: list[str]
) -> Iterator[None]:
    """The machines named in the recipe take part for as long as this lasts.

    One that does not come ends the wait for it at once, and with it this process's `command`s.
    Raises ConfigError, Unavailable, TrainingFailed.
    """
    hosts = find_hosts(run.workspace, recipe.hosts) if recipe.hosts else []
    with open(run.log_file, "ab") as log:
        started = {host.name: start_on(host, _arguments(recipe, meeting), log) for host in hosts}
    absent: list[str] = []
    over = threading.Event()
    watcher = threading.Thread(
        target=_watch, args=(started, absent, over, command), name="machines", daemon=True
    )
    watcher.start()
    try:
        yield
    except BaseException as error:
        if absent:
            raise _not_come(absent[0], started[absent[0]]) from error
        raise
    finally:
        over.set()
        watcher.join()
        _part(list(started.values()))


def _arguments(recipe: Recipe, meeting: Meeting) -> list[str]:
    return [
        "forgellm.training",
        *("--join", meeting.endpoint),
        *("--engine", recipe.engine),
        *("--nproc-per-node", str(meeting.nproc_per_node)),
        *("--nnodes", str(meeting.nnodes)),
        *("--max-restarts", str(meeting.max_restarts)),
    ]


def _watch(
    started: dict[str, subprocess.Popen[bytes]],
    absent: list[str],
    over: threading.Event,
    command: list[str],
) -> None:
    """While processes run here, they notice by themselves what becomes of the others."""
    while not over.wait(_POLL_SECONDS):
        gone = [name for name, process in started.items() if process.poll()]
        if gone and not any(running(command)):
            absent += gone
            os.kill(os.getpid(), signal.SIGTERM)
            return


def _not_come(name: str, process: subprocess.Popen[bytes]) -> TrainingFailed:
    return TrainingFailed(
        f"{name} did not take part, or not to the end (exit status {process.returncode}); trainer.log says why",
        suggestion=f"See what it lacks: forgellm hosts check {name}",
        details={"host": name},
    )


def _part(processes: list[subprocess.Popen[bytes]]) -> None:
    """Wait for those that are about to end anyway, and end the others."""
    deadline = time.monotonic() + _FAREWELL_SECONDS
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
        process.communicate()  # lets go of the leash
