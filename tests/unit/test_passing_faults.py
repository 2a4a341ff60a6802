"""What fails for a reason outside a file is tried again, and never becomes a cache that counts as whole."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from forgellm.data import document_store, documents
from forgellm.data.chat import store as conversations
from forgellm.data.chat.encoding import ChatFormat
from forgellm.data.chat.store import chat_store
from forgellm.data.document_store import token_store
from forgellm.data.documents import ReadReport, dataset_fingerprint, iter_documents
from forgellm.data.growing_files import GrowingFiles
from forgellm.data.prepare import prepare_data, reopen_prepared
from forgellm.data.reading import apart, patience
from forgellm.data.reading.reader import Passing, Unreadable
from forgellm.data.token_store import TokenStore
from forgellm.data.tokenizer import Tokenizer
from forgellm.errors import ConfigError, DataError
from forgellm.schema.recipe import parse_recipe
from paper import pdf
from tiny_tokenizer import CHAT_TEMPLATE, build_tiny_tokenizer
from tiny_workspace import build_tiny_workspace, tiny_recipe

FORM = ChatFormat(CHAT_TEMPLATE, "assistant", 200)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PAUSES_SECONDS", (0.0, 0.0))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(build_tiny_tokenizer(tmp_path_factory.mktemp("model")))


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder = tmp_path / "dataset"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.txt").write_text(f"The mill turns {number} times a day.")
    (folder / "paper.pdf").write_bytes(pdf(["The paper of the mill."]))
    (folder / "rows.jsonl").write_text('{"question": "Why?", "answer": "So."}\n' * 5)
    return folder


def failing(
    monkeypatch: pytest.MonkeyPatch, name: str, times: float, number: int = errno.EIO
) -> list[str]:
    """Opening files of this name fails so often, after the first opening, which takes their hash."""
    real = Path.open
    opened: list[str] = []
    failed: list[str] = []

    def opening(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path.name == name:
            opened.append(name)
            if len(opened) > 1 and len(failed) < times:
                failed.append(name)
                raise OSError(number, os.strerror(number), str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", opening)
    return failed


Make = Callable[..., TokenStore]


@pytest.fixture(params=["documents", "conversations"])
def make(
    request: pytest.FixtureRequest, dataset: Path, tokenizer: Tokenizer, tmp_path: Path
) -> Make:
    cache = tmp_path / "cache"
    if request.param == "documents":
        return lambda **more: token_store(dataset, tokenizer, cache, **more)
    return lambda **more: chat_store(dataset, tokenizer, FORM, cache, **more)


def victim(make: Make) -> str:
    return "2.txt" if "token_store" in make.__code__.co_names else "rows.jsonl"


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.ENOMEM])
def test_a_fault_that_passes_leaves_no_trace(
    make: Make, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    failed = failing(monkeypatch, victim(make), 2, number)
    store = make()
    assert len(failed) == 2
    assert not store.report.missing
    assert not [item for item in store.report.skipped if item.source == victim(make)]
    assert make().key == store.key


def test_a_fault_that_stays_ends_the_work_and_the_next_run_reads_again(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, victim(make), 3)
    with pytest.raises(DataError, match=f"{victim(make)} cannot be read: Input/output error"):
        make()
    store = make()  # the disk is well again
    assert not store.report.missing
    assert not [item for item in store.report.skipped if item.source == victim(make)]


def test_who_goes_on_without_it_is_told_and_nobody_else_gets_that_store(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, victim(make), 3)
    partial = make(skip_unreadable=True)
    assert [item.source for item in partial.report.missing] == [victim(make)]
    assert victim(make) in [item.source for item in partial.report.skipped]
    whole = make()
    assert whole.key != partial.key and not whole.report.missing
    assert whole.report.documents > partial.report.documents


def test_a_file_that_may_not_be_opened_is_left_out_and_told(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, victim(make), 9, errno.EACCES)
    store = make()
    assert (victim(make), "cannot be opened: Permission denied") in [
        (item.source, item.reason) for item in store.report.skipped
    ]
    assert not store.report.missing


def killing(monkeypatch: pytest.MonkeyPatch, times: int, number: signal.Signals) -> list[int]:
    """The process that reads `paper.pdf` is ended by a real signal, so often."""
    real = apart._Child.frames
    killed: list[int] = []

    def frames(child: apart._Child, path: Path, seconds: float) -> Iterator[list[object]]:
        if path.name == "paper.pdf" and len(killed) < times:
            killed.append(child.process.pid)
            os.kill(child.process.pid, number)
            child.process.wait()
        return real(child, path, seconds)

    monkeypatch.setattr(apart._Child, "frames", frames)
    return killed


def test_a_reader_that_is_killed_once_reads_again(
    dataset: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = killing(monkeypatch, 1, signal.SIGKILL)
    store = token_store(dataset, tokenizer, tmp_path / "cache")
    assert killed and store.report.documents == 5 and not store.report.missing


def test_a_reader_that_is_killed_each_time_ends_the_work(
    dataset: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killing(monkeypatch, 3, signal.SIGKILL)
    with pytest.raises(DataError, match=r"paper.pdf its reader was ended \(SIGKILL\)"):
        token_store(dataset, tokenizer, tmp_path / "cache")
    assert token_store(dataset, tokenizer, tmp_path / "cache").report.documents == 5


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGSEGV, "its parser crashed"),
        (signal.SIGXCPU, "takes more than 60 seconds of a processor's time"),
    ],
)
def test_what_a_parser_does_to_itself_twice_is_the_files(
    dataset: Path,
    tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    reason: str,
) -> None:
    killed = killing(monkeypatch, 9, number)
    store = token_store(dataset, tokenizer, tmp_path / "cache")
    assert not store.report.missing
    assert len(killed) == 2
    assert ("paper.pdf", reason) in [(s.source, s.reason) for s in store.report.skipped]


def test_a_parser_that_crashes_once_is_believed_the_second_time(
    dataset: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killing(monkeypatch, 1, signal.SIGSEGV)
    assert token_store(dataset, tokenizer, tmp_path / "cache").report.documents == 5


def test_a_reader_that_cannot_start_says_nothing_about_the_file(
    dataset: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apart._end_idle()
    monkeypatch.setattr(apart, "_COMMAND", [sys.executable, "-c", "raise SystemExit(1)"])
    with pytest.raises(DataError, match="could not run"):
        token_store(dataset, tokenizer, tmp_path / "cache")


def test_a_reader_that_is_silent_gets_more_time(
    dataset: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first process sleeps; the one after it is a real reader."""
    apart._end_idle()
    commands = [[sys.executable, "-c", "import time; time.sleep(99)"], apart._COMMAND]
    real = apart._take

    def take() -> apart._Child:
        if commands:
            monkeypatch.setattr(apart, "_COMMAND", commands.pop(0))
        return real()

    monkeypatch.setattr(apart, "_take", take)
    monkeypatch.setattr(apart, "_PATIENCE_SECONDS", (0.3, 120.0))
    store = token_store(dataset, tokenizer, tmp_path / "cache")
    assert not commands and store.report.documents == 5


