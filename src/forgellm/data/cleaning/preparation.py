"""A cleaned copy of a dataset, `<name>-prepared`, from which every removal can be undone.

The original is never touched. A copy is a function of the original, the settings and what was
restored, so undoing is making it again with one more thing kept.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from forgellm.atomic import storage_errors
from forgellm.data.cleaning.boilerplate import (
    EdgeLines,
    RepeatedLine,
    repeated_over_pages,
    without_lines,
)
from forgellm.data.cleaning.division import divide
from forgellm.data.cleaning.duplicates import Duplicate, DuplicateFinder
from forgellm.data.cleaning.items import Item, OnProgress, Reading, Spool, with_texts
from forgellm.data.cleaning.manifest import (
    Manifest,
    Removal,
    RemovalKind,
    read_manifest,
    removal_id,
    shown,
)
from forgellm.data.cleaning.output import Output
from forgellm.data.cleaning.sensitive import Finding, findings
from forgellm.data.documents import dataset_fingerprint
from forgellm.data.left_out import worst_first
from forgellm.errors import Conflict, InvalidRequest, NotFound
from forgellm.schema.preparation import PrepareRequest, SplitRequest

SUFFIX = "-prepared"
_FLAGS_KEPT = 5000
_PLACEHOLDERS = {"secrets": "[secret]", "emails": "[e-mail]"}


def prepare(
    folder: Path,
    wanted: PrepareRequest,
    against: Mapping[str, Path],
    on_progress: OnProgress,
    restored: Iterable[str] = (),
) -> Manifest:
    """Make or replace the prepared copy beside `folder`.

    Raises DataError if nothing can be read, Conflict if the copy's place is taken, DiskFull.
    """
    target = folder.with_name(folder.name + SUFFIX)
    _require_free(target)
    reading = Reading.of(folder, wanted.kind, wanted.columns)
    settings = wanted.model_dump()
    manifest = Manifest(folder.name, reading.kind, settings, dataset_fingerprint(folder))
    manifest.restored = sorted(restored)
    cleaner = _Cleaner(wanted, frozenset(manifest.restored), manifest)
    with _work_folder(target) as work, Spool() as cleaned:
        with Spool() as raw:
            cleaner.read(reading, raw, on_progress)
            duplicates = cleaner.clean(raw, cleaned, on_progress)
        with storage_errors("the prepared dataset"), Output(work) as output:
            for item in cleaner.kept(cleaned, duplicates, on_progress):
                output.write(item)
                manifest.num_written += 1
        manifest.skipped = [asdict(item) for item in worst_first(reading.report.skipped)]
        manifest.fingerprint = dataset_fingerprint(work)
        split = SplitRequest(
            kind=reading.kind,
            columns=wanted.columns,
            validation_split=wanted.validation_split,
            seed=wanted.seed,
        )
        manifest.division = asdict(divide(work, split, against, on_progress))
        manifest.write(work)
        _install(work, target)
    return manifest


def restore(
    prepared: Path, removals: Sequence[str], against: Mapping[str, Path], on_progress: OnProgress
) -> Manifest:
    """Make a prepared dataset again with these removals undone; with none given, with all.

    Raises NotFound if there is no such removal or the original is gone, Conflict if it changed.
    """
    manifest = read_manifest(prepared)
    original = prepared.with_name(manifest.dataset)
    if not original.is_dir() or prepared.name != original.name + SUFFIX:
        raise NotFound(
            f"The dataset {manifest.dataset!r} that this was made of is not here",
            suggestion="Bring it back to dataset/ under its old name.",
        )
    if dataset_fingerprint(original) != manifest.original_fingerprint:
        raise Conflict(
            f"The dataset {manifest.dataset!r} has changed since it was prepared",
            suggestion=f"Prepare it again: forgellm data prepare {manifest.dataset}",
        )
    known = {removal.id for removal in manifest.removals}
    unknown = sorted(set(removals) - known)
    if unknown:
        raise InvalidRequest(
            f"No removal has the id {unknown[0]!r}",
            suggestion="preparation.json lists them under `removals`.",
            details={"unknown": unknown[:20]},
        )
    settings = PrepareRequest(**manifest.settings)
    kept = {*manifest.restored, *(removals or known)}
    while True:
        made = prepare(original, settings, against, on_progress, kept)
        # What comes back may be found anew: the nearest text to it, say, is now another.
        if removals or not made.removals:
            return made
        kept |= {removal.id for removal in made.removals}


@dataclass
class _Cleaner:
    """The steps that decide what is left out, each noted in the manifest."""

    wanted: PrepareRequest
    restored: frozenset[str]
    manifest: Manifest
    edges: EdgeLines = field(default_factory=EdgeLines)

    def read(self, reading: Reading, raw: Spool, on_progress: OnProgress) -> None:
        """Everything once, onto the disk, while lines at edges are counted."""
        for item in reading.items(on_progress, "reading"):
            raw.add(item)
            if item.row is None and self.wanted.boilerplate:
                self.edges.add(item.file, item.text)
        self.manifest.num_read = len(raw)
        reading.require_items(len(raw))

    def clean(self, raw: Spool, cleaned: Spool, on_progress: OnProgress) -> list[Duplicate]:
        """Items without boilerplate and masked values, and which of them to leave out."""
        with DuplicateFinder(self.wanted.similarity) as finder:
            for item in raw.items(on_progress, "cleaning"):
                item = self._masked(*self._without_boilerplate(item))
                cleaned.add(item)
                if self.wanted.duplicates:
                    finder.add(item.text)
            return finder.duplicates()

    def kept(
        self, cleaned: Spool, duplicates: list[Duplicate], on_progress: OnProgress
    ) -> Iterator[Item]:
        """The items to write."""
        found = {item.number: item for item in duplicates}
        sources: dict[int, str] = {item.of: "" for item in duplicates}
        for number, item in enumerate(cleaned.items(on_progress, "writing")):
            if number in sources:
                sources[number] = item.source
            if not item.text.strip():
                what = "nothing is left of it"
                self._remove(
                    Removal(removal_id("empty", item.source), "empty", item.source, what, "")
                )
            elif number not in found or not self._is_left_out(item, found[number], sources):
                yield item

    def _is_left_out(self, item: Item, duplicate: Duplicate, sources: dict[int, str]) -> bool:
        of = sources[duplicate.of]
        reason = f"{duplicate.similarity:.0%} alike" if not duplicate.is_exact else "the same text"
        kind: RemovalKind = "duplicate" if duplicate.is_exact else "near_duplicate"
        return self._remove(
            Removal(
                removal_id(kind, item.source),
                kind,
                item.source,
                f"{reason}: {of}",
                shown(item.text),
                duplicate_of=of,
            )
        )

    def _without_boilerplate(self, item: Item) -> tuple[Item, list[int]]:
        """The item, and which of its lines were left out."""
        if item.row is not None or not self.wanted.boilerplate:
            return item, []
        lines: dict[str, RepeatedLine] = {}
        has_pages = "\f" in item.text or item.file.lower().endswith(".pdf")
        paged = repeated_over_pages(item.text) if has_pages else []
        for line in [*paged, *self.edges.repeated_in(item.file, item.text)]:
            known = lines.setdefault(line.text, line)
            if known is not line:
                numbers = sorted({*known.numbers, *line.numbers})
                lines[line.text] = known._replace(numbers=numbers)
        left_out: list[int] = []
        for line in lines.values():
            removal = Removal(
                removal_id("boilerplate", item.source, line.text),
                "boilerplate",
                item.source,
                line.reason,
                shown(line.text),
                line.numbers,
            )
            if self._remove(removal):
                left_out += line.numbers
        return item._replace(text=without_lines(item.text, left_out)), sorted(left_out)

    def _masked(self, item: Item, left_out: list[int]) -> Item:
        """Flags what is found, by lines of the original; masks what is asked for."""
        count = 0

        def change(text: str) -> str:
            nonlocal count
            parts, position = [], 0
            for finding in findings(text):
                for number in left_out:
                    if number <= finding.line:
                        finding = finding._replace(line=finding.line + 1)
                self._flag(item, finding)
                count += 1
                if finding.group in self.wanted.mask and self._mask(item, finding, count):
                    parts += [text[position : finding.start], _PLACEHOLDERS[finding.group]]
                    position = finding.end
            return "".join([*parts, text[position:]]) if parts else text

        if item.row is not None:
            return item._replace(row=with_texts(item.row, change))
        return item._replace(text=change(item.text))

    def _flag(self, item: Item, finding: Finding) -> None:
        self.manifest.num_flags += 1
        if len(self.manifest.flags) < _FLAGS_KEPT:
            self.manifest.flags.append(
                {
                    "source": item.source,
                    "line": finding.line,
                    "kind": finding.kind,
                    "value": finding.masked,
                }
            )

    def _mask(self, item: Item, finding: Finding, count: int) -> bool:
        return self._remove(
            Removal(
                removal_id("masked", item.source, str(count)),
                "masked",
                item.source,
                finding.kind,
                finding.masked,
                [finding.line],
            )
        )

    def _remove(self, removal: Removal) -> bool:
        """Whether it is to be removed: not if it was restored."""
        if removal.id in self.restored:
            return False
        self.manifest.removals.append(removal)
        return True


def _require_free(target: Path) -> None:
    if not target.exists():
        return
    try:
        read_manifest(target)
    except NotFound:
        raise Conflict(
            f"dataset/{target.name} exists already and was not made by a preparation",
            suggestion="Rename or remove that folder, then prepare again.",
        ) from None


@contextmanager
def _work_folder(target: Path) -> Iterator[Path]:
    """A hidden folder beside `target`, gone afterwards."""
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    work.chmod(0o755)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _install(work: Path, target: Path) -> None:
    """Move the new copy into place; the old one goes last."""
    with storage_errors("the prepared dataset"):
        old = work.with_name(work.name + "-old")
        if target.exists():
            target.rename(old)
        work.rename(target)
    shutil.rmtree(old, ignore_errors=True)
