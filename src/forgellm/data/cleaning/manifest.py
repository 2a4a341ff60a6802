"""`preparation.json` in a prepared dataset: of what it was made, how, and everything left out."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from forgellm.atomic import read_json, write_json
from forgellm.data.documents import MANIFEST_NAME
from forgellm.errors import NotFound
from forgellm.schema.preparation import DataKind

RemovalKind = Literal["duplicate", "near_duplicate", "boilerplate", "masked", "empty"]

_FORMAT = 1
_TEXT_SHOWN = 200


@dataclass(frozen=True)
class Removal:
    """Something left out, or masked.

    Attributes:
        id: the same whenever the same dataset is prepared.
        lines: line numbers in the source's text; empty where all of it is meant.
        text: what it was, or its beginning; a masked value is never whole.
        duplicate_of: the text that was kept instead.
    """

    id: str
    kind: RemovalKind
    source: str
    reason: str
    text: str
    lines: list[int] = field(default_factory=list)
    duplicate_of: str | None = None


@dataclass
class Manifest:
    """Attributes:
    settings: the fields of a `PrepareRequest`.
    original_fingerprint, fingerprint: of the dataset's files, and of the prepared ones.
    flags: likely secrets and addresses, with file and line; at most some thousands.
    restored: ids of the removals that were undone.
    division: split and overlaps, as `divide` reports them.
    """

    dataset: str
    kind: DataKind
    settings: dict[str, Any]
    original_fingerprint: str
    fingerprint: str = ""
    num_read: int = 0
    num_written: int = 0
    skipped: list[dict[str, Any]] = field(default_factory=list)
    num_flags: int = 0
    flags: list[dict[str, Any]] = field(default_factory=list)
    removals: list[Removal] = field(default_factory=list)
    restored: list[str] = field(default_factory=list)
    division: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Raises DiskFull."""
        # The format comes first: by it the file is known for what it is.
        write_json(folder / MANIFEST_NAME, {"forgellm_preparation": _FORMAT, **asdict(self)})


def read_manifest(folder: Path) -> Manifest:
    """Raises NotFound if the folder is no prepared dataset."""
    values = read_json(folder / MANIFEST_NAME) or {}
    try:
        if values.pop("forgellm_preparation") == _FORMAT:
            removals = [Removal(**item) for item in values.pop("removals")]
            return Manifest(removals=removals, **values)
    except (KeyError, TypeError):  # not ours, or damaged
        pass
    raise NotFound(
        "This dataset was not made by a preparation",
        suggestion=f"Make one with: forgellm data prepare {folder.name}",
        details={"dataset": folder.name},
    )


def removal_id(kind: RemovalKind, source: str, what: str = "") -> str:
    """12 hex digits. `what` must not be a secret: a short hash of one could be guessed back."""
    key = f"{kind}\0{source}\0{what}".encode("utf-8", "replace")
    return hashlib.blake2b(key, digest_size=6).hexdigest()


def shown(text: str) -> str:
    """The beginning of a removed text."""
    text = " ".join(text[: 2 * _TEXT_SHOWN].split())
    return text if len(text) <= _TEXT_SHOWN else text[: _TEXT_SHOWN - 1] + "…"


def preparation_summary(folder: Path, fingerprint: str) -> dict[str, Any] | None:
    """What a run records of how its dataset was prepared; None for one that was not.

    `fingerprint` is that of the dataset's files as they are now.
    """
    try:
        manifest = read_manifest(folder)
    except NotFound:
        return None
    return {
        "dataset": manifest.dataset,
        "original_fingerprint": manifest.original_fingerprint,
        "settings": manifest.settings,
        "num_removals": len(manifest.removals),
        "num_restored": len(manifest.restored),
        "changed_since": fingerprint != manifest.fingerprint,
    }
