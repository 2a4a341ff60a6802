"""What a model's folder holds, by the hash of each file that decides what it computes and says.

Unlike `fingerprint`, which compares two machines by samples, this finds a single flipped bit: every
byte is read. A file that has not been written to since is not read again. Changes that no program
made, such as those of a dying disk, leave its dates alone and are found only by reading it anew.
"""

from __future__ import annotations

import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from forgellm.atomic import read_json, write_json
from forgellm.catalog.safety import INDEX, weight_files
from forgellm.errors import TrainingFailed, UnsupportedModel
from forgellm.paths import Workspace
from forgellm.schema.run import BaseFile

_SMALL = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "chat_template.jinja", INDEX,
)  # fmt: skip
_THREADS = 4
_MOST_KNOWN = 2000
# A file changed twice within a tick of the file system's clock may show the same date for both.
_SETTLED_NS = 2_000_000_000


def content_of(folder: Path, workspace: Workspace, *, weights: bool = True) -> dict[str, BaseFile]:
    """Size and sha256 of a model's files by their names; with `weights` false of the small ones.

    Hashes are kept in the workspace, by what the file system says of each file. Raises
    UnsupportedModel where a file cannot be read.
    """
    files = [folder / name for name in _SMALL if (folder / name).is_file()]
    files += weight_files(folder) if weights else []
    known = _Known(workspace.root / ".forgellm" / "hashes.json")
    with ThreadPoolExecutor(_THREADS) as threads:  # hashing lets other threads run
        found = dict(zip((f.name for f in files), threads.map(known.content, files), strict=True))
    known.save()
    return found


def is_of_weights(name: str) -> bool:
    return name.endswith(".safetensors") or name == INDEX


class _Known:
    """Hashes by a file's place on the disk, its size and its dates, the latest last."""

    def __init__(self, path: Path) -> None:
        self._path = path
        content = read_json(path) or {}
        self._hashes = {key: value for key, value in content.items() if isinstance(value, str)}
        self._new: dict[str, str] = {}

    def content(self, file: Path) -> BaseFile:
        try:
            before = os.stat(file)
            key = _key(before)
            digest = self._hashes.get(key) or _sha256(file)
            is_same = _key(os.stat(file)) == key
        except OSError as error:
            raise UnsupportedModel(f"{file.name} cannot be read: {error.strerror}") from error
        if is_same and time.time_ns() - max(before.st_mtime_ns, before.st_ctime_ns) > _SETTLED_NS:
            self._new[key] = digest
        return BaseFile(size_bytes=before.st_size, sha256=digest)

    def save(self) -> None:
        """Where the workspace can be written to."""
        if self._new.keys() <= self._hashes.keys():
            return
        kept: dict[str, Any] = dict(list((self._hashes | self._new).items())[-_MOST_KNOWN:])
        with suppress(OSError, TrainingFailed):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._path, kept, durable=False)


def _key(found: os.stat_result) -> str:
    numbers = found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
    return "-".join(str(number) for number in numbers)


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
