"""The process that reads complex files: `python -m forgellm.data.reading.child`.

It gets orders on standard input, a JSON array [path, seconds] a line, and answers on standard
output in frames: four bytes of length, then a JSON array: ["text", number, text], ["skip", reason,
number], and last ["end"], ["unreadable", reason], ["failed", reason] where it reached its limit of
memory, or ["passing", reason] for a failure outside the file. What a parser does to it happens to
nobody else.
"""

from __future__ import annotations

import contextlib
import resource
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from forgellm.data.reading.epub import read_epub
from forgellm.data.reading.html import read_html
from forgellm.data.reading.mail import read_eml, read_mbox
from forgellm.data.reading.notebook import read_notebook
from forgellm.data.reading.opendocument import read_odt
from forgellm.data.reading.patience import read_through
from forgellm.data.reading.pdf import read_pdf
from forgellm.data.reading.reader import Reader, Unreadable, only_text, passing_reason, reason_of
from forgellm.data.reading.word import read_docx

MAX_MEMORY_BYTES = 3_000_000_000
MAX_TEXT_BYTES = 100_000_000
_READERS: dict[str, Reader] = {
    **dict.fromkeys((".html", ".htm", ".xhtml"), read_html),
    ".pdf": read_pdf,
    ".docx": read_docx,
    ".odt": read_odt,
    ".epub": read_epub,
    ".eml": read_eml,
    ".mbox": read_mbox,
    ".ipynb": read_notebook,
}


def main() -> None:
    out = sys.stdout.buffer
    sys.stdout = sys.stderr  # what a library prints is no answer
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin.buffer:
        path, seconds = orjson.loads(line)
        _limit_cpu(seconds)
        try:
            for frame in _frames(Path(path)):
                _send(out, frame)
        except MemoryError:  # while a frame was made
            _send(out, ["failed", "needs too much memory"])


def _limit_cpu(seconds: float) -> None:
    """From now on; the kernel ends a process that goes on beyond it."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(used.ru_utime + used.ru_stime + seconds) + 1
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))


def _frames(path: Path) -> Iterator[list[Any]]:
    skipped: list[list[Any]] = []
    try:
        read_through(path)  # parsers take what cannot be had for a broken file
        num_bytes = 0
        for number, text in _READERS[path.suffix.lower()](
            path, lambda reason, number: skipped.append(["skip", reason, number])
        ):
            num_bytes += len(text)
            if num_bytes > MAX_TEXT_BYTES:
                raise Unreadable(f"more than {MAX_TEXT_BYTES // 1_000_000} MB of text")
            yield from skipped
            skipped.clear()
            yield ["text", number, only_text(text)]
    except (Unreadable, UnicodeDecodeError, OSError) as error:
        yield from skipped
        passing = passing_reason(error) if isinstance(error, OSError) else None
        yield ["passing", passing] if passing else ["unreadable", reason_of(error)]
        return
    except MemoryError:
        yield ["failed", "needs too much memory"]
        return
    except Exception as error:  # a parser that met what it had not expected
        yield ["unreadable", f"cannot be parsed ({type(error).__name__})"]
        return
    yield from skipped
    yield ["end"]


def _send(out: BinaryIO, frame: list[Any]) -> None:
    data = orjson.dumps(frame)
    out.write(struct.pack("<I", len(data)) + data)
    out.flush()


if __name__ == "__main__":
    main()