def test_a_folder_that_cannot_be_listed_ends_the_work(
    dataset: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (dataset / "more").mkdir()
    (dataset / "more" / "5.txt").write_text("The weir.")
    real, failures = os.scandir, [errno.EIO] * 2

    def scandir(path: Any) -> Any:
        if str(path).endswith("more") and failures:
            raise OSError(number := failures.pop(), os.strerror(number), str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(documents, "PAUSES_SECONDS", (0.0, 0.0))
    assert token_store(dataset, tokenizer, tmp_path / "cache").report.documents == 6
    assert not failures
    failures += [errno.EIO] * 99
    with pytest.raises(DataError, match="more cannot be read: Input/output error"):
        token_store(dataset, tokenizer, tmp_path / "cache")
    less = token_store(dataset, tokenizer, tmp_path / "cache", skip_unreadable=True)
    assert less.report.documents == 5
    assert "more" in [item.source for item in less.report.skipped]
    failures.clear()
    assert token_store(dataset, tokenizer, tmp_path / "cache").report.documents == 6


def test_a_file_whose_hash_failed_is_never_taken_for_the_same(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = dataset_fingerprint(dataset)
    failing(monkeypatch, "2.txt", 2)
    assert dataset_fingerprint(dataset) == expected  # the first opening goes well
    assert dataset_fingerprint(dataset) == expected
    monkeypatch.undo()
    monkeypatch.setattr(patience, "PAUSES_SECONDS", (0.0,))
    failing(monkeypatch, "2.txt", 99)
    found = {dataset_fingerprint(dataset) for _ in range(3)}
    assert len(found) == 3 and expected in found


def test_nothing_is_marked_as_done_after_a_fault(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed on its way, a build that went on without a file reads it when it is continued."""
    monkeypatch.setattr(document_store, "_MARK_BYTES", 1)
    monkeypatch.setattr(conversations, "_MARK_BYTES", 1)
    monkeypatch.setattr(document_store, "_BATCH_PIECES", 1)
    failing(monkeypatch, victim(make), 3)

    class Killed(Exception):
        pass

    finish = GrowingFiles.finish

    def end(files: GrowingFiles) -> None:
        raise Killed

    monkeypatch.setattr(GrowingFiles, "finish", end)
    with pytest.raises(Killed):
        make(skip_unreadable=True)
    monkeypatch.setattr(GrowingFiles, "finish", finish)
    store = make()
    assert not store.report.missing
    assert victim(make) not in [item.source for item in store.report.skipped]


def test_a_library_that_calls_a_file_broken_is_not_believed_while_the_disk_fails(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path, skip: object) -> Iterator[tuple[None, str]]:
        raise Unreadable("broken PDF")
        yield

    failing(monkeypatch, "paper.pdf", 99)
    with (dataset / "paper.pdf").open():
        pass
    with pytest.raises(Passing, match="Input/output error"):
        list(patience.read_patiently(broken, dataset / "paper.pdf", lambda *_: None))


def test_rows_before_the_fault_come_once(tmp_path: Path) -> None:
    attempts: list[int] = []

    def reader(path: Path, skip: Any) -> Iterator[int]:
        attempts.append(0)
        for number in range(10):
            if number == 3:
                skip("odd", number)
            if number == 6 and len(attempts) < 3:
                raise OSError(errno.EIO, "Input/output error")
            yield number

    skipped: list[tuple[str, int]] = []
    found = list(patience.read_patiently(reader, tmp_path, lambda *told: skipped.append(told)))
    assert found == [*range(10)] and skipped == [("odd", 3)] and len(attempts) == 3


def test_inspection_tells_of_it_and_goes_on(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (dataset / "rows.jsonl").unlink()
    failing(monkeypatch, "2.txt", 99)
    (dataset / "2.txt").open().close()
    report = ReadReport()
    assert len(list(iter_documents(dataset, report))) == 4
    assert [item.source for item in report.missing] == ["2.txt"]


def test_a_run_without_a_file_is_resumed_with_the_same_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = build_tiny_workspace(tmp_path / "w")
    tokenizer = Tokenizer.load(workspace.base_models / "tiny")
    recipe = parse_recipe(tiny_recipe().model_dump() | {"skip_unreadable": True})
    failing(monkeypatch, "003.txt", 3)
    first = prepare_data(recipe, workspace, tokenizer, 64)
    assert first.summary["documents"] == 23
    again = reopen_prepared(first.summary, recipe, workspace, tokenizer, 64)
    assert again.summary["content_sha256"] == first.summary["content_sha256"]
    assert prepare_data(recipe, workspace, tokenizer, 64).summary["documents"] == 24


def test_tokens_made_anew_under_another_key_continue_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = build_tiny_workspace(tmp_path / "w")
    tokenizer = Tokenizer.load(workspace.base_models / "tiny")
    recipe = tiny_recipe()
    summary = prepare_data(recipe, workspace, tokenizer, 64).summary | {"cache_key": "another"}
    reopen_prepared(summary, recipe, workspace, tokenizer, 64)
    older = {name: value for name, value in summary.items() if "content_sha256" not in name}
    reopen_prepared(older, recipe, workspace, tokenizer, 64)
    with pytest.raises(DataError, match="train_tokens was 1, is"):
        reopen_prepared(older | {"train_tokens": 1}, recipe, workspace, tokenizer, 64)
    (workspace.datasets / "notes" / "000.txt").write_text("Another text.")
    for known in (summary, older):
        with pytest.raises(DataError, match="changed since the run started"):
            reopen_prepared(known, recipe, workspace, tokenizer, 64)


def test_several_processes_cannot_each_lack_another_file() -> None:
    with pytest.raises(ConfigError, match="skip_unreadable"):
        parse_recipe(tiny_recipe().model_dump() | {"skip_unreadable": True, "nproc_per_node": 2})
