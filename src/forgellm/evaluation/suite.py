"""What is measured of a model: probe files, general text, and prompts whose answers are kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from forgellm.data.documents import DatasetFile, Document, ReadReport, iter_documents, read_file
from forgellm.data.readers import READERS
from forgellm.errors import ConfigError, DataError, PathNotFound
from forgellm.evaluation.probe_files import Probe, fingerprint_of, read_probes
from forgellm.paths import Workspace
from forgellm.schema.recipe import Recipe

SHIPPED = "shipped"
SHIPPED_GENERAL = Path(__file__).parents[1] / "assets" / "general" / "heldout"
# Enough for a standard error of a few hundredths of a nat; measured at every checkpoint.
MAX_GENERAL_BYTES = 300_000


@dataclass(frozen=True)
class ProbeFile:
    """`name` is the path as the user gave it."""

    name: str
    probes: tuple[Probe, ...]

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self.probes)


@dataclass(frozen=True)
class GeneralText:
    """Documents of one file or folder, the first `MAX_GENERAL_BYTES` of them."""

    name: str
    documents: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256("\0".join(self.documents).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Suite:
    probe_files: tuple[ProbeFile, ...] = ()
    general: tuple[GeneralText, ...] = ()
    sample_prompts: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        return not (self.probe_files or self.general or self.sample_prompts)


def suite_of(recipe: Recipe, workspace: Workspace) -> Suite:
    """What a run measures. The shipped general text is part of it wherever probes are or replay is
    automatic, unless the recipe says otherwise.

    Raises ConfigError for a path that is not there, DataError for one that holds nothing usable.
    """
    general = recipe.general_files
    if general is None:
        general = [SHIPPED] if recipe.probe_files or recipe.replay == "auto" else []
    return Suite(
        tuple(_probe_file(name, workspace) for name in dict.fromkeys(recipe.probe_files)),
        tuple(_general(name, workspace) for name in dict.fromkeys(general)),
        tuple(dict.fromkeys(recipe.sample_prompts)),
    )


def probe_file(name: str, path: Path) -> ProbeFile:
    """Raises DataError."""
    probes = read_probes(path)
    if not probes:
        raise DataError(f"{name} holds no probes")
    return ProbeFile(name, tuple(probes))


def general_text(name: str, path: Path) -> GeneralText:
    """Raises DataError."""
    documents = tuple(_first(_documents(path)))
    if not documents:
        raise DataError(f"{name} holds no text that can be read")
    return GeneralText(name, documents)


def shipped_general() -> GeneralText:
    return general_text(SHIPPED, SHIPPED_GENERAL)


def _probe_file(name: str, workspace: Workspace) -> ProbeFile:
    return probe_file(name, _resolved("probe_files", name, workspace, is_file=True))


def _general(name: str, workspace: Workspace) -> GeneralText:
    if name == SHIPPED:
        return shipped_general()
    return general_text(name, _resolved("general_files", name, workspace, is_file=False))


def _resolved(field: str, name: str, workspace: Workspace, *, is_file: bool) -> Path:
    try:
        path = workspace.resolve(name)
    except PathNotFound:
        path = None
    if path is None or (is_file and not path.is_file()):
        raise ConfigError.one(
            field,
            f"there is no {'file' if is_file else 'file or folder'} {name} in the workspace",
            suggestion="Give a path inside the workspace, such as dataset/questions.json.",
        )
    return path


def _documents(path: Path) -> Iterator[Document]:
    if path.is_dir():
        return iter_documents(path)
    if path.suffix.lower() not in READERS:
        raise DataError(f"{path.name} is of no type that can be read")
    found = path.stat()
    file = DatasetFile(path.name, path, found.st_size, found.st_mtime_ns)
    return read_file(file, ReadReport())


def _first(documents: Iterator[Document]) -> Iterator[str]:
    room = MAX_GENERAL_BYTES
    for document in documents:
        text = document.text.encode()[:room].decode("utf-8", "ignore")
        room -= len(document.text.encode())
        yield text
        if room <= 0:
            return
