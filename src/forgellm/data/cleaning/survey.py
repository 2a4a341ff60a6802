"""What is in a dataset: per file and in all, its size, tokens, languages and what cannot be used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from forgellm.data.bulk_encoder import TOKEN_BYTES
from forgellm.data.chat.format import chat_format
from forgellm.data.chat.store import chat_store
from forgellm.data.chat.template import TemplateRefused
from forgellm.data.cleaning.duplicates import normalised_hash
from forgellm.data.cleaning.items import Item, OnProgress, Reading
from forgellm.data.cleaning.language import language_of
from forgellm.data.cleaning.sensitive import findings
from forgellm.data.kinds import others_in
from forgellm.data.left_out import worst_first
from forgellm.data.long_text import split_text
from forgellm.data.tokenizer import Tokenizer
from forgellm.errors import ConfigError
from forgellm.schema.preparation import DataKind, InspectRequest
from forgellm.schema.recipe import parse_recipe

_BYTES_PER_TOKEN = 4.0  # of English in common vocabularies; other languages take more tokens
_BATCH_CHARACTERS = 1_000_000
_BATCH_ITEMS = 4096
_PIECE_CHARACTERS = 100_000


@dataclass
class FileSurvey:
    """`items` are documents, conversations or pairs, `language` is that of most of them."""

    name: str
    type: str
    size_bytes: int
    items: int = 0
    characters: int = 0
    tokens: int = 0
    language: str = ""


@dataclass(frozen=True)
class Bucket:
    """Items of `at_least` to `at_most` tokens."""

    at_least: int
    at_most: int
    items: int
    tokens: int


@dataclass
class Survey:
    """What was found. `tokens_are` says whether a tokenizer counted, or bytes were divided by 4.

    Attributes:
        lengths: how many items are how long.
        languages: items by language.
        exact_duplicates: items whose text came before.
        findings: likely secrets and addresses by kind.
        notes: what of the rows is not used, such as columns that no known shape has.
        others: how many rows, and files that were not opened, hold what another method learns.
        in_a_run: of conversations and pairs, with a model: what a run would use, cut and skip.
    """

    kind: DataKind
    tokens_are: Literal["counted", "estimated"]
    items: int = 0
    characters: int = 0
    tokens: int = 0
    files: list[FileSurvey] = field(default_factory=list)
    lengths: list[Bucket] = field(default_factory=list)
    languages: dict[str, int] = field(default_factory=dict)
    exact_duplicates: int = 0
    findings: dict[str, int] = field(default_factory=dict)
    num_skipped: int = 0
    skipped: list[dict[str, Any]] = field(default_factory=list)
    notes: list[dict[str, Any]] = field(default_factory=list)
    others: dict[DataKind, int] = field(default_factory=dict)
    in_a_run: dict[str, Any] | None = None


def survey(
    folder: Path,
    wanted: InspectRequest,
    tokenizer: Tokenizer | None,
    cache: Path,
    on_progress: OnProgress,
) -> Survey:
    """Go through the dataset once; of each item 16 bytes are kept.

    Raises ConfigError if the model's chat template cannot be used.
    """
    reading = Reading.of(folder, wanted.kind, wanted.columns)
    found = Survey(reading.kind, "estimated" if tokenizer is None else "counted")
    files = {file.name: FileSurvey(file.name, PurePosixPath(file.name).suffix.lower(), file.size_bytes) for file in reading.files}  # fmt: skip
    languages: dict[str, Counter[str]] = {name: Counter() for name in files}
    kinds: Counter[str] = Counter()
    buckets: Counter[int] = Counter()
    bucket_tokens: Counter[int] = Counter()
    seen: set[bytes] = set()
    for item, num_tokens in _counted(reading.items(on_progress, "reading"), tokenizer):
        file = files[item.file]
        file.items += 1
        file.characters += len(item.text)
        file.tokens += num_tokens
        languages[item.file][language_of(item.text, item.file)] += 1
        buckets[num_tokens.bit_length()] += 1
        bucket_tokens[num_tokens.bit_length()] += num_tokens
        key = normalised_hash(item.text)
        found.exact_duplicates += key in seen
        seen.add(key)
        kinds.update(finding.kind for text in item.texts for finding in findings(text))
    for file in files.values():
        # Ties go to the first in the alphabet, so that a report is the same twice.
        ranked = sorted(languages[file.name].items(), key=lambda pair: (-pair[1], pair[0]))
        file.language = ranked[0][0] if ranked else ""
    found.files = list(files.values())
    found.items = sum(file.items for file in found.files)
    found.characters = sum(file.characters for file in found.files)
    found.tokens = sum(file.tokens for file in found.files)
    found.lengths = [
        Bucket(1 << (bits - 1) if bits else 0, (1 << bits) - 1, buckets[bits], bucket_tokens[bits])
        for bits in sorted(buckets)
    ]
    found.languages = dict(sum(languages.values(), Counter()).most_common())
    found.findings = dict(kinds.most_common())
    found.skipped = [asdict(item) for item in worst_first(reading.report.skipped)]
    found.num_skipped = len(found.skipped)
    found.others = others_in(reading.report.skipped)
    found.notes = [asdict(item) for item in worst_first(reading.report.notes)]
    if reading.kind != "documents" and tokenizer is not None:
        found.in_a_run = _in_a_run(folder, reading.kind, wanted, tokenizer, cache, on_progress)
    return found


def _in_a_run(
    folder: Path,
    kind: DataKind,
    wanted: InspectRequest,
    tokenizer: Tokenizer,
    cache: Path,
    on_progress: OnProgress,
) -> dict[str, Any]:
    """What `data/chat` makes of it; the tokens stay in the cache, for a run to use."""
    recipe = parse_recipe(
        {
            "model_name": "any",
            "dataset": folder.name,
            "training_type": "dpo" if kind == "pairs" else "ift",
            "columns": wanted.columns,
        }
    )
    form = chat_format(recipe, tokenizer, wanted.max_seq_length)
    try:
        store = chat_store(
            folder,
            tokenizer,
            form,
            cache,
            lambda now: on_progress(now.done_bytes / max(1, now.total_bytes), "tokenising"),
            skip_unreadable=True,  # it is told, as every other reason is
        )
    except TemplateRefused as error:
        raise ConfigError.one("model", f"its chat template cannot be used: {error}") from None
    learned = 0 if store.trained is None else int(store.trained.sum(dtype="int64"))
    return {
        "max_seq_length": wanted.max_seq_length,
        "used": store.report.documents,
        "cut": store.report.cut,
        "tokens": len(store.tokens),
        "learned_tokens": learned,
        "num_skipped": len(store.report.skipped),
        "skipped": [asdict(item) for item in worst_first(store.report.skipped)],
        "notes": [asdict(item) for item in worst_first(store.report.notes)],
    }


def _counted(items: Iterable[Item], tokenizer: Tokenizer | None) -> Iterator[tuple[Item, int]]:
    """Each item with the number of its tokens."""
    if tokenizer is None:
        for item in items:
            yield item, round(len(item.text.encode()) / _BYTES_PER_TOKEN)
        return
    batch: list[Item] = []
    characters = 0
    for item in items:
        batch.append(item)
        characters += len(item.text)
        if characters >= _BATCH_CHARACTERS or len(batch) >= _BATCH_ITEMS:
            yield from zip(batch, _num_tokens(batch, tokenizer), strict=True)
            batch, characters = [], 0
    yield from zip(batch, _num_tokens(batch, tokenizer), strict=True)


def _num_tokens(batch: list[Item], tokenizer: Tokenizer) -> list[int]:
    pieces = [list(split_text(i.text, _PIECE_CHARACTERS, tokenizer.encode)) for i in batch]
    encoded = tokenizer.encode_batch([part for one in pieces for part in one])
    lengths = iter([len(ids) // TOKEN_BYTES for ids in encoded])
    return [sum(next(lengths) for _ in one) for one in pieces]
