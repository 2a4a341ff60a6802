"""What a resumed run needs, on machines that do not share the folder it is in."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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


@contextmanager
def received(orders: dict[str, Any], workspace: Workspace, group: Sharing) -> Iterator[Run]:
    """The run, where this process sees it, else a copy of its own for as long as this lasts.

    Raises DiskFull.
    """
    run = _seen(orders, workspace)
    if all(group.gather(run is not None)):
        assert run is not None
        yield run
        return
    # One that was left behind by a killed process is taken away by the next.
    copy = workspace.cache / "followed" / str(group.rank)
    shutil.rmtree(copy, ignore_errors=True)
    try:
        for name in group.share(None):
            _receive_file(None if run else copy / name, group)
        yield run or Run(copy, workspace)
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def _receive_file(path: Path | None, group: Sharing) -> None:
    with storage_errors("a copy of the run"), ExitStack() as stack:
        file = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(path, "wb"))
        while chunk := group.share_bytes(None):
            if file is not None:
                file.write(chunk)


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
