"""Checkpoints: written so that each is whole or invisible, checked before use, ranked, pruned.

    0000300_adapters.safetensors    the weights (full fine-tuning: the folder 0000300_model)
    adapters.safetensors            a link to the best adapters, under the name mlx-lm looks for
    checkpoints/0000300/            what a resume needs, position.json and manifest.json

A checkpoint exists if and only if its manifest does; that folder is moved into place last.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from forgellm.atomic import read_json, storage_error, sync, sync_tree, write_json
from forgellm.errors import CheckpointCorrupt, CheckpointNotFound
from forgellm.runs.manifest import (
    MANIFEST_NAME,
    corrupt,
    read_manifest,
    sha256,
    stem_of,
    write_manifest,
)

NUM_BEST = 3
BEST_ADAPTERS = "adapters.safetensors"
_TEMPORARY = ".tmp-checkpoint-"
_STEM = re.compile(r"\d{7,}")
_WEIGHTS = re.compile(r"(\d{7,})_(adapters\.safetensors|model)")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as its manifest describes it.

    Attributes:
        weights: the adapters' file, or the model's folder.
        folder: what a resume needs.
        validation_loss: measured at this very iteration, if it was.
        size_bytes: size of the weights.
    """

    iteration: int
    weights: Path
    folder: Path
    validation_loss: float | None
    size_bytes: int
    created_at: str

    @property
    def run_folder(self) -> Path:
        return self.folder.parent.parent

    def position(self) -> dict[str, Any]:
        """The `extra` that was given when it was written."""
        return read_json(self.folder / "position.json") or {}


def write_checkpoint(
    run_folder: Path,
    iteration: int,
    validation_loss: float | None,
    write_weights: Callable[[Path, str], object],
    write_resume: Callable[[Path], object],
    extra: dict[str, Any],
) -> Checkpoint:
    """Write a checkpoint whose files the two callbacks put into the folders they are given.

    `write_weights(folder, stem)` writes `<stem>_adapters.safetensors` or a folder `<stem>_model`;
    `write_resume(folder)` writes the rest. Only the holder of the run's lock may call this.
    Raises DiskFull or TrainingFailed; the earlier checkpoints are then as they were.
    """
    stem = stem_of(iteration)
    staging = run_folder / f"{_TEMPORARY}{stem}"
    try:
        _remove_leftovers(run_folder)
        weights, resume = staging / "weights", staging / "resume"
        weights.mkdir(parents=True)
        resume.mkdir()
        write_weights(weights, stem)
        write_resume(resume)
        write_json(resume / "position.json", extra, durable=False)
        write_manifest(staging, iteration, validation_loss)
        sync_tree(staging)
        _move_into_place(run_folder, staging, stem)
    except (OSError, SafetensorError) as error:
        _clean_up(run_folder)
        raise storage_error(f"checkpoint {iteration}", error) from error
    except Exception:
        _clean_up(run_folder)
        raise
    _link_best(run_folder)
    return _load(run_folder / "checkpoints" / stem)


def list_checkpoints(run_folder: Path) -> list[Checkpoint]:
    """By iteration. Reads only the manifests; one that cannot be read is passed over."""
    found = []
    for folder in _folders(run_folder):
        try:
            found.append(_load(folder))
        except CheckpointCorrupt:
            continue
    return found


def verify(checkpoint: Checkpoint) -> None:
    """Compare every file with the manifest. Raises CheckpointCorrupt naming the first bad one."""
    manifest = read_manifest(checkpoint.folder)
    for name, expected in manifest["files"].items():
        path = checkpoint.run_folder / name
        try:
            intact = path.stat().st_size == expected["size"] and sha256(path) == expected["sha256"]
        except OSError:
            intact = False
        if not intact:
            raise corrupt(checkpoint.folder, name)


