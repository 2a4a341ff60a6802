"""Whether two machines hold the same model: a fingerprint that need not read gigabytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

from forgellm.catalog.safety import weight_files

_SMALL_SUFFIXES = frozenset({".json", ".jinja", ".model", ".txt", ".tiktoken"})
_SAMPLES = 16
_SAMPLE_BYTES = 1 << 16


def model_fingerprint(folder: Path) -> str:
    """Hex sha256 of a model's names and contents; of weights, of their sizes and of samples.

    Weights that were trained differ almost everywhere, so that samples tell them apart; a file
    that is damaged in a single place has the fingerprint of a whole one.
    """
    total = hashlib.sha256()
    for path in sorted([*_small_files(folder), *weight_files(folder)], key=lambda file: file.name):
        is_small = path.suffix in _SMALL_SUFFIXES
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if is_small else _sampled(path)
        total.update(f"{path.name}\0{path.stat().st_size}\0{digest}\n".encode())
    return total.hexdigest()


def _small_files(folder: Path) -> list[Path]:
    return [p for p in folder.iterdir() if p.suffix in _SMALL_SUFFIXES and p.is_file()]


def _sampled(path: Path) -> str:
    """The beginning, which says what the tensors are called, and places as far apart as can be."""
    digest = hashlib.sha256()
    last = max(0, path.stat().st_size - _SAMPLE_BYTES)
    with path.open("rb") as file:
        for index in range(_SAMPLES):
            file.seek(last * index // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()
