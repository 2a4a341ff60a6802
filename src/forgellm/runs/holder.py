"""Which process holds a lock, told apart from later users of its number, and how to end it."""

from __future__ import annotations

import errno
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

_PIDFD_SIGNAL_PROCESS_GROUP = 1 << 2


@dataclass(frozen=True)
class Holder:
    """A process as it wrote itself into a lock file.

    Attributes:
        started: see `process_started`.
        boot_id: of the start of the machine it ran under.
    """

    pid: int
    started: float
    boot_id: str

    def is_running(self) -> bool:
        return self.boot_id == boot_id() and process_started(self.pid) == self.started

    def kill(self) -> bool:
        """SIGKILL to it and, if it leads a process group, to all of that. True if sent.

        Nothing is sent unless it is beyond doubt the process that wrote itself into the file.
        """
        try:
            if sys.platform != "linux":
                return self.is_running() and _kill_by_number(self.pid)
            # Opened before the check: after it, this means the process even if its number is reused.
            handle = os.pidfd_open(self.pid)
            try:
                return self.is_running() and _kill_by_handle(handle, self.pid)
            finally:
                os.close(handle)
        except ProcessLookupError:
            return False


def boot_id() -> str:
    """Different after each start of the machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return str(int(psutil.boot_time()))


def process_started(pid: int) -> float | None:
    """When process `pid` began, or None if there is none.

    On Linux in ticks since boot: unlike a time of day, it does not move when the clock is set.
    """
    if not sys.platform.startswith("linux"):
        try:
            return psutil.Process(pid).create_time()
        except psutil.Error:
            return None
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The second field, the program's name in brackets, may itself hold spaces and brackets.
    return float(stat.rpartition(b")")[2].split()[19])


def _kill_by_handle(handle: int, pid: int) -> bool:
    flags = _PIDFD_SIGNAL_PROCESS_GROUP if os.getpgid(pid) == pid else 0
    try:
        signal.pidfd_send_signal(handle, signal.SIGKILL, None, flags)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return _kill_by_number(pid)  # Linux before 6.9 does not know the flag
    return True


def _kill_by_number(pid: int) -> bool:
    if os.getpgid(pid) == pid:
        os.killpg(pid, signal.SIGKILL)
    else:
        os.kill(pid, signal.SIGKILL)
    return True
