"""Who is training: a lock held for a trainer's whole life. A process id alone proves nothing.

The lock belongs to an open file, not to a process: the supervisor takes it and hands the open file
to the trainer, so at no moment does a starting run look dead.
"""

from __future__ import annotations

import fcntl
import os
import time
from dataclasses import asdict
from pathlib import Path

import orjson

from forgellm.atomic import read_json, storage_errors
from forgellm.errors import RunBusy, RunNotFound, TrainingFailed
from forgellm.runs.holder import Holder, boot_id, process_started

LOCK_NAME = "run.lock"
LOCK_FD_VARIABLE = "FORGELLM_LOCK_FD"

# A reader's probe holds a shared lock for microseconds; a writer that meets one tries again.
_ATTEMPTS = 50
_PAUSE_SECONDS = 0.005


class RunLock:
    """The lock of one run folder. Closing it frees it, unless a child holds the same open file."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK_NAME
        self._fd: int | None = None

    @classmethod
    def adopt(cls, folder: Path, fd: int) -> RunLock:
        """Take over a lock that the parent process holds through `fd`.

        Raises RunBusy if `fd` is not this run's lock.
        """
        lock = cls(folder)
        try:
            is_ours = os.path.samestat(os.fstat(fd), os.stat(lock.path))
        except OSError:
            is_ours = False
        if not is_ours or not _try_lock(fd, fcntl.LOCK_EX):
            raise _busy(folder)
        os.set_inheritable(fd, False)
        lock._fd = fd
        lock.write_holder(os.getpid())
        return lock

    def acquire(self) -> RunLock:
        """Take the lock. Raises RunBusy if another process has it, RunNotFound without a folder."""
        try:
            with storage_errors(LOCK_NAME):
                fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except TrainingFailed:
            if self.path.parent.is_dir():
                raise
            raise RunNotFound("The run is gone", details={"run": self.path.parent.name}) from None
        for _ in range(_ATTEMPTS):
            if _try_lock(fd, fcntl.LOCK_EX):
                self._fd = fd
                self.write_holder(os.getpid())
                return self
            time.sleep(_PAUSE_SECONDS)
        os.close(fd)
        raise _busy(self.path.parent)

    def fileno(self) -> int:
        assert self._fd is not None, "the lock is not held"
        return self._fd

    def write_holder(self, pid: int) -> None:
        """Name `pid` as the holder: this process, or the trainer that inherits the lock."""
        started = process_started(pid)
        if started is None:
            return
        text = orjson.dumps(asdict(Holder(pid, started, boot_id())))
        try:
            os.pwrite(self.fileno(), text, 0)
            os.ftruncate(self.fileno(), len(text))
        except OSError:
            os.ftruncate(self.fileno(), 0)  # full disk: better nobody named than a former holder

    def release(self) -> None:
        # Not LOCK_UN: that would also take the lock away from a trainer that inherited it.
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def take_lock(folder: Path) -> RunLock:
    """The run's lock for this process: the one its parent handed over, else a new one.

    Raises RunBusy.
    """
    inherited = os.environ.pop(LOCK_FD_VARIABLE, "")
    return RunLock.adopt(folder, int(inherited)) if inherited else RunLock(folder).acquire()


def is_locked(folder: Path | str) -> bool:
    """Whether some process holds the run's lock now. Takes nothing away from one about to take it."""
    try:
        fd = os.open(f"{folder}/{LOCK_NAME}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _try_lock(fd, fcntl.LOCK_SH)
    finally:
        os.close(fd)


def holder(folder: Path) -> Holder | None:
    """Who last wrote itself into the lock file; whether it still runs is another question."""
    text = read_json(folder / LOCK_NAME) or {}
    try:
        return Holder(int(text["pid"]), float(text["started"]), str(text["boot_id"]))
    except (KeyError, TypeError, ValueError):
        return None


def _try_lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _busy(folder: Path) -> RunBusy:
    return RunBusy(
        "Another process is working on this run",
        suggestion="Wait for it to end, or stop it.",
        details={"run": folder.name},
    )
