"""How much a folder holds, counted no longer than is worth waiting for."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple


class FolderSize(NamedTuple):
    """`is_complete` is false where counting was cut short: the figures are then lower bounds."""

    file_count: int
    num_bytes: int
    is_complete: bool


def folder_size(folder: Path, deadline: float | None = None) -> FolderSize:
    """Files below `folder`, without following links, until `deadline` (of `time.monotonic`).

    Hidden files and folders count. What vanishes meanwhile is passed over.
    """
    file_count, num_bytes = 0, 0
    for parent, _, names in os.walk(folder):
        if deadline is not None and time.monotonic() > deadline:
            return FolderSize(file_count, num_bytes, False)
        for name in names:
            try:
                num_bytes += os.lstat(os.path.join(parent, name)).st_size
            except OSError:
                continue
            file_count += 1
    return FolderSize(file_count, num_bytes, True)
