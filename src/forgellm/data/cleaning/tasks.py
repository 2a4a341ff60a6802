"""The tasks of `forgellm data`, each from an order to a report that is plain JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from forgellm.data.cleaning.division import divide
from forgellm.data.cleaning.duplicates import DuplicateFinder
from forgellm.data.cleaning.items import OnProgress, Reading
from forgellm.data.cleaning.manifest import Manifest, read_manifest, shown
from forgellm.data.cleaning.orders import Order, Task, against_files
from forgellm.data.cleaning.preparation import prepare, restore
from forgellm.data.cleaning.survey import survey
from forgellm.data.datasets import find_dataset
from forgellm.data.left_out import worst_first
from forgellm.data.tokenizer import Tokenizer
from forgellm.paths import Workspace
from forgellm.schema.preparation import (
    DedupRequest,
    InspectRequest,
    PrepareRequest,
    RestoreRequest,
    SplitRequest,
)

Report = dict[str, Any]


def perform(order: Order, on_progress: OnProgress) -> Report:
    """Raises ForgeError."""
    return _TASKS[order.task](order, on_progress)


def shortened(report: Any, limit: int) -> Any:
    """`report` with at most `limit` entries in each list; the counts beside them stay."""
    if isinstance(report, dict):
        return {key: shortened(value, limit) for key, value in report.items()}
    if isinstance(report, list):
        return [shortened(value, limit) for value in report[:limit]]
    return report


def _folder(order: Order) -> Path:
    return find_dataset(Workspace(Path(order.workspace)), order.dataset)


def _inspect(order: Order, on_progress: OnProgress) -> Report:
    tokenizer = Tokenizer.load(Path(order.tokenizer)) if order.tokenizer else None
    cache = Workspace(Path(order.workspace)).cache / "tokens"
    wanted = InspectRequest(**order.settings)
    return asdict(survey(_folder(order), wanted, tokenizer, cache, on_progress))


def _stats(order: Order, on_progress: OnProgress) -> Report:
    report = _inspect(order, on_progress)
    report["num_files"] = len(report.pop("files"))
    return report


def _dedup(order: Order, on_progress: OnProgress) -> Report:
    wanted = DedupRequest(**order.settings)
    reading = Reading.of(_folder(order), wanted.kind, wanted.columns)
    sources, beginnings = [], []
    with DuplicateFinder(wanted.similarity) as finder:
        for item in reading.items(on_progress, "reading"):
            finder.add(item.text)
            sources.append(item.source)
            beginnings.append(shown(item.text[:80]))
        reading.require_items(len(sources))
        found = finder.duplicates()
    return {
        "kind": reading.kind,
        "items": len(sources),
        "num_exact": sum(item.is_exact for item in found),
        "num_near": sum(not item.is_exact for item in found),
        "duplicates": [
            {
                "source": sources[item.number],
                "duplicate_of": sources[item.of],
                "similarity": round(item.similarity, 3),
                "is_exact": item.is_exact,
                "text": beginnings[item.number],
            }
            for item in found
        ],
        "num_skipped": len(reading.report.skipped),
        "skipped": [asdict(item) for item in worst_first(reading.report.skipped)],
    }


def _split(order: Order, on_progress: OnProgress) -> Report:
    wanted = SplitRequest(**order.settings)
    files = against_files(order, wanted.against)
    return asdict(divide(_folder(order), wanted, files, on_progress))


def _prepare(order: Order, on_progress: OnProgress) -> Report:
    wanted = PrepareRequest(**order.settings)
    files = against_files(order, wanted.against)
    folder = _folder(order)
    return _summary(folder, prepare(folder, wanted, files, on_progress))


def _restore(order: Order, on_progress: OnProgress) -> Report:
    wanted = RestoreRequest(**order.settings)
    prepared = _folder(order)
    manifest = read_manifest(prepared)
    files = against_files(order, manifest.settings["against"])
    chosen = [] if wanted.removals == "all" else wanted.removals
    made = restore(prepared, chosen, files, on_progress)
    return _summary(prepared.with_name(manifest.dataset), made)


def _summary(original: Path, manifest: Manifest) -> Report:
    counts = {
        "num_skipped": len(manifest.skipped),
        "num_removals": len(manifest.removals),
        "num_restored": len(manifest.restored),
    }
    return {"name": f"{original.name}-prepared", **asdict(manifest), **counts}


_TASKS: dict[Task, Callable[[Order, OnProgress], Report]] = {
    "inspect": _inspect,
    "stats": _stats,
    "dedup": _dedup,
    "split": _split,
    "prepare": _prepare,
    "restore": _restore,
}
