"""A disk that is really full: a clear error, and what was there before still there."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from forgellm.errors import DiskFull
from forgellm.paths import Workspace
from forgellm.runs.checkpoints import Checkpoint, list_checkpoints, verify, write_checkpoint
from forgellm.runs.metrics import MetricsWriter, read_lines
from forgellm.runs.store import create_run
from forgellm.schema.recipe import Recipe
from forgellm.schema.run import RunState

DISK_BYTES = 1 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    mounted = subprocess.run(["mount", *options], capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip("this machine does not let root mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path, *, leaving: int = 0) -> Path:
    filler = folder / "filler"
    with open(filler, "ab", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass
    if leaving:
        os.truncate(filler, filler.stat().st_size - leaving)
    return filler


def save(folder: Path, iteration: int, num_bytes: int, *, library: bool) -> Checkpoint:
    """Through safetensors, whose error is no OSError, or with plain writes."""

    def write_weights(target: Path, stem: str) -> None:
        path = target / f"{stem}_adapters.safetensors"
        values = np.full(num_bytes, 7, dtype=np.uint8)
        if library:
            save_file({"lora_a": values}, path)
        else:
            path.write_bytes(values.tobytes())

    return write_checkpoint(folder, iteration, 2.0, write_weights, lambda target: None, {})


@pytest.mark.parametrize("library", [True, False])
def test_checkpoint_that_does_not_fit_leaves_the_earlier_one(
    small_disk: Path, library: bool
) -> None:
    first = save(small_disk, 1, 300_000, library=library)
    with pytest.raises(DiskFull) as caught:
        save(small_disk, 2, 900_000, library=library)
    assert "resume" in caught.value.suggestion
    assert list_checkpoints(small_disk) == [first]
    verify(first)
    # What was half written is gone, so a smaller one fits again.
    verify(save(small_disk, 3, 300_000, library=library))


def test_any_amount_of_room_gives_a_whole_checkpoint_or_none(small_disk: Path) -> None:
    first = save(small_disk, 1, 10_000, library=True)
    outcomes = set()
    for pages in range(14):
        filler = fill(small_disk, leaving=pages * 4096)
        try:
            save(small_disk, 2, 10_000, library=True)
            outcomes.add("written")
        except DiskFull:
            outcomes.add("full")
        filler.unlink()
        for checkpoint in list_checkpoints(small_disk):
            verify(checkpoint)
        verify(first)
    assert outcomes == {"written", "full"}


def test_metrics_end_with_a_whole_line_and_go_on_when_there_is_room(small_disk: Path) -> None:
    with MetricsWriter(small_disk) as writer:
        writer.append(iteration=1, training_loss=2.0)
        filler = fill(small_disk)
        written = 1
        with pytest.raises(DiskFull):
            for iteration in range(2, 1000):
                writer.append(iteration=iteration, training_loss=2.0)
                written += 1
        filler.unlink()
        writer.append(iteration=written + 1, training_loss=2.0)
    lines, offset = read_lines(small_disk)
    assert [line.seq for line in lines] == list(range(1, written + 2))
    assert offset == (small_disk / "metrics.jsonl").stat().st_size


def test_state_survives_and_stop_can_still_be_asked_for(small_disk: Path) -> None:
    recipe = Recipe(model_name="m", dataset="d")
    run = create_run(Workspace(small_disk), recipe, 64, phase="queued")
    before = run.state()
    fill(small_disk)
    for phase in ("training", "failed"):
        with pytest.raises(DiskFull):
            run.write_state(RunState(phase=phase, heartbeat="y" * 100_000))
        assert run.state() == before
    run.request_stop()
    assert run.stop_requested() and run.stop_deadline() is not None
    with pytest.raises(DiskFull):
        create_run(Workspace(small_disk), recipe, 64)


def test_trainer_can_say_that_the_disk_is_full(small_disk: Path) -> None:
    run = create_run(Workspace(small_disk), Recipe(model_name="m", dataset="d"), 64)
    fill(small_disk)
    error = DiskFull("The disk is full").to_dict()
    run.write_state(RunState(phase="failed", iteration=9, error=error))
    assert run.state() == RunState(phase="failed", iteration=9, error=error)
