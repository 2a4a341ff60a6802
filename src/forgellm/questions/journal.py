"""The dataset of questions while it grows: rows as they come, and a hidden line for each attempt.

A row is written before the line that counts it, so a crash between the two, or within one, is
found at the next opening and costs at most the last attempt.
"""

from __future__ import annotations

import fcntl
import os
from collections import Counter
from pathlib import Path
from typing import Any

import orjson

from forgellm.atomic import storage_errors, write_json
from forgellm.errors import Conflict

ROWS_NAME = "questions.jsonl"
REPORT_NAME = "report.json"
_ASKED_NAME = ".asked.jsonl"
KEPT = "kept"


class Journal:
    """Open for the one process that adds to it: a context manager.

    Attributes:
        outcomes: what became of the attempts so far, in words, and how often.
        questions: those of the rows that are there.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        """Begin in `folder`, which may not be there yet, or continue what was begun with the same
        settings. Raises Conflict, DiskFull."""
        self.folder = folder
        self.outcomes: Counter[str] = Counter()
        self.questions: list[str] = []
        is_new = not (folder / _ASKED_NAME).exists()
        if is_new and folder.is_dir() and any(folder.iterdir()):
            raise Conflict(
                f"dataset/{folder.name} exists already and holds something else",
                suggestion="Choose another name.",
            )
        with storage_errors(ROWS_NAME):
            folder.mkdir(parents=True, exist_ok=True)
            self._asked = self._open(_ASKED_NAME)
            self._rows = self._open(ROWS_NAME)
        try:
            self._lock()
            self._read(settings)
        except BaseException:
            self.close()
            raise

    @property
    def num_asked(self) -> int:
        return self.outcomes.total()

    @property
    def num_kept(self) -> int:
        return len(self.questions)

    def add(self, outcome: str, row: dict[str, Any] | None) -> None:
        """Note one attempt, with the row it gave, if any. Raises DiskFull."""
        number = self.num_asked
        if row is not None:
            self._append(self._rows, {**row, "attempt": number})
            self.questions.append(row["messages"][0]["content"])
        self._append(self._asked, {"attempt": number, "outcome": outcome})
        self.outcomes[outcome] += 1

    def report(self, report: dict[str, Any]) -> None:
        write_json(self.folder / REPORT_NAME, {"forgellm_questions": 1, **report})

    def close(self) -> None:
        for descriptor in (self._rows, self._asked):
            os.close(descriptor)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, name: str) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(self.folder / name, flags, 0o644)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._asked, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Conflict(
                f"Questions are being added to dataset/{self.folder.name} already",
                suggestion="Wait until that ends, or choose another name.",
            ) from None

    def _read(self, settings: dict[str, Any]) -> None:
        asked, rows = _whole_lines(self._asked), _whole_lines(self._rows)
        if not asked:
            self._append(self._asked, {"settings": settings})
            asked = [{"settings": settings}]
        if asked[0].get("settings") != settings:
            raise Conflict(
                f"dataset/{self.folder.name} was begun with other settings, or its source changed",
                suggestion="Choose another name, or remove that folder.",
            )
        self.outcomes.update(line["outcome"] for line in asked[1:])
        self.questions = [row["messages"][0]["content"] for row in rows]
        if rows and rows[-1].get("attempt") == self.num_asked:
            # Its line was lost in a crash.
            self._append(self._asked, {"attempt": self.num_asked, "outcome": KEPT})
            self.outcomes[KEPT] += 1

    def _append(self, descriptor: int, line: dict[str, Any]) -> None:
        text = orjson.dumps(line) + b"\n"
        with storage_errors(ROWS_NAME):
            start = os.fstat(descriptor).st_size
            try:
                written = os.write(descriptor, text)
                while written < len(text):
                    written += os.write(descriptor, text[written:])
            except OSError:
                os.ftruncate(descriptor, start)
                raise


def _whole_lines(descriptor: int) -> list[dict[str, Any]]:
    """The lines of a file; a torn last one is cut off."""
    with os.fdopen(os.dup(descriptor), "rb") as file:
        file.seek(0)
        data = file.read()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        os.ftruncate(descriptor, end)
    return [orjson.loads(line) for line in data[:end].splitlines() if line.strip()]
