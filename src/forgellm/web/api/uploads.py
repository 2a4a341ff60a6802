"""Documents that come in through the page: one request a file, its body the file's bytes."""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter
from fastapi import Path as InPath
from starlette.requests import Request

from forgellm import hardware
from forgellm.atomic import storage_errors
from forgellm.data.datasets import find_dataset
from forgellm.data.readers import READERS
from forgellm.data.reading.row_readers import ROW_READERS
from forgellm.errors import DiskTooSmall, InvalidRequest, PathNotFound
from forgellm.hardware import GB
from forgellm.paths import Workspace
from forgellm.schema.files import FileChangedReply
from forgellm.web.run_figures import MB

_DATASET = re.compile(r"[A-Za-z0-9][\w .+-]{0,99}")
_FILE = re.compile(r"[^\x00-\x1f\x7f/\\.][^\x00-\x1f\x7f/\\]{0,199}")
_SPARE_BYTES = 200_000_000

DatasetName = Annotated[str, InPath(min_length=1, max_length=100)]
FileName = Annotated[str, InPath(min_length=1, max_length=200)]


def make_router(workspace: Workspace) -> APIRouter:
    router = APIRouter(prefix="/api/datasets/{name}/files")

    @router.put(
        "/{file}",
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
                },
            }
        },
    )
    async def upload(name: DatasetName, file: FileName, request: Request) -> FileChangedReply:
        """Put a file into a dataset; both are made if they are new, an older file is replaced."""
        target = _target(workspace, name, file)
        _require_room(workspace, int(request.headers.get("content-length", "0")))
        num_bytes = await _receive(request, target)
        return FileChangedReply(
            message="File stored", name=name, file=file, size_mb=round(num_bytes / MB, 3)
        )

    @router.delete("/{file}")
    def remove(name: DatasetName, file: FileName) -> FileChangedReply:
        """Delete a file of a dataset, for good."""
        path = find_dataset(workspace, name) / file
        if not _FILE.fullmatch(file) or path.is_symlink() or not path.is_file():
            raise PathNotFound("The dataset has no such file")
        size = path.stat().st_size
        with storage_errors(file):
            path.unlink()
        return FileChangedReply(
            message="File deleted", name=name, file=file, size_mb=round(size / MB, 3)
        )

    return router


def _target(workspace: Workspace, name: str, file: str) -> Path:
    """Raises InvalidRequest where a name cannot be one, or the file could not be read later."""
    if not _DATASET.fullmatch(name) or name.endswith((" ", ".")):
        raise InvalidRequest(
            "A dataset's name has up to 100 letters, digits, spaces and . _ + -, and begins with "
            "a letter or digit"
        )
    if not _FILE.fullmatch(file) or len(os.fsencode(file)) > 240:
        raise InvalidRequest("That cannot be the name of a file")
    kinds = sorted({*READERS, *ROW_READERS})
    if Path(file).suffix.lower() not in kinds:
        raise InvalidRequest(
            f"Files of the kind {Path(file).suffix or file!r} cannot be read",
            suggestion="These can: " + " ".join(kinds),
        )
    folder = workspace.datasets / name
    if folder.is_symlink():
        raise InvalidRequest("The dataset is a link to another folder; copy files there by hand")
    with storage_errors(f"dataset/{name}"):
        folder.mkdir(parents=True, exist_ok=True)
    return folder / file


def _require_room(workspace: Workspace, num_bytes: int) -> None:
    free = hardware.disk_free_bytes(workspace.root) - _SPARE_BYTES
    if num_bytes > free:
        raise DiskTooSmall(
            f"The file has {num_bytes / GB:.2f} GB and {max(0, free) / GB:.2f} GB are free",
            details={"needed_gb": num_bytes / GB, "free_gb": max(0, free) / GB},
        )


async def _receive(request: Request, target: Path) -> int:
    """Write the body beside the target and move it there when it is whole."""
    temporary = target.parent / f".upload-{secrets.token_hex(8)}"
    num_bytes = 0
    try:
        with storage_errors(target.name):
            with temporary.open("xb") as out:
                async for piece in request.stream():
                    out.write(piece)
                    num_bytes += len(piece)
                out.flush()
                os.fsync(out.fileno())
            os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return num_bytes
