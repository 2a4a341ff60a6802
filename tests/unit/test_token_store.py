import errno
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from forgellm.data import document_store as module
from forgellm.data.document_store import token_store
from forgellm.data.documents import iter_documents
from forgellm.data.growing_files import GrowingFiles
from forgellm.data.progress import Tokenised
from forgellm.data.token_store import TokenStore, open_store
from forgellm.data.tokenizer import Tokenizer
from forgellm.errors import DataError, DiskFull
from tiny_tokenizer import TRAINING_TEXT, build_tiny_tokenizer

TEXTS = {
    "a.md": "  # Mill\r\n\r\nThe wheel turns.\t\n",
    "b.py": "def f(x):\n\treturn x  # ❄️ <|im_end|>\n\n\n",
    "c.txt": "日本語 👩‍👩‍👧\x01 end",
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(build_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder = tmp_path / "dataset"
    folder.mkdir()
    for name, text in TEXTS.items():
        (folder / name).write_bytes(text.encode())
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "tokens"


def documents(store: TokenStore) -> list[list[int]]:
    pairs = zip(store.offsets[:-1], store.offsets[1:], strict=True)
    return [store.tokens[start:end].tolist() for start, end in pairs]


def forbid_tokenising(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Tokenizer, texts: list[str]) -> list[list[int]]:
        raise AssertionError("tokenised again")

    monkeypatch.setattr(Tokenizer, "encode_batch", refuse)


def test_documents_are_kept_byte_for_byte(dataset: Path, cache: Path, tokenizer: Tokenizer) -> None:
    store = token_store(dataset, tokenizer, cache)
    decoded = [tokenizer.decode(ids, skip_special=False) for ids in documents(store)]
    assert decoded == [text + "<|endoftext|>" for text in TEXTS.values()]
    assert store.report.documents == len(store.hashes) == 3


def test_bos_stands_in_front_of_each_document(dataset: Path, cache: Path, tmp_path: Path) -> None:
    folder = build_tiny_tokenizer(tmp_path / "tokenizer")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"add_bos_token": True}))
    with_bos = Tokenizer.load(folder)
    for ids, text in zip(
        documents(token_store(dataset, with_bos, cache)), TEXTS.values(), strict=True
    ):
        assert ids == [1, *with_bos.encode(text), 0]


def test_long_documents_are_cut_for_encoding_only(
    dataset: Path, cache: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    (dataset / "long.txt").write_text(TRAINING_TEXT * 3)
    monkeypatch.setattr(module, "_PIECE_CHARACTERS", 300)
    monkeypatch.setattr(module, "_BATCH_CHARACTERS", 1000)
    store = token_store(dataset, tokenizer, cache)
    expected = [[*tokenizer.encode(document.text), 0] for document in iter_documents(dataset)]
    assert documents(store) == expected


def test_second_call_does_not_tokenise(
    dataset: Path, cache: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = token_store(dataset, tokenizer, cache)
    os.utime(dataset / "a.md", (1, 1))
    forbid_tokenising(monkeypatch)
    second = token_store(dataset, tokenizer, cache)
    assert (first.key, documents(first)) == (second.key, documents(second))


def test_skipped_files_are_reported_from_the_cache_too(
    dataset: Path, cache: Path, tokenizer: Tokenizer
) -> None:
    (dataset / "bad.txt").write_bytes(b"caf\xe9")
    token_store(dataset, tokenizer, cache)
    (dataset / "late.png").write_bytes(b"x")
    report = token_store(dataset, tokenizer, cache).report
    assert {item.source for item in report.skipped} == {"bad.txt", "late.png"}


def test_changed_text_has_another_key(dataset: Path, cache: Path, tokenizer: Tokenizer) -> None:
    first = token_store(dataset, tokenizer, cache)
    (dataset / "a.md").write_text("changed")
    second = token_store(dataset, tokenizer, cache)
    assert first.key != second.key
    assert len(documents(open_store(cache, first.key) or second)[0]) > 2  # the old one stays


@pytest.mark.parametrize("name", ["tokens.bin", "offsets.npy", "hashes.npy", "meta.json"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_damaged_cache_is_made_again(
    dataset: Path, cache: Path, tokenizer: Tokenizer, name: str, damage: str
) -> None:
    good = token_store(dataset, tokenizer, cache)
    expected = documents(good)
    path = cache / good.key / name
    raw = bytearray(path.read_bytes())
    path.unlink()
    if damage == "truncated":
        path.write_bytes(raw[:-4])
    elif damage == "flipped":
        raw[0] ^= 1
        path.write_bytes(raw)
    assert open_store(cache, good.key) is None
    assert documents(token_store(dataset, tokenizer, cache)) == expected
    assert documents(open_store(cache, good.key) or good) == expected
    assert [path.name for path in cache.iterdir()] == [good.key]


def test_cache_outlives_the_dataset(dataset: Path, cache: Path, tokenizer: Tokenizer) -> None:
    store = token_store(dataset, tokenizer, cache)
    shutil.rmtree(dataset)
    reopened = open_store(cache, store.key)
    assert reopened is not None and documents(reopened) == documents(store)


def test_builders_of_the_same_key_do_not_harm_each_other(
    dataset: Path, cache: Path, tokenizer: Tokenizer
) -> None:
    with ThreadPoolExecutor(8) as pool:
        stores = list(pool.map(lambda _: token_store(dataset, tokenizer, cache), range(8)))
    assert len({json.dumps(documents(store)) for store in stores}) == 1
    assert [path.name for path in cache.iterdir()] == [stores[0].key]


def test_failed_build_leaves_nothing(
    dataset: Path, cache: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disk_is_full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(GrowingFiles, "append", disk_is_full)
    with pytest.raises(DiskFull):
        token_store(dataset, tokenizer, cache)
    assert list(cache.iterdir()) == []


def test_abandoned_build_is_removed_but_a_running_one_stays(
    dataset: Path, cache: Path, tokenizer: Tokenizer
) -> None:
    for name, age_seconds in ((".old-x", 10**6), (".new-x", 0)):
        folder = cache / name
        folder.mkdir(parents=True)
        (folder / "tokens.bin").write_bytes(b"1234")
        moment = folder.stat().st_mtime - age_seconds
        os.utime(folder / "tokens.bin", (moment, moment))
        os.utime(folder, (moment, moment))
    store = token_store(dataset, tokenizer, cache)
    assert {path.name for path in cache.iterdir()} == {".new-x", store.key}


def test_dataset_that_changes_while_it_is_read_is_refused(
    dataset: Path, cache: Path, tokenizer: Tokenizer
) -> None:
    def change(_: Tokenised) -> None:
        (dataset / "c.txt").write_text("something else")

    with pytest.raises(DataError, match="changed while"):
        token_store(dataset, tokenizer, cache, change)
    assert list(cache.iterdir()) == []


def test_empty_dataset_gives_an_empty_store(
    tmp_path: Path, cache: Path, tokenizer: Tokenizer
) -> None:
    (tmp_path / "empty").mkdir()
    store = token_store(tmp_path / "empty", tokenizer, cache)
    assert len(store.tokens) == 0 and store.report.documents == 0


def test_progress_reaches_the_total(dataset: Path, cache: Path, tokenizer: Tokenizer) -> None:
    seen: list[Tokenised] = []
    store = token_store(dataset, tokenizer, cache, seen.append)
    size = sum(len(text.encode()) for text in TEXTS.values())
    assert seen[0] == (0, size, 0) and seen[-1] == (size, size, len(store.tokens))
