"""`metrics.blocks`: the records of `metrics.index` summed up, 128 to a block.

A cache of a cache: who draws a long curve reads it in place of the index, and whatever it lacks from
there. It is written by whoever writes the index, and believed only where the index is, and where its
last block ends where the index says.
"""

from __future__ import annotations

import os
from contextlib import suppress
from io import FileIO
from pathlib import Path

import numpy as np

from forgellm.runs.blocks import BLOCK, sum_up
from forgellm.runs.metrics_index import BLOCK_LINES, BLOCKS_NAME
from forgellm.runs.records import IndexIsWrong, Records

_HEADER = b"forgellm metrics blocks 1".ljust(BLOCK.itemsize)
_BLOCKS_AT_ONCE = 32


def catch_up(folder: Path) -> None:
    """Add the blocks that are whole by now. What cannot be written is left out."""
    with suppress(OSError, IndexIsWrong):
        records = Records(folder)
        fd = os.open(folder / BLOCKS_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        with open(fd, "r+b", buffering=0) as file:
            _write_missing(file, records)


def read_blocks(folder: Path, records: Records) -> bytearray:
    """The first blocks of these records, as many as are known. Raises IndexIsWrong."""
    try:
        with open(folder / BLOCKS_NAME, "rb", buffering=0) as file:
            blocks = bytearray(_num_believed(file, records) * BLOCK.itemsize)
            file.seek(BLOCK.itemsize)
            del blocks[file.readinto(blocks) // BLOCK.itemsize * BLOCK.itemsize :]
            return blocks
    except OSError:
        return bytearray()


def _write_missing(file: FileIO, records: Records) -> None:
    num_known, num_whole = _num_believed(file, records), records.num_indexed // BLOCK_LINES
    if num_known == 0:
        file.seek(0)
        file.write(_HEADER)
    file.truncate((1 + num_known) * BLOCK.itemsize)
    file.seek(0, os.SEEK_END)
    for first in range(num_known, num_whole, _BLOCKS_AT_ONCE):
        last = min(first + _BLOCKS_AT_ONCE, num_whole)
        lines = records.at(np.arange(first * BLOCK_LINES, last * BLOCK_LINES))
        file.write(sum_up(lines.reshape(-1, BLOCK_LINES)).tobytes())


def _num_believed(file: FileIO, records: Records) -> int:
    file.seek(0)
    header = file.read(BLOCK.itemsize)
    count = os.fstat(file.fileno()).st_size // BLOCK.itemsize - 1
    if header != _HEADER or not 0 < count <= records.num_indexed // BLOCK_LINES:
        return 0
    file.seek(count * BLOCK.itemsize)
    last = np.frombuffer(file.read(BLOCK.itemsize), BLOCK)
    record = records.at(np.array([count * BLOCK_LINES - 1]))
    return count if last["end"].tolist() == record["end"].tolist() else 0
