"""Tokenizers for the web server, which imports the library only when something is measured."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from forgellm.catalog import ModelFolder, find_model, list_models
from forgellm.data.documents import DatasetFile
from forgellm.errors import ForgeError
from forgellm.paths import Workspace
from forgellm.runs.store import latest_run

if TYPE_CHECKING:
    from forgellm.data.tokenizer import Tokenizer

_MAX_REMEMBERED = 1000
_TOKENIZER = "tokenizer.json"


def usual_model(workspace: Workspace) -> ModelFolder | None:
    """The model of the latest run, else the first of those on this machine with a tokenizer."""
    for name in _candidates(workspace):
        try:
            model = find_model(name, workspace)
        except ForgeError:
            continue
        if (model.path / _TOKENIZER).is_file():
            return model
    return None


def load_tokenizer(model: ModelFolder) -> Tokenizer:
    """Raises UnsupportedModel."""
    file = model.path / _TOKENIZER
    changed = file.stat().st_mtime_ns if file.is_file() else 0
    return _load(model.path, changed)


class TokenCounts:
    """Estimated tokens of datasets, measured again when a file of one changes."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._lock = Lock()
        self._known: dict[tuple[str, str], tuple[int, int]] = {}

    def estimate(self, dataset: str, files: list[DatasetFile], model: ModelFolder) -> int | None:
        """None where the model's tokenizer cannot be used."""
        from forgellm.data.sample import estimate_tokens

        key, content = (dataset, str(model.path)), hash(tuple(files))
        with self._lock:  # one at a time: who asks again meanwhile finds the answer
            known = self._known.get(key)
            if known is not None and known[0] == content:
                return known[1]
            try:
                count = estimate_tokens(files, load_tokenizer(model))
            except ForgeError:
                return None
            if len(self._known) >= _MAX_REMEMBERED:
                self._known.clear()
            self._known[key] = content, count
            return count


@lru_cache(maxsize=2)
def _load(folder: Path, changed_ns: int) -> Tokenizer:
    from forgellm.data.tokenizer import Tokenizer

    return Tokenizer.load(folder)


def _candidates(workspace: Workspace) -> Iterator[str]:
    latest = latest_run(workspace)
    if latest is not None:
        yield latest.record().recipe.model_name
    yield from (model.name for model in list_models(workspace) if model.type is not None)
