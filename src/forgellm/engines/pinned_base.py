"""The model under a run's weights is the one that the run was trained on, to the bit, or it is refused.

A run writes down what its model's files held when it began. Where the files are does not matter: the
same model may be in the hub's cache on one machine and in `models/base/` on another.
"""

from __future__ import annotations

import logging
from pathlib import Path

from forgellm.catalog import find_model
from forgellm.catalog.content import content_of, is_of_weights
from forgellm.errors import ModelChanged
from forgellm.paths import Workspace
from forgellm.runs.lineage import merged_ancestor, merged_name
from forgellm.runs.store import Run
from forgellm.schema.run import BaseFile, RunRecord

_log = logging.getLogger(__name__)


def require_same_base(
    record: RunRecord, model: Path, workspace: Workspace, *, allow_changed: bool = False
) -> None:
    """Raises ModelChanged, naming the files, unless `model` holds what it held when the run began.

    With `allow_changed` the difference becomes a warning in the log, as does a run of an earlier
    version, which wrote nothing down.
    """
    if not record.base_files:
        _log.warning(
            "%s was made before runs wrote down what their model held: whether it has changed since "
            "is not known",
            record.name,
        )
        return
    changes = _changes(record, content_of(model, workspace, weights=_uses_weights(record)))
    if not changes:
        return
    said = "; ".join(f"{name} {what}" for name, what in changes.items())
    if allow_changed:
        _log.warning("%s goes on with a changed model: %s", record.name, said)
        return
    raise ModelChanged(
        f"The model is not the one that {record.name} was trained on: {said}",
        details={"run": record.name, "model": record.recipe.model_name, "changed": changes},
    )


def require_same_base_to_resume(run: Run, *, allow_changed: bool = False) -> None:
    """As `require_same_base`, without making a merged model that is not there: the trainer will.

    With `allow_changed` the run is pinned anew to what its model holds now, with a warning in its
    record. Raises ModelChanged, ModelNotFound, UnsupportedModel.
    """
    record = run.record()
    if not (record.base_files or allow_changed):
        return
    model = _base_if_there(record, run.workspace)
    if model is None:
        return
    if not allow_changed:
        require_same_base(record, model, run.workspace)
        return
    found = content_of(model, run.workspace)
    changes = _changes(record, found) if record.base_files else {}
    warnings = [
        f"{name} {what}; the run was continued all the same" for name, what in changes.items()
    ]
    update = {"base_files": found, "warnings": [*record.warnings, *warnings]}
    run.write_record(record.model_copy(update=update))


def _uses_weights(record: RunRecord) -> bool:
    """A checkpoint of all weights needs no others; its base gives the tokenizer."""
    return record.recipe.fine_tune_type != "full"


def _changes(record: RunRecord, found: dict[str, BaseFile]) -> dict[str, str]:
    """What is different, by file name."""
    pinned, changes = record.base_files, {}
    for name in sorted(pinned.keys() | found.keys()):
        if is_of_weights(name) and not _uses_weights(record):
            continue
        if name not in found:
            changes[name] = "is missing"
        elif name not in pinned:
            changes[name] = "was not there"
        elif found[name] != pinned[name]:
            changes[name] = "was changed"
    return changes


def _base_if_there(record: RunRecord, workspace: Workspace) -> Path | None:
    ancestor = merged_ancestor(record.lineage)
    if ancestor is None:
        return find_model(record.recipe.model_name, workspace, allow_absolute=True).path
    folder = workspace.merged_models / merged_name(ancestor)
    return folder if folder.is_dir() else None
