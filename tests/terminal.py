"""A command in a terminal of its own, with someone who types."""

from __future__ import annotations

import fcntl
import os
import pty
import subprocess
import termios
from pathlib import Path
from threading import Thread

from serving import eventually

READY = "\x1b[?2004h"  # the editor of the line asks the terminal to mark what is pasted


class Terminal:
    """`state` is where the command keeps the user's history."""

    def __init__(self, arguments: list[str], state: Path) -> None:
        self._master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (40, 100))
        self.process = subprocess.Popen(
            arguments,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            # Makes it the controlling terminal, so that Ctrl-C becomes a signal.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            env=os.environ
            | {"XDG_STATE_HOME": str(state), "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"},
        )
        os.close(slave)
        self.shown = ""
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def type(self, keys: str) -> None:
        self.shown = ""
        os.write(self._master, keys.encode())

    def wait_for(self, text: str) -> None:
        eventually(lambda: text in self.shown or self.process.poll() is not None)
        assert text in self.shown, self.shown

    def _read(self) -> None:
        try:
            while data := os.read(self._master, 4096):
                self.shown += data.decode(errors="replace")
        except OSError:  # the other side is closed
            pass

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        os.close(self._master)
