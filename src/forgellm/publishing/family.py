"""What was made from what: base models, runs, checkpoints, and everything made of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from forgellm.atomic import read_json
from forgellm.catalog import ListedModel, list_models
from forgellm.paths import Workspace
from forgellm.publishing.artefact import LINEAGE_NAME
from forgellm.publishing.sources import shown_name
from forgellm.runs.store import Run, list_runs
from forgellm.schema.family import FamilyMember
from forgellm.schema.run import RunRecord


def family(workspace: Workspace) -> list[FamilyMember]:
    """All that is here and all that it came from, the oldest first, what is gone before that."""
    runs = [(run, run.record()) for run in list_runs(workspace)]
    names = {record.training_id: _name_of(run) for run, record in runs}
    found = {
        member.name: member
        for member in (
            *(_run(run, record, names) for run, record in runs),
            *(_model(item, workspace, names) for item in list_models(workspace) if _is_model(item)),
            *_exports(workspace, names),
        )
    }
    for name in sorted({parent for member in found.values() for parent in member.made_from}):
        run, at, _ = name.rpartition("@")
        if at:
            found[name] = FamilyMember(name=name, kind="checkpoint", made_from=[run])
        for absent in {run if at else name} - found.keys():
            found[absent] = FamilyMember(name=absent, kind="missing")
    return sorted(found.values(), key=lambda member: (member.created_at or "", member.name))


def _name_of(run: Run) -> str:
    return f"{run.folder.parent.name}/{run.name}"


def _run(run: Run, record: RunRecord, names: dict[str, str]) -> FamilyMember:
    model = str(record.model.get("name") or record.recipe.model_name)
    return FamilyMember(
        name=_name_of(run),
        kind="run",
        made_from=[_named(record.recipe.base_run or shown_name(model), names)],
        command=f"forgellm reproduce {record.training_id}",
        created_at=record.created_at,
    )


def _is_model(item: ListedModel) -> bool:
    return item.kind in ("cached", "base", "published")


def _model(item: ListedModel, workspace: Workspace, names: dict[str, str]) -> FamilyMember:
    if item.path is None:
        pull = f"forgellm models pull {item.name}"
        return FamilyMember(name=item.name, kind="cached", command=pull, created_at=item.created_at)
    noted = _noted(workspace.models / item.path, item.name, names)
    return noted or FamilyMember(name=item.name, kind=item.kind, created_at=item.created_at)


def _exports(workspace: Workspace, names: dict[str, str]) -> Iterator[FamilyMember]:
    folder = workspace.exported_models
    for path in sorted(folder.glob("[!.]*")):
        if (noted := _noted(path, f"{folder.name}/{path.name}", names)) is not None:
            yield noted


def _noted(folder: Path, name: str, names: dict[str, str]) -> FamilyMember | None:
    """What an artefact's own note says of it; see `artefact.write_lineage`."""
    note = read_json(folder / LINEAGE_NAME) or {}
    try:
        return FamilyMember(
            name=name,
            kind=note["kind"],
            made_from=[_named(shown_name(parent), names) for parent in note["made_from"]],
            command=note["command"],
            created_at=note["created_at"],
        )
    except (LookupError, TypeError, ValueError, AttributeError):  # a note may say anything
        return None


def _named(source: str, names: dict[str, str]) -> str:
    """A run is noted by its training_id, which stays when it is renamed; it is shown by its name."""
    run, at, iteration = source.rpartition("@")
    if at and iteration.isdecimal():
        return f"{names.get(run, run)}@{iteration}"
    return names.get(source, source)
