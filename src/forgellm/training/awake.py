"""Keeps a Mac awake while a run is on: it would sleep in the middle of a night's training."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from collections.abc import Iterator


@contextlib.contextmanager
def kept_awake() -> Iterator[None]:
    """The display may sleep, which spares the GPU its other work; the machine may not.

    Elsewhere than on macOS this does nothing. Not run on a Mac so far.
    """
    if platform.system() != "Darwin":
        yield
        return
    # -w: it ends with this process, however that ends.
    command = ["/usr/bin/caffeinate", "-i", "-m", "-s", "-w", str(os.getpid())]
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.terminate)
        yield
