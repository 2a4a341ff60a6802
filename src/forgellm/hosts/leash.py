"""Runs a module for another machine, and ends it when that machine lets go.

    python -P -m forgellm.hosts.leash MODULE [ARGUMENT...]

Standard input is the leash: sshd closes it here when its other end is gone, which is all that a
process without a terminal gets to know.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress

import psutil

GRACE_SECONDS = 10.0


def main() -> int:
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", *sys.argv[1:]],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    let_go = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: let_go.set())
    ending = threading.Thread(target=_end_once, args=[let_go, process], daemon=True)
    ending.start()
    threading.Thread(target=_read_to_the_end, args=[let_go], daemon=True).start()
    code = process.wait()
    if let_go.is_set():
        ending.join()
    return 128 - code if code < 0 else code


def _read_to_the_end(let_go: threading.Event) -> None:
    with suppress(OSError):
        while os.read(0, 4096):
            pass
    let_go.set()


def _end_once(let_go: threading.Event, process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the module, and SIGKILL to what is left of it and of all that it had started."""
    let_go.wait()
    family: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_SECONDS)
    process.kill()
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.kill()


if __name__ == "__main__":
    sys.exit(main())
