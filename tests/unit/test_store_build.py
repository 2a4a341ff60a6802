"""Token stores that are stopped, killed, raced for, and kept within bounds."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from forgellm.data import document_store, large_text, token_cache
from forgellm.data.chat import parallel
from forgellm.data.chat import store as conversations
from forgellm.data.chat.store import ChatFormat, chat_store
from forgellm.data.document_store import token_store
from forgellm.data.progress import OnProgress, Tokenised
from forgellm.data.store_build import _only_builder
from forgellm.data.token_cache import WORK_PREFIX, make_room
from forgellm.data.token_store import TokenStore
from forgellm.data.tokenizer import Tokenizer
from tiny_tokenizer import CHAT_TEMPLATE, TRAINING_TEXT, build_tiny_tokenizer

Build = Callable[[Path, OnProgress], TokenStore]


class _Ended(Exception):
    """As a kill would be, in the middle of it."""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(build_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document_store, "_PIECE_CHARACTERS", 400)
    monkeypatch.setattr(document_store, "_BATCH_CHARACTERS", 1500)
    monkeypatch.setattr(document_store, "_MARK_BYTES", 3000)
    monkeypatch.setattr(large_text, "_LARGE_BYTES", 5000)
    monkeypatch.setattr(large_text, "_PART_BYTES", 999)
    monkeypatch.setattr(conversations, "_MARK_BYTES", 300)
    monkeypatch.setattr(conversations, "_BATCH_ROWS", 3)


@pytest.fixture
def all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "_WORTH_BYTES", 0)
    monkeypatch.setattr(parallel, "num_cores", lambda: 2)


@pytest.fixture(params=["documents", "conversations", "pairs", "conversations on all cores"])
def build(request: pytest.FixtureRequest, tmp_path: Path, tokenizer: Tokenizer) -> Build:
    folder = tmp_path / "dataset"
    folder.mkdir()
    lines = TRAINING_TEXT.splitlines()
    if request.param == "documents":
        (folder / "a.md").write_text(TRAINING_TEXT)
        (folder / "b.txt").write_text("".join(f"{n} {TRAINING_TEXT}" for n in range(8)))
        (folder / "c.txt").write_bytes(b"not text \xff" * 1000)
        rows = [json.dumps({"text": f"{n} {line}"}) for n, line in enumerate(lines * 6)]
        (folder / "d.jsonl").write_text("\n".join([*rows[:9], "{broken", *rows[9:], "{again"]))
        return lambda cache, on_progress: token_store(folder, tokenizer, cache, on_progress)
    if request.param == "conversations on all cores":
        request.getfixturevalue("all_cores")
    in_pairs = request.param == "pairs"
    rows = [
        json.dumps({"prompt": f"{n}?", "chosen": line, "rejected": line[::-1]})
        if in_pairs
        else json.dumps({"prompt": f"{n}?", "completion": line})
        for n, line in enumerate(lines)
    ]
    (folder / "a.jsonl").write_text("\n".join([*rows[:9], "{broken", *rows[9:], rows[0], "{again"]))
    (folder / "b.jsonl").write_text("\n".join(rows))
    form = ChatFormat(CHAT_TEMPLATE, "last", 200, in_pairs=in_pairs)
    return lambda cache, on_progress: chat_store(folder, tokenizer, form, cache, on_progress)


def contents(store: TokenStore) -> tuple[object, ...]:
    arrays = store.tokens, store.offsets, store.hashes, store.trained, store.rejected
    raw = [None if array is None else array.tobytes() for array in arrays]
    return store.key, *raw, store.report


def ended_after(num_tokens: int, seen: list[Tokenised]) -> OnProgress:
    """Ends the work as soon as it has made so many tokens more than those of the first figure."""

    def on_progress(figure: Tokenised) -> None:
        if figure.num_tokens:
            seen.append(figure)
        if seen and figure.num_tokens - seen[0].num_tokens >= num_tokens:
            raise _Ended

    return on_progress


@pytest.mark.usefixtures("small_steps")
def test_work_that_is_ended_again_and_again_gets_done(build: Build, tmp_path: Path) -> None:
    whole = build(tmp_path / "at_once", lambda _: None)
    expected, step = contents(whole), len(whole.tokens) // 4
    starts: list[int] = []
    while True:
        seen: list[Tokenised] = []
        try:
            store = build(tmp_path / "cache", ended_after(step, seen))
            break
        except _Ended:
            starts.append(seen[0].num_tokens)
    assert len(starts) > 1 and starts == sorted(set(starts))  # each went on beyond the one before
    assert contents(store) == expected
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [store.key]


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("damage", ["longer", "shorter", "no mark"])
def test_what_a_crash_left_is_cut_back_or_made_anew(
    build: Build, tmp_path: Path, damage: str
) -> None:
    whole = build(tmp_path / "at_once", lambda _: None)
    expected = contents(whole)
    with pytest.raises(_Ended):
        build(tmp_path / "cache", ended_after(len(whole.tokens) // 2, []))
    (work,) = (tmp_path / "cache").glob(f"{WORK_PREFIX}*")
    if damage == "no mark":
        (work / "mark.json").write_text("{torn")
    for part in work.glob("*.part"):
        raw = part.read_bytes()
        part.write_bytes(raw + b"torn" if damage == "longer" else raw[: len(raw) // 4])
    assert contents(build(tmp_path / "cache", lambda _: None)) == expected


def test_a_second_builder_waits_for_the_first(build: Build, tmp_path: Path) -> None:
    key = build(tmp_path / "at_once", lambda _: None).key
    work = tmp_path / "cache" / (WORK_PREFIX + key)
    work.parent.mkdir()
    is_waiting = threading.Event()
    seen: list[Tokenised] = []

    def on_progress(figure: Tokenised) -> None:
        seen.append(figure)
        if len(seen) > 20:  # more than the comparison of the files makes
            is_waiting.set()

    with _only_builder(work, lambda: None):
        second = threading.Thread(target=build, args=(tmp_path / "cache", on_progress))
        second.start()
        assert is_waiting.wait(60)
        assert not (tmp_path / "cache" / key).exists()
    second.join()
    assert (tmp_path / "cache" / key / "meta.json").is_file()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_large_file_gives_the_tokens_of_a_small_one(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    text = (TRAINING_TEXT + "日本語 👩‍👩‍👧 ❄️\r\n") * 5
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "a.txt").write_bytes(text.encode(encoding))
    small = token_store(tmp_path / "dataset", tokenizer, tmp_path / "small")
    monkeypatch.setattr(large_text, "_LARGE_BYTES", 100)
    monkeypatch.setattr(large_text, "_PART_BYTES", 301)
    monkeypatch.setattr(document_store, "_PIECE_CHARACTERS", 400)
    large = token_store(tmp_path / "dataset", tokenizer, tmp_path / "large")
    assert contents(small) == contents(large)


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize(
    ("raw", "reason"), [(b"x" * 9000 + b"\xff", "not UTF-8"), (b" \n" * 5000, "empty")]
)
def test_a_large_file_without_text_is_left_out_whole(
    tmp_path: Path, tokenizer: Tokenizer, raw: bytes, reason: str
) -> None:
    (tmp_path / "a.txt").write_bytes(raw)
    store = token_store(tmp_path, tokenizer, tmp_path / ".cache")
    assert not len(store.tokens)
    (skipped,) = store.report.skipped
    assert skipped.reason.startswith(reason)


def test_the_cache_keeps_what_was_used_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ages = {"new": 0, "old": 5000, "older": 6000, "oldest": 10**6, WORK_PREFIX + "lost": 10**6}
    for name, age in ages.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokens.bin").write_bytes(bytes(1000))
        moment = (tmp_path / name).stat().st_mtime - age
        os.utime(tmp_path / name / "tokens.bin", (moment, moment))
        os.utime(tmp_path / name, (moment, moment))
    monkeypatch.setattr(token_cache, "MAX_BYTES", 2500)
    make_room(tmp_path, keep="oldest")
    assert {path.name for path in tmp_path.iterdir()} == {"new", "old", "oldest"}


def test_opening_an_entry_is_a_use(build: Build, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    store = build(cache, lambda _: None)
    os.utime(cache / store.key, (1, 1))
    build(cache, lambda _: None)
    assert (cache / store.key).stat().st_mtime > 1
