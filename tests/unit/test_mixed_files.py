"""A folder of some 300 files of every kind: each is accounted for, by every method, to the last row."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import pytest

from forgellm.data.chat.encoding import ChatFormat
from forgellm.data.chat.store import chat_store
from forgellm.data.cleaning.survey import survey
from forgellm.data.document_store import token_store
from forgellm.data.documents import Skipped, dataset_files
from forgellm.data.kinds import OF_DOCUMENTS
from forgellm.data.token_store import TokenStore
from forgellm.data.tokenizer import Tokenizer
from forgellm.schema.preparation import DataKind, InspectRequest
from mixed_files import TEMPLATE, MixedFile, write_mixed_files
from tiny_tokenizer import build_tiny_tokenizer

METHODS: dict[str, DataKind] = {"cpt": "documents", "ift": "conversations", "dpo": "pairs"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mixed")


@pytest.fixture(scope="module")
def files(folder: Path) -> list[MixedFile]:
    return write_mixed_files(folder)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(build_tiny_tokenizer(tmp_path_factory.mktemp("model")))


def store_of(method: str, folder: Path, tokenizer: Tokenizer, cache: Path) -> TokenStore:
    if method == "cpt":
        return token_store(folder, tokenizer, cache)
    form = ChatFormat(TEMPLATE, "assistant", 10_000, in_pairs=method == "dpo")
    return chat_store(folder, tokenizer, form, cache)


def assert_accounted(
    files: Iterable[MixedFile], method: str, skipped: list[Skipped], learned: dict[str, int]
) -> None:
    """Each file's items and what is told of it make up the file."""
    told: dict[str, list[Skipped]] = defaultdict(list)
    for item in skipped:
        told[item.source].append(item)
    for file in files:
        items = told.pop(file.name, [])
        whole = [item.reason for item in items if item.rows is None]
        rows = sum(item.rows or 0 for item in items)
        assert learned.get(file.name, 0) == file.learned_by(method), (file.name, items)
        if file.is_of_system:
            assert not items
        elif file.reason and not (file.rows is None and whole == [OF_DOCUMENTS]):
            assert any(file.reason in reason for reason in whole), (file.name, items)
        elif file.rows is None:
            expected = [] if method == "cpt" else [OF_DOCUMENTS]
            assert whole == expected and not rows, (file.name, items)
        elif whole:  # a table without a column that this method could learn
            assert not learned.get(file.name) and "learned with" in whole[0], (file.name, items)
        else:
            assert file.learned_by(method) + rows == file.rows, (file.name, items)
    assert not told


def test_the_listing_has_every_file(folder: Path, files: list[MixedFile]) -> None:
    listing = dataset_files(folder)
    assert len(files) > 280
    found = {file.name for file in listing.files} | {item.source for item in listing.skipped}
    assert found == {file.name for file in files if not file.is_of_system}


@pytest.mark.parametrize("method", METHODS)
def test_each_method_learns_its_own_and_tells_of_the_rest(
    method: str, folder: Path, files: list[MixedFile], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    store = store_of(method, folder, tokenizer, tmp_path)
    total = sum(file.learned_by(method) for file in files)
    assert store.report.documents == total
    assert len(store.offsets) == 1 + total
    assert store.report.files == sum(file.learned_by(method) > 0 for file in files)
    assert not store.report.missing
    seen = survey(folder, InspectRequest(kind=METHODS[method]), None, tmp_path, lambda *_: None)
    learned = {file.name: file.items for file in seen.files}
    assert seen.items == total
    assert_accounted(files, method, store.report.skipped, learned)
    assert_accounted(files, method, [Skipped(**item) for item in seen.skipped], learned)
    assert store_of(method, folder, tokenizer, tmp_path).report == store.report
