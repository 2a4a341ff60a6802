"""What the index of runs and the list of models remember, beside a fresh look at the disk."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from forgellm.catalog import listing
from forgellm.catalog.listing import list_models
from forgellm.file_memory import FileMemory
from forgellm.paths import Workspace
from forgellm.runs.index import RunIndex, index_of
from forgellm.runs.lock import RunLock
from forgellm.runs.manage import rename_run
from forgellm.runs.store import Run, create_run, select_runs
from forgellm.runs.trash import trash_run
from forgellm.schema.recipe import Recipe
from forgellm.schema.run import RunState


def new_run(workspace: Workspace, phase: str = "completed") -> Run:
    run = create_run(workspace, Recipe(model_name="org/tiny", dataset="d"), 128)
    run.write_state(RunState.model_validate({"phase": phase}))
    return run


def age(folder: Path) -> None:
    """Let everything be a minute old: what is new is read again in any case."""
    past = time.time() - 60
    for path in [folder, *folder.rglob("*")]:
        os.utime(path, (path.stat().st_mtime - 60, min(past, path.stat().st_mtime - 60)))


def in_place(path: Path, old: str, new: str) -> None:
    """Another text of the same length in the same file."""
    assert len(old) == len(new)
    text = path.read_text()
    assert old in text
    with open(path, "r+") as file:
        file.write(text.replace(old, new))


def make_unreadable(run: Run) -> None:
    (run.folder / "run.json").write_text('{"training_id": "cp')


def queue(run: Run) -> None:
    run.write_state(RunState(phase="queued"))


RUN_CHANGES: dict[str, Callable[[Run], object]] = {
    "added": lambda run: new_run(run.workspace, "stopped"),
    "deleted": lambda run: shutil.rmtree(run.folder),
    "to the trash": trash_run,
    "renamed": lambda run: rename_run(run, "another"),
    "copied": lambda run: shutil.copytree(run.folder, run.folder.with_name("copy")),
    "record edited": lambda run: in_place(
        run.folder / "run.json", run.record().created_at, "2001-01-01T00:00:00.000Z"
    ),
    "record half written": make_unreadable,
    "record gone": lambda run: (run.folder / "run.json").unlink(),
    "state edited": lambda run: in_place(run.folder / "state.json", "completed", "preparing"),
    "state half written": lambda run: (run.folder / "state.json").write_text('{"phase'),
    "queued": queue,
}


@pytest.mark.parametrize("name", RUN_CHANGES)
def test_remembered_runs_are_those_of_a_fresh_look(tmp_path: Path, name: str) -> None:
    workspace = Workspace(tmp_path)
    runs = [new_run(workspace) for _ in range(3)]
    age(tmp_path)
    known = index_of(workspace)
    before = known.listed(), known.unfinished(), list(known.alive())
    assert len(before[0]) == 3
    RUN_CHANGES[name](runs[1])
    fresh = RunIndex(workspace)
    assert known.listed() == fresh.listed()
    assert known.unfinished() == fresh.unfinished()
    assert [known.written_phase(run.folder) for run in known.listed()] == [
        fresh.written_phase(run.folder) for run in fresh.listed()
    ]
    assert (known.listed(), known.unfinished()) != before[:2] or "state" in name


def test_lock_is_seen_as_soon_as_it_is_taken_and_freed(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    run = new_run(workspace)
    with RunLock(run.folder).acquire():
        pass
    age(tmp_path)
    index = index_of(workspace)
    for _ in range(2):
        assert list(index.alive()) == []
        with RunLock(run.folder).acquire():
            assert list(index.alive()) == [run.folder]
            assert index.unfinished() == [run.folder]
        assert list(index.alive()) == []
        age(tmp_path)


def test_runs_are_selected_by_the_phase_they_are_in(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    ended, vanished, queued = (new_run(workspace, p) for p in ("completed", "training", "queued"))
    assert select_runs(workspace, "completed", None) == [ended]
    assert select_runs(workspace, "queued", "cpt") == [queued]
    assert select_runs(workspace, "interrupted", None) == [vanished]
    assert select_runs(workspace, "training", None) == []
    assert select_runs(workspace, None, "ift") == []
    with RunLock(vanished.folder).acquire():
        assert select_runs(workspace, "training", None) == [vanished]


def test_file_is_read_again_only_after_a_change(tmp_path: Path) -> None:
    path, reads = tmp_path / "file", []
    memory = FileMemory(lambda name: reads.append(name) or Path(name).read_text())  # type: ignore[func-returns-value]
    assert memory.get(str(path)) is None
    path.write_text("one")
    assert [memory.get(str(path)) for _ in range(2)] == ["one", "one"]
    assert len(reads) == 2  # so new that the next change might not show
    age(tmp_path)
    assert [memory.get(str(path)) for _ in range(3)] == ["one"] * 3
    assert len(reads) == 3
    in_place(path, "one", "two")
    assert memory.get(str(path)) == "two"
    path.unlink()
    assert memory.get(str(path)) is None


def make_model(folder: Path) -> None:
    (folder / "deep").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text('{"chat_template": ""}')
    (folder / "model.safetensors").write_bytes(b"x" * 100)
    (folder / "deep" / "file").write_bytes(b"y" * 50)


def template(folder: Path) -> None:
    in_place(folder / "tokenizer_config.json", '{"chat_template": ""}', '{"chat_template":"x"}')


MODEL_CHANGES: dict[str, Callable[[Path], object]] = {
    "added": lambda folder: make_model(folder.with_name("new")),
    "deleted": shutil.rmtree,
    "renamed": lambda folder: folder.rename(folder.with_name("another")),
    "edited in place": template,
    "half written": lambda folder: (folder / "model.safetensors").unlink(),
    "index half written": lambda folder: (folder / "model.safetensors.index.json").write_text("{"),
    "larger deep below": lambda folder: (folder / "deep" / "file").write_bytes(b"z" * 5_000_000),
    "a link": lambda folder: (folder / "deep" / "link").symlink_to(folder / "config.json"),
}


@pytest.mark.parametrize("name", MODEL_CHANGES)
def test_remembered_models_are_those_of_a_fresh_look(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    workspace = Workspace(tmp_path)
    for number in range(3):
        make_model(workspace.base_models / f"model-{number}")
    age(tmp_path)
    before = list_models(workspace)
    assert [model.size_bytes for model in before] == [173] * 3
    MODEL_CHANGES[name](workspace.base_models / "model-1")
    remembered = list_models(workspace)
    listing._memory_of.cache_clear()
    assert remembered == list_models(workspace) != before
