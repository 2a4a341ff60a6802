"""What a resumed run needs, on machines that do not share the folder it is in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from forgellm.atomic import storage_errors
from forgellm.errors import PathNotFound, RunNotFound
from forgellm.paths import Workspace
from forgellm.runs.checkpoints import Checkpoint, newest_verified
from forgellm.runs.lock import LOCK_NAME
from forgellm.runs.manifest import MANIFEST_NAME, read_manifest
from forgellm.runs.store import Run, find_run

_CHUNK_BYTES = 64_000_000
_LEFT_OUT = ("trainer.log", LOCK_NAME, "stop")


class Sharing(Protocol):
    """Processes that can hear the first one; see `engines.torch.process_group.TorchGroup`."""

    rank: int

    def gather(self, value: Any) -> list[Any]: ...

    def share(self, value: Any) -> Any: ...

    def share_bytes(self, data: bytes | None) -> bytes: ...


def hand_over(run: Run, group: Sharing) -> None:
    """Send the files of `run` that a resume reads to those who do not see them."""
    if all(group.gather(True)):
        return
    checkpoint, _ = newest_verified(run.folder)
    names = [] if checkpoint is None else list(_needed(run.folder, checkpoint))
    group.share(names)
    for name in names:
        with open(run.folder / name, "rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                group.share_bytes(chunk)
            group.share_bytes(b"")


def receive(orders: dict[str, Any], workspace: Workspace, group: Sharing, scratch: Path) -> Run:
    """The run, where this process sees it, else a copy in the folder `scratch`. Raises DiskFull."""
    run = _seen(orders, workspace)
    if all(group.gather(run is not None)):
        assert run is not None
        return run
    for name in group.share(None):
        path = scratch / name
        with storage_errors("a copy of the run"):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "wb") as file:
                while chunk := group.share_bytes(None):
                    if run is None:
                        file.write(chunk)
    return run or Run(scratch, workspace)


def _seen(orders: dict[str, Any], workspace: Workspace) -> Run | None:
    try:
        run = find_run(workspace, orders["run"])
    except (RunNotFound, PathNotFound):
        return None
    return run if run.record().training_id == orders["training_id"] else None


def _needed(folder: Path, checkpoint: Checkpoint) -> Iterator[str]:
    """What stands beside the checkpoints, and the checkpoint, whose manifest comes last."""
    for path in sorted(folder.iterdir()):
        is_of_a_checkpoint = path.name.endswith("_adapters.safetensors") or path.is_symlink()
        if path.is_file() and not is_of_a_checkpoint and path.name not in _LEFT_OUT:
            yield path.name
    yield from read_manifest(checkpoint.folder)["files"]
    yield (checkpoint.folder / MANIFEST_NAME).relative_to(folder).as_posix()
