"""Some documents of a dataset, read within bounds, and what they tell about all of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from forgellm.data.documents import DatasetFile, Document, ReadReport, Skipped, read_file
from forgellm.data.long_text import split_text
from forgellm.data.readers import READERS, read_csv, read_jsonl, read_parquet, read_plain
from forgellm.data.tokenizer import Tokenizer

_FILES_LOOKED_AT = 16
_CHARACTERS_PER_FILE = 20_000
_PIECE_CHARACTERS = 100_000
_LARGE_BYTES = 32_000_000
_BEGINNING_BYTES = 2_000_000
_READ_PIECEWISE = (read_jsonl, read_csv, read_parquet)


@dataclass
class Sample:
    """Documents up to some number of characters; `is_complete` if nothing had to be left out."""

    documents: list[Document]
    report: ReadReport
    is_complete: bool


def sample_documents(
    files: Sequence[DatasetFile], max_characters: int, max_documents: int
) -> Sample:
    """The first documents of `files`; the last one may be cut."""
    sample = Sample([], ReadReport(), True)
    left = max_characters
    for document in _documents(files, sample):
        if left <= 0 or len(sample.documents) == max_documents:
            sample.is_complete = False
            break
        text = document.text[:left]
        sample.is_complete &= len(text) == len(document.text)
        sample.documents.append(document._replace(text=text))
        left -= len(text)
    return sample


def estimate_tokens(files: Sequence[DatasetFile], tokenizer: Tokenizer) -> int:
    """Tokens of all `files`, from those of a few spread evenly over them."""
    step = max(1, -(-len(files) // _FILES_LOOKED_AT))
    num_tokens, num_bytes = 0, 0
    for file in files[::step]:
        sample = sample_documents([file], _CHARACTERS_PER_FILE, 1000)
        num_tokens += sum(len(encode_document(item.text, tokenizer)) for item in sample.documents)
        if sample.is_complete:
            num_bytes += file.size_bytes
        else:  # where it was cut short, its text is taken to be as long as the file
            num_bytes += sum(len(item.text.encode()) for item in sample.documents)
    total_bytes = sum(file.size_bytes for file in files)
    return round(num_tokens * total_bytes / num_bytes) if num_bytes else 0


def encode_document(text: str, tokenizer: Tokenizer) -> list[int]:
    """Ids of a document as it is trained on: [bos, where the model has one] + text + end."""
    ids = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    for piece in split_text(text, _PIECE_CHARACTERS, tokenizer.encode):
        ids += tokenizer.encode(piece)
    return [*ids, tokenizer.document_end_id]


def _documents(files: Sequence[DatasetFile], sample: Sample) -> Iterator[Document]:
    """As `read_file`, but of a large file that would be read at once only the beginning, if any."""
    for file in files:
        reader = READERS[file.path.suffix.lower()]
        if file.size_bytes <= _LARGE_BYTES or reader in _READ_PIECEWISE:
            yield from read_file(file, sample.report)
            continue
        sample.is_complete = False
        if reader is not read_plain:
            sample.report.skipped.append(Skipped(file.name, "too large to be looked into here"))
            continue
        try:
            with file.path.open("rb") as stream:
                start = stream.read(_BEGINNING_BYTES)
        except OSError as error:
            sample.report.skipped.append(Skipped(file.name, f"cannot be opened: {error.strerror}"))
            continue
        yield Document(file.name, start.decode("utf-8", "ignore"))
