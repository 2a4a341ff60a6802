"""What is measured of a model: probe files, general text, and prompts whose answers are kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from forgellm.data.documents import DatasetFile, Document, ReadReport, iter_documents, read_file
from forgellm.data.readers import READERS
from forgellm.errors import DataError, PathNotFound
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
    automatic, unless the recipe says otherwise. Raises what `named_suite` raises."""
    general = recipe.general_files
    if general is None:
        general = [SHIPPED] if recipe.probe_files or recipe.replay == "auto" else []
    suite = named_suite(recipe.probe_files, general, workspace)
    return replace(suite, sample_prompts=tuple(dict.fromkeys(recipe.sample_prompts)))


def named_suite(
    probe_files: Sequence[str],
    general_files: Sequence[str],
    workspace: Workspace,
    *,
    allow_absolute: bool = False,
) -> Suite:
    """With `allow_absolute` (only for paths typed by the user of this machine) also from outside
    the workspace, relative to the current directory.

    Raises PathNotFound for a path that is not there, DataError for one that holds nothing usable.
    """

    def found(field: str, name: str) -> Path:
        path = _resolved(name, workspace, allow_absolute)
        if path is None or (field == "probe_files" and not path.is_file()):
            raise PathNotFound(
                f"{field}: there is no such path in the workspace: {name}",
                suggestion="Give a path inside the workspace, such as dataset/questions.json.",
            )
        return path

    return Suite(
        tuple(probe_file(name, found("probe_files", name)) for name in dict.fromkeys(probe_files)),
        tuple(
            shipped_general()
            if name == SHIPPED
            else general_text(name, found("general_files", name))
            for name in dict.fromkeys(general_files)
        ),
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


def _resolved(name: str, workspace: Workspace, allow_absolute: bool) -> Path | None:
    try:
        return workspace.resolve(name)
    except PathNotFound:
        path = Path(name).expanduser()
        return path if allow_absolute and path.exists() else None


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
