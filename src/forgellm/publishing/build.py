"""What the publishing process does: check the checkpoint, merge, describe, compare, move into place."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from forgellm.atomic import file_lock, whole_folder
from forgellm.catalog import ModelFolder, find_model
from forgellm.child import OnProgress
from forgellm.engines.base import Agreement, FuseEngine
from forgellm.engines.merged_model import model_of, require_disk, write_merged
from forgellm.engines.registry import load_fuse_engine
from forgellm.errors import ModelNotFound
from forgellm.paths import Workspace, utc_now
from forgellm.publishing.artefact import write_lineage
from forgellm.publishing.comparison import agreement_of, figures_of, require_alike
from forgellm.publishing.dashboard_png import DASHBOARD_NAME, draw_dashboard
from forgellm.publishing.model_card import model_card
from forgellm.publishing.publish import Published
from forgellm.publishing.sources import id_of, shown_name
from forgellm.runs.checkpoints import Checkpoint, find_checkpoint, verify
from forgellm.runs.lineage import lineage_from
from forgellm.runs.store import Run, open_run
from forgellm.schema.recipe import PRIVATE_FIELDS
from forgellm.schema.run import RunRecord

# Rounding merged weights to bfloat16 costs about 0.001 nats; another checkpoint is far beyond this.
MIN_TOP1_AGREEMENT = 0.95
MAX_MEAN_KL = 0.02

RECIPE_NAME = "recipe.yaml"


def publish_task(
    request: dict[str, Any], workspace: Workspace, on_progress: OnProgress
) -> dict[str, Any]:
    """See `publish.publish_checkpoint`, which asks for it. Raises ForgeError."""
    run = open_run(workspace, Path(request["run_folder"]))
    checkpoint = find_checkpoint(run.folder, request["iteration"])
    allow = request["allow_changed_base"]
    return asdict(build_published(run, checkpoint, on_progress, request["dtype"], allow))


def build_published(
    run: Run,
    checkpoint: Checkpoint,
    on_progress: OnProgress,
    dtype: str | None = None,
    allow_changed_base: bool = False,
) -> Published:
    """Check, merge, describe, compare, move into place. Raises ForgeError."""
    on_progress(0.0, "checking the checkpoint")
    run.require_as_written()
    verify(checkpoint)
    record = run.record()
    engine = record.recipe.engine
    base = model_of(record, run.workspace, engine, allow_changed=allow_changed_base)
    published = run.workspace.published_models
    with file_lock(published / ".publish.lock"):
        require_disk(published, base, "published", dtype)
        name = _free_name(published, run, checkpoint, utc_now())
        with whole_folder(published / name, "the published model") as model:
            agreement = _write_model(run, checkpoint, base, model, name, dtype, on_progress)
    path = run.workspace.relative(published / name)
    return Published(
        published_model_path=path,
        model_name=f"published/{name}",
        dashboard_path=f"{path}/{DASHBOARD_NAME}",
        readme_path=f"{path}/README.md",
        verification=figures_of(agreement),
    )


def _write_model(
    run: Run,
    checkpoint: Checkpoint,
    base: ModelFolder,
    out: Path,
    name: str,
    dtype: str | None,
    on_progress: OnProgress,
) -> Agreement:
    """Everything the published folder holds, compared with what it was made of."""
    record = run.record()
    engine = load_fuse_engine(record.recipe.engine)
    write_merged(
        engine,
        base.path,
        run,
        checkpoint,
        out,
        lambda done: on_progress(0.05 + 0.5 * done, "merging the weights"),
        dtype,
    )
    on_progress(0.6, "comparing with the base model and its checkpoint")
    agreement = compare(engine, base.path, checkpoint.weights, out)
    on_progress(0.9, "drawing the dashboard and writing the model card")
    draw_dashboard(run, out / DASHBOARD_NAME)
    origin = origin_of(record, base, run.workspace)
    recipe = recipe_yaml(record, origin)
    (out / RECIPE_NAME).write_text(recipe, encoding="utf-8")
    descent = lineage_from(run, checkpoint, "merged")
    command = ["forgellm", "publish", "--run", record.training_id]
    command += ["--iteration", str(checkpoint.iteration)]
    command += ["--dtype", dtype] if dtype else []
    write_lineage(
        out,
        "published",
        [id_of(run, checkpoint)],
        command,
        base_model=shown_name(origin.name),
        checkpoints=[item.model_dump(mode="json") for item in descent],
    )
    card = model_card(run, descent, checkpoint, origin, name, figures_of(agreement), recipe)
    (out / "README.md").write_text(card, encoding="utf-8")
    return agreement


def origin_of(record: RunRecord, base: ModelFolder, workspace: Workspace) -> ModelFolder:
    """The model that all began with; `base` itself where that is gone, or no run came between."""
    if not record.lineage:
        return base
    try:
        return find_model(record.recipe.model_name, workspace, allow_absolute=True)
    except ModelNotFound:
        return base


def recipe_yaml(record: RunRecord, origin: ModelFolder) -> str:
    """The run's recipe, to be trained again with `forgellm train --config`."""
    fields = record.recipe.model_dump(mode="json", exclude_none=True, exclude=set(PRIVATE_FIELDS))
    fields["model_name"] = shown_name(origin.name)
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)


def compare(engine: FuseEngine, base: Path, weights: Path, out: Path) -> Agreement:
    """Raises ForgeError with the figures where the two models are not the same."""
    agreement = agreement_of(engine, base, weights, out)
    message = (
        "The merged model does not answer as the base model with its checkpoint does: they agree "
        f"on {100 * agreement.top1:.1f} % of tokens, with a mean divergence of "
        f"{agreement.mean_kl:.4f} nats. It was not published."
    )
    suggestion = "Use the adapter with its base model instead, and report this."
    require_alike(agreement, MIN_TOP1_AGREEMENT, MAX_MEAN_KL, message, suggestion)
    return agreement


def _free_name(published: Path, run: Run, checkpoint: Checkpoint, now: datetime) -> str:
    """Stays free, as the lock on publishing is held."""
    wanted = f"{run.name}_{checkpoint.iteration:07d}_{now:%Y%m%d_%H%M%S}"
    name, number = wanted, 1
    while (published / name).exists():
        number += 1
        name = f"{wanted}_{number}"
    return name
