"""The manifest of a checkpoint: every file's size and hash, sealed with a hash of its own."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from forgellm.errors import CheckpointCorrupt
from forgellm.paths import iso_utc

MANIFEST_NAME = "manifest.json"
_SEAL = "manifest_sha256"


def stem_of(iteration: int) -> str:
    """What the names of a checkpoint's files begin with."""
    return f"{iteration:07d}"


def write_manifest(staging: Path, iteration: int, validation_loss: float | None) -> None:
    stem = stem_of(iteration)
    weights = dict(_files(staging / "weights"))
    resume = {f"checkpoints/{stem}/{name}": path for name, path in _files(staging / "resume")}
    assert all(name.startswith(f"{stem}_") for name in weights), (
        "weights bear the checkpoint's stem"
    )
    finite = validation_loss is not None and math.isfinite(validation_loss)
    body = {
        "iteration": iteration,
        "validation_loss": validation_loss if finite else None,
        "created_at": iso_utc(),
        "weights": next((staging / "weights").glob(f"{stem}_*")).name,
        "size_bytes": sum(path.stat().st_size for path in weights.values()),
        "files": {
            name: {"size": path.stat().st_size, "sha256": sha256(path)}
            for name, path in (weights | resume).items()
        },
    }
    (staging / "resume" / MANIFEST_NAME).write_bytes(_sealed(body))


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, if it is byte for byte as it was written and names files of its own alone."""
    name = f"checkpoints/{folder.name}/{MANIFEST_NAME}"
    try:
        text = (folder / MANIFEST_NAME).read_bytes()
        body = orjson.loads(text)
        del body[_SEAL]
    except (OSError, ValueError, KeyError, TypeError):
        raise corrupt(folder, name) from None
    own = (f"{folder.name}_", f"checkpoints/{folder.name}/")
    if _sealed(body) != text or body["iteration"] != int(folder.name):
        raise corrupt(folder, name)
    if not all(n.startswith(own) and ".." not in n for n in (*body["files"], body["weights"])):
        raise corrupt(folder, name)
    return dict(body)


def _sealed(body: dict[str, Any]) -> bytes:
    """The manifest's text with its own hash in it: a changed loss is found as a changed file is."""
    seal = hashlib.sha256(orjson.dumps(body)).hexdigest()
    return orjson.dumps({**body, _SEAL: seal}, option=orjson.OPT_INDENT_2)


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def corrupt(folder: Path, name: str) -> CheckpointCorrupt:
    return CheckpointCorrupt(
        f"Checkpoint {int(folder.name)} is damaged: {name} is not as it was written",
        details={"iteration": int(folder.name), "file": name},
    )
