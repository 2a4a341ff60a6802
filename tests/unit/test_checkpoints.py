"""Checkpoints are whole or invisible, and damage is found whatever byte it hits."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forgellm.errors import CheckpointCorrupt, CheckpointNotFound, DiskFull, TrainingFailed
from forgellm.runs.checkpoints import (
    Checkpoint,
    best_checkpoint,
    best_iterations,
    find_checkpoint,
    list_checkpoints,
    newest_verified,
    prune,
    rank,
    verify,
    write_checkpoint,
)


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power is lost here. That the calls are made, the failing ones show."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def save(
    folder: Path, iteration: int, loss: float | None = None, *, full: bool = False, salt: int = 0
) -> Checkpoint:
    rng = random.Random(iteration + salt)

    def write_weights(target: Path, stem: str) -> list[str]:
        if not full:
            (target / f"{stem}_adapters.safetensors").write_bytes(rng.randbytes(3000))
            return [f"{stem}_adapters.safetensors"]
        (target / f"{stem}_model").mkdir()
        for name in ("config.json", "model.safetensors"):
            (target / f"{stem}_model" / name).write_bytes(rng.randbytes(1500))
        return [f"{stem}_model"]

    def write_resume(target: Path) -> list[str]:
        (target / "optimizer.safetensors").write_bytes(rng.randbytes(2000))
        (target / "rng.json").write_bytes(b"{}")
        return ["optimizer.safetensors", "rng.json"]

    return write_checkpoint(
        folder, iteration, loss, write_weights, write_resume, {"micro_batch": iteration * 2}
    )


def iterations(folder: Path) -> list[int]:
    return [checkpoint.iteration for checkpoint in list_checkpoints(folder)]


def files_of(checkpoint: Checkpoint) -> list[Path]:
    paths = [checkpoint.weights, *checkpoint.weights.rglob("*"), *checkpoint.folder.rglob("*")]
    return [path for path in paths if path.is_file()]


def test_layout_and_contents(tmp_path: Path) -> None:
    written = save(tmp_path, 300, 2.25)
    assert written.weights == tmp_path / "0000300_adapters.safetensors"
    assert written.folder == tmp_path / "checkpoints" / "0000300"
    assert written.size_bytes == 3000
    assert written.position() == {"micro_batch": 600}
    assert list_checkpoints(tmp_path) == [written]
    assert find_checkpoint(tmp_path, 300) == written
    verify(written)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "0000300_adapters.safetensors",
        "adapters.safetensors",
        "checkpoints",
    ]


def test_the_best_adapters_have_the_name_that_mlx_lm_looks_for(tmp_path: Path) -> None:
    for iteration, loss in ((100, 2.5), (200, 2.25), (300, 2.4)):
        save(tmp_path, iteration, loss)
    link = tmp_path / "adapters.safetensors"
    assert str(link.readlink()) == "0000200_adapters.safetensors"
    assert link.is_file()


def test_full_model_is_a_folder(tmp_path: Path) -> None:
    written = save(tmp_path, 5, full=True)
    assert written.weights == tmp_path / "0000005_model"
    assert written.size_bytes == 3000
    verify(written)


@pytest.mark.parametrize("full", [False, True])
def test_every_flip_and_truncation_is_detected(tmp_path: Path, full: bool) -> None:
    save(tmp_path, 1, 2.0, full=full)
    target = save(tmp_path, 2, 1.0, full=full)
    rng = random.Random(7)
    files = files_of(target)
    assert len(files) == 5 + full
    for trial in range(300):
        path = files[trial % len(files)]
        original = path.read_bytes()
        place = rng.randrange(len(original))
        if trial % 3 == 0:
            damaged = original[:place]
        else:
            flipped = original[place] ^ (1 << rng.randrange(8))
            damaged = original[:place] + bytes([flipped]) + original[place + 1 :]
        path.write_bytes(damaged)
        with pytest.raises(CheckpointCorrupt) as caught:
            verify(target)
        assert caught.value.details["file"].endswith(path.name)
        found, problems = newest_verified(tmp_path)
        assert found is not None and found.iteration == 1
        assert len(problems) == 1 and path.name in problems[0]
        path.write_bytes(original)
    verify(target)


def test_missing_file_is_damage(tmp_path: Path) -> None:
    save(tmp_path, 1)
    for path in files_of(save(tmp_path, 2)):
        content = path.read_bytes()
        path.unlink()
        found, _ = newest_verified(tmp_path)
        assert found is not None and found.iteration == 1
        path.write_bytes(content)
    found, problems = newest_verified(tmp_path)
    assert found is not None and found.iteration == 2 and problems == []


def test_manifest_that_names_foreign_files_is_refused(tmp_path: Path) -> None:
    target = save(tmp_path, 1)
    other = save(tmp_path, 2)
    (other.folder / "manifest.json").write_bytes((target.folder / "manifest.json").read_bytes())
    assert iterations(tmp_path) == [1]
    with pytest.raises(CheckpointCorrupt):
        verify(other)


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    assert list_checkpoints(tmp_path) == []
    assert newest_verified(tmp_path) == (None, [])
    assert best_checkpoint(tmp_path) is None
    with pytest.raises(CheckpointNotFound) as caught:
        find_checkpoint(tmp_path, 4)
    assert caught.value.details["available"] == []


class Crash(BaseException):
    """The machine stops here: nothing that would run after an ordinary error may run."""


STEPS = ("replace", "rename", "fsync", "mkdir", "unlink", "rmdir", "open")


def stop_at(monkeypatch: pytest.MonkeyPatch, number: int, error: BaseException) -> list[str]:
    """Raise `error` at the `number`th call of the system calls in STEPS; returns the calls made."""
    calls: list[str] = []

    def guarded(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            if len(calls) == number:
                raise error
            return real(*args, **kwargs)

        return call

    for name in STEPS:
        monkeypatch.setattr(os, name, guarded(name, getattr(os, name)))
    return calls


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("again", [False, True])
def test_crash_at_any_step_leaves_old_set_or_old_set_and_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool, again: bool
) -> None:
    """`again`: the iteration was written before, then a resume came by it once more."""
    number, outcomes = 0, set()
    while True:
        number += 1
        folder = tmp_path / str(number)
        folder.mkdir()
        save(folder, 1, 2.0, full=full)
        if again:
            save(folder, 2, 2.0, full=full, salt=1)
        with monkeypatch.context() as patch:
            calls = stop_at(patch, number, Crash())
            try:
                save(folder, 2, 1.0, full=full)
            except Crash:
                pass
        assert newest_verified(folder)[1] == []
        for checkpoint in list_checkpoints(folder):
            verify(checkpoint)
        outcomes.add(tuple(iterations(folder)))
        save(folder, 3, 1.0, full=full)  # and the next write succeeds and tidies up
        assert iterations(folder)[-1] == 3
        assert not list(folder.glob(".tmp-*"))
        assert len(list(folder.glob("0*"))) == len(iterations(folder))
        if len(calls) < number:
            break
    assert outcomes == {(1,), (1, 2)}
    assert number > 15


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_failing_call_at_any_step_is_a_clear_error_and_harms_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    first = save(tmp_path, 1, 2.0)
    for number in range(1, 100):
        with monkeypatch.context() as patch:
            calls = stop_at(patch, number, OSError(code, os.strerror(code)))
            try:
                save(tmp_path, 2, 1.0)
            except TrainingFailed as error:
                full = code in (errno.ENOSPC, errno.EDQUOT)
                assert isinstance(error, DiskFull) == full
                assert error.details["problem"] == errno.errorcode[code]
                assert str(tmp_path) not in error.message
        for checkpoint in list_checkpoints(tmp_path):
            verify(checkpoint)
        verify(first)
        if len(calls) < number:
            break
        if iterations(tmp_path) == [1]:
            assert not list(tmp_path.glob(".tmp-*")) and not list(tmp_path.glob("0000002*"))
    assert iterations(tmp_path) == [1, 2]
    assert number > 15


def test_error_of_the_engine_passes_unchanged_and_leaves_nothing(tmp_path: Path) -> None:
    save(tmp_path, 1)

    def broken(folder: Path, stem: str) -> list[str]:
        (folder / f"{stem}_adapters.safetensors").write_bytes(b"half")
        raise RuntimeError("device lost")

    with pytest.raises(RuntimeError, match="device lost"):
        write_checkpoint(tmp_path, 2, None, broken, lambda folder: [], {})
    assert iterations(tmp_path) == [1]
    assert not list(tmp_path.glob(".tmp-*"))


def test_rank_by_loss_then_earlier_then_newest_without_loss(tmp_path: Path) -> None:
    for iteration, loss in ((1, None), (2, 2.0), (3, 1.5), (4, 2.0), (5, None), (6, float("nan"))):
        save(tmp_path, iteration, loss)
    checkpoints = list_checkpoints(tmp_path)
    assert [c.iteration for c in rank(checkpoints)] == [3, 2, 4, 6, 5, 1]
    assert best_iterations(checkpoints) == [3, 2, 4]
    best = best_checkpoint(tmp_path)
    assert best is not None and best.iteration == 3


@pytest.mark.parametrize("full", [False, True])
def test_prune_keeps_the_best_three_and_the_last(tmp_path: Path, full: bool) -> None:
    losses = [1.1, 3.0, 1.0, 2.9, 2.8, 1.2, 2.7, 2.6]
    for iteration, loss in enumerate(losses, start=1):
        save(tmp_path, iteration, loss, full=full)
    assert prune(tmp_path, 6) == [2, 4]
    assert prune(tmp_path, 6) == []
    assert prune(tmp_path, 1) == [5, 7]
    assert iterations(tmp_path) == [1, 3, 6, 8]
    for checkpoint in list_checkpoints(tmp_path):
        verify(checkpoint)
    assert len(list(tmp_path.glob("0*"))) == 4


def test_crash_while_pruning_leaves_no_broken_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, 100):
        folder = tmp_path / str(number)
        folder.mkdir()
        for iteration in range(1, 7):
            save(folder, iteration, 1 / iteration)
        with monkeypatch.context() as patch:
            calls = stop_at(patch, number, Crash())
            try:
                prune(folder, 4)
            except Crash:
                pass
        assert {3, 4, 5, 6} <= set(iterations(folder))
        for checkpoint in list_checkpoints(folder):
            verify(checkpoint)
        if len(calls) < number:
            break
    assert number > 5