def newest_verified(run_folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest intact checkpoint, and what is wrong with each newer one."""
    problems: list[str] = []
    for folder in reversed(_folders(run_folder)):
        try:
            checkpoint = _load(folder)
            verify(checkpoint)
            return checkpoint, problems
        except CheckpointCorrupt as error:
            problems.append(error.message)
    return None, problems


def weights_sha256(checkpoint: Checkpoint) -> str:
    """Of the adapters' file, as the manifest has it; of a full checkpoint's files, of their hashes.

    Raises CheckpointCorrupt.
    """
    files = read_manifest(checkpoint.folder)["files"]
    hashes = {n: entry["sha256"] for n, entry in files.items() if not n.startswith("checkpoints/")}
    if len(hashes) == 1:
        return str(next(iter(hashes.values())))
    listed = "".join(f"{digest}  {name}\n" for name, digest in sorted(hashes.items()))
    return hashlib.sha256(listed.encode()).hexdigest()


def rank(checkpoints: Iterable[Checkpoint]) -> list[Checkpoint]:
    """Best first: by validation loss, the earlier on a tie; then those without one, newest first."""

    def order(checkpoint: Checkpoint) -> tuple[bool, float, int]:
        loss = checkpoint.validation_loss
        if loss is None:
            return True, 0.0, -checkpoint.iteration
        return False, loss, checkpoint.iteration

    return sorted(checkpoints, key=order)


def best_iterations(checkpoints: Iterable[Checkpoint]) -> list[int]:
    """The iterations of the best three, best first."""
    return [checkpoint.iteration for checkpoint in rank(checkpoints)[:NUM_BEST]]


def best_checkpoint(run_folder: Path) -> Checkpoint | None:
    return next(iter(rank(list_checkpoints(run_folder))), None)


def find_checkpoint(run_folder: Path, iteration: int) -> Checkpoint:
    """Raises CheckpointNotFound naming the iterations there are."""
    found = {checkpoint.iteration: checkpoint for checkpoint in list_checkpoints(run_folder)}
    if iteration in found:
        return found[iteration]
    raise CheckpointNotFound(
        "Checkpoint not found",
        suggestion="Choose one of the iterations there are.",
        details={"run": run_folder.name, "iteration": iteration, "available": sorted(found)},
    )


def iteration_of(weights: Path) -> int | None:
    """The iteration of a checkpoint's weights, as their name has it; None for other files."""
    found = _WEIGHTS.fullmatch(weights.name)
    return int(found[1]) if found else None


def prune(run_folder: Path, keep: int) -> list[int]:
    """Remove the oldest until `keep` are left, but never the best three or the last.

    Returns the iterations removed. Only the holder of the run's lock may call this.
    """
    checkpoints = list_checkpoints(run_folder)
    kept_anyway = {*best_iterations(checkpoints), *(c.iteration for c in checkpoints[-1:])}
    removable = [c for c in checkpoints if c.iteration not in kept_anyway]
    surplus = removable[: max(0, len(checkpoints) - keep)]
    for checkpoint in surplus:
        _remove(run_folder, checkpoint.folder.name)
    return [checkpoint.iteration for checkpoint in surplus]


def delete_checkpoint(run_folder: Path, iteration: int) -> None:
    """Only the holder of the run's lock may call this. Raises CheckpointNotFound."""
    _remove(run_folder, find_checkpoint(run_folder, iteration).folder.name)
    _link_best(run_folder)


def _move_into_place(run_folder: Path, staging: Path, stem: str) -> None:
    """Weights first, then the folder with the manifest, each durable before the next."""
    checkpoints = run_folder / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    _remove(run_folder, stem)  # an earlier attempt at this iteration, passed over by the resume
    for path in sorted((staging / "weights").iterdir()):
        os.replace(path, run_folder / path.name)
    sync(run_folder)
    os.replace(staging / "resume", checkpoints / stem)
    sync(checkpoints)
    shutil.rmtree(staging)


def _link_best(run_folder: Path) -> None:
    """So that `mlx_lm.generate --adapter-path RUN` finds it. A file system without links does
    without: nothing of ours reads it."""
    best = best_checkpoint(run_folder)
    if best is None or best.weights.is_dir():
        (run_folder / BEST_ADAPTERS).unlink(missing_ok=True)
        return
    link = run_folder / f"{_TEMPORARY}link"
    with contextlib.suppress(OSError):
        link.unlink(missing_ok=True)
        link.symlink_to(best.weights.name)
        os.replace(link, run_folder / BEST_ADAPTERS)


def _remove(run_folder: Path, stem: str) -> None:
    """The manifest goes first, so that what a crash leaves of it is no checkpoint."""
    folder = run_folder / "checkpoints" / stem
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    if folder.exists():
        sync(folder)
        shutil.rmtree(folder)
    _delete(run_folder / f"{stem}_adapters.safetensors")
    _delete(run_folder / f"{stem}_model")


def _remove_leftovers(run_folder: Path) -> None:
    """What crashes left: temporary folders, weights and folders without a manifest."""
    checkpoints = run_folder / "checkpoints"
    for path in sorted(run_folder.iterdir()):
        weights = _WEIGHTS.fullmatch(path.name)
        orphaned = weights and not (checkpoints / weights[1] / MANIFEST_NAME).exists()
        if orphaned or path.name.startswith(_TEMPORARY):
            _delete(path)
    for path in checkpoints.glob("*"):
        if _STEM.fullmatch(path.name) and not (path / MANIFEST_NAME).exists():
            _delete(path)


def _clean_up(run_folder: Path) -> None:
    try:
        _remove_leftovers(run_folder)
    except OSError:
        pass  # the error that led here matters more; the next write tries again


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _folders(run_folder: Path) -> list[Path]:
    """The folders that hold a manifest, by iteration."""
    found = [
        manifest.parent
        for manifest in (run_folder / "checkpoints").glob(f"*/{MANIFEST_NAME}")
        if _STEM.fullmatch(manifest.parent.name)
    ]
    return sorted(found, key=lambda folder: int(folder.name))


def _load(folder: Path) -> Checkpoint:
    manifest = read_manifest(folder)
    run_folder = folder.parent.parent
    weights = run_folder / manifest["weights"]
    if not weights.exists():
        raise corrupt(folder, manifest["weights"])
    return Checkpoint(
        iteration=manifest["iteration"],
        weights=weights,
        folder=folder,
        validation_loss=manifest["validation_loss"],
        size_bytes=manifest["size_bytes"],
        created_at=manifest["created_at"],
    )
