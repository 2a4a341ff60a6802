"""Which language a text is in: that of py3langid, from the beginning of the text alone."""

from __future__ import annotations

from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any

_CHARACTERS_LOOKED_AT = 1500
_MIN_LETTERS = 20  # fewer say too little
_PROSE = frozenset(
    ".txt .text .md .markdown .rst .adoc .org .tex .html .htm .xhtml .pdf .docx .odt .epub .eml "
    ".mbox .ipynb .srt .vtt .json .jsonl .ndjson .csv .tsv .parquet".split()
)


def is_code(file: str) -> bool:
    """Whether a file of this name holds source code, settings or the like."""
    return PurePosixPath(file).suffix.lower() not in _PROSE


def language_of(text: str, file: str) -> str:
    """ISO 639-1 code, "code" by the file's ending, or "unknown"."""
    if is_code(file):
        return "code"
    start = text[:_CHARACTERS_LOOKED_AT]
    if sum(map(str.isalpha, start)) < _MIN_LETTERS:
        return "unknown"
    return str(_identifier().classify(start)[0])


@lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # 100 MB of memory

    return LanguageIdentifier.from_model_file(MODEL_FILE)
