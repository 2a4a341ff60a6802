"""Files that grow together and survive a crash: cut back to their last mark, they are continued."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from forgellm.atomic import read_json, sync, write_json

_MARK = "mark.json"
_PART = ".part"


class GrowingFiles:
    """Columns of a table, each a file `<name>.part` of raw numbers until `finish`.

    Attributes:
        state: what was handed to the last `mark`, from where to go on; None for a new start.
    """

    def __init__(self, folder: Path, columns: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
        """`columns` are file names, each with the dtype and shape of a row."""
        self._folder, self._columns = folder, columns
        self._files: dict[str, IO[bytes]] = {}
        self.state: dict[str, Any] | None = None

    def __enter__(self) -> GrowingFiles:
        mark = read_json(self._folder / _MARK)
        sizes: dict[str, int] = mark["sizes"] if mark else {}
        if any(self._size(name) < sizes.get(name, 0) for name in self._columns):
            mark, sizes = None, {}  # the disk lost what it had confirmed
        self.state = mark["state"] if mark else None
        for name in self._columns:
            self._files[name] = file = self._part(name).open("ab")
            file.truncate(sizes.get(name, 0))
            file.seek(0, os.SEEK_END)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        for file in self._files.values():
            file.close()

    def append(self, name: str, rows: bytes) -> None:
        self._files[name].write(rows)

    def num_rows(self, name: str) -> int:
        dtype, shape = self._columns[name]
        row_bytes = np.dtype(dtype).itemsize * int(np.prod(shape, dtype=np.int64))
        return self._files[name].tell() // row_bytes

    def mark(self, state: dict[str, Any]) -> None:
        """From here on the files can be continued, together with `state`, which is JSON-safe."""
        sizes = {}
        for name, file in self._files.items():
            file.flush()
            os.fsync(file.fileno())
            sizes[name] = file.tell()
        write_json(self._folder / _MARK, {"sizes": sizes, "state": state})

    def finish(self) -> None:
        """Give the files their names; a name that ends in `.npy` gets numpy's header."""
        for name, file in self._files.items():
            num_rows = self.num_rows(name)
            file.close()
            if name.endswith(".npy"):
                self._write_npy(name, num_rows)
            else:
                self._part(name).rename(self._folder / name)
        sync(self._folder)
        (self._folder / _MARK).unlink(missing_ok=True)

    def _write_npy(self, name: str, num_rows: int) -> None:
        dtype, shape = self._columns[name]
        header = {
            "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
            "fortran_order": False,
            "shape": (num_rows, *shape),
        }
        with self._part(name).open("rb") as rows, (self._folder / name).open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            shutil.copyfileobj(rows, file, 1 << 20)
        self._part(name).unlink()

    def _part(self, name: str) -> Path:
        return self._folder / (name + _PART)

    def _size(self, name: str) -> int:
        try:
            return self._part(name).stat().st_size
        except OSError:
            return 0


def can_continue(folder: Path) -> bool:
    """Whether there is anything in `folder` that `GrowingFiles` would not begin anew."""
    return (folder / _MARK).exists()
