"""What the publishing process does: check the checkpoint, merge, describe, compare, move into place."""

from __future__ import annotations

import shutil
from datetime import datetime
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from safetensors import SafetensorError

from forgellm import hardware
from forgellm.atomic import read_json, storage_error, storage_errors, sync, sync_tree
from forgellm.catalog import ModelFolder, find_model
from forgellm.data.tokenizer import CHAT_TEMPLATE_NAME, Tokenizer
from forgellm.engines.base import Agreement, FuseEngine
from forgellm.engines.registry import load_fuse_engine
from forgellm.errors import CheckpointCorrupt, DiskTooSmall, ForgeError
from forgellm.paths import utc_now
from forgellm.publishing.dashboard_png import DASHBOARD_NAME, draw_dashboard
from forgellm.publishing.model_card import model_card
from forgellm.publishing.publish import OnProgress, Published
from forgellm.runs.checkpoints import Checkpoint, verify
from forgellm.runs.lock import file_lock
from forgellm.runs.store import Run
from forgellm.schema.recipe import Recipe
from forgellm.schema.run import RunRecord

# Rounding merged weights to bfloat16 costs about 0.001 nats; another checkpoint is far beyond this.
MIN_TOP1_AGREEMENT = 0.95
MAX_MEAN_KL = 0.02

RECIPE_NAME = "recipe.yaml"
_STAGING = ".tmp-publish-"
_COPIED = ("*.json", "*.jinja", "*.tiktoken", "*.model", "vocab.txt", "merges.txt", "LICEN[CS]E*")
_NOT_COPIED = {"config.json", "adapter_config.json", "model.safetensors.index.json"}
_PROMPTS, _PROMPT_TOKENS = 6, 64
# What the address of a webhook holds may be secret, and a queue is of no use to others.
_PRIVATE_FIELDS = {"webhook_url", "queue"}


def build_published(run: Run, checkpoint: Checkpoint, on_progress: OnProgress) -> Published:
    """See `publish.publish_checkpoint`, which calls this in a child process."""
    record = run.record()
    on_progress(0.0, "checking the checkpoint")
    verify(checkpoint)
    base = find_model(record.recipe.model_name, run.workspace, allow_absolute=True)
    _require_own_settings(run, checkpoint, record.recipe)
    published = run.workspace.published_models
    with storage_errors("the published model"), file_lock(published / ".publish.lock"):
        for leftover in published.glob(f"{_STAGING}*"):
            shutil.rmtree(leftover)
        _require_disk(published, base)
        with TemporaryDirectory(prefix=_STAGING, dir=published) as staging:
            model = Path(staging) / "model"
            model.mkdir()
            name = _free_name(published, run, checkpoint, utc_now())
            agreement = _write_model(run, checkpoint, base, model, name, on_progress)
            # One rename, so that the model is there whole or not at all.
            sync_tree(model)
            model.rename(published / name)
            sync(published)
    path = run.workspace.relative(published / name)
    return Published(
        published_model_path=path,
        model_name=f"published/{name}",
        dashboard_path=f"{path}/{DASHBOARD_NAME}",
        readme_path=f"{path}/README.md",
        verification=figures_of(agreement),
    )


def figures_of(agreement: Agreement) -> dict[str, Any]:
    return {
        "top1_agreement": round(agreement.top1, 6),
        "mean_kl": round(agreement.mean_kl, 8),
        "positions": agreement.num_positions,
        "dtype": agreement.dtype,
    }


def _write_model(
    run: Run,
    checkpoint: Checkpoint,
    base: ModelFolder,
    out: Path,
    name: str,
    on_progress: OnProgress,
) -> Agreement:
    """Everything the published folder holds, compared with what it was made of."""
    record = run.record()
    engine = load_fuse_engine(record.recipe.engine)
    try:
        engine.fuse(
            base.path,
            checkpoint.weights,
            out,
            lambda done: on_progress(0.05 + 0.5 * done, "merging the weights"),
        )
    except SafetensorError as error:  # how a full disk shows there
        raise storage_error("the published model", error) from error
    verify(checkpoint)  # it may have been replaced while it was read
    _copy_companions(base.path, out)
    if (run.folder / CHAT_TEMPLATE_NAME).is_file():  # what the run's conversations were read with
        shutil.copyfile(run.folder / CHAT_TEMPLATE_NAME, out / CHAT_TEMPLATE_NAME)
    on_progress(0.6, "comparing with the base model and its checkpoint")
    agreement = _compare(engine, base.path, checkpoint.weights, out)
    on_progress(0.9, "drawing the dashboard and writing the model card")
    draw_dashboard(run, out / DASHBOARD_NAME)
    recipe = recipe_yaml(record, base)
    (out / RECIPE_NAME).write_text(recipe, encoding="utf-8")
    card = model_card(run, checkpoint, base, name, figures_of(agreement), recipe)
    (out / "README.md").write_text(card, encoding="utf-8")
    return agreement


def recipe_yaml(record: RunRecord, base: ModelFolder) -> str:
    """The run's recipe, to be trained again with `forgellm train --config`."""
    fields = record.recipe.model_dump(mode="json", exclude_none=True, exclude=_PRIVATE_FIELDS)
    # A folder given by its place on this machine is named by its last part alone.
    fields["model_name"] = Path(base.name).name if Path(base.name).is_absolute() else base.name
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)


def _require_own_settings(run: Run, checkpoint: Checkpoint, recipe: Recipe) -> None:
    """The adapter's scale is not in the checkpoint's manifest, but it follows from the recipe."""
    if checkpoint.weights.is_dir():
        return
    config = read_json(run.folder / "adapter_config.json") or {}
    found = config.get("lora_parameters", {})
    scale = (recipe.lora_alpha or 2.0 * recipe.lora_rank) / recipe.lora_rank
    expected = (recipe.fine_tune_type, recipe.lora_rank, scale)
    if (config.get("fine_tune_type"), found.get("rank"), found.get("scale")) != expected:
        raise CheckpointCorrupt(
            "adapter_config.json does not agree with the run's recipe",
            suggestion="Restore it from a copy of the run.",
            details={"run": run.name, "file": "adapter_config.json"},
        )


def _require_disk(folder: Path, base: ModelFolder) -> None:
    needed, free = base.facts.size_bytes, hardware.disk_free_bytes(folder)
    if needed > free:
        raise DiskTooSmall(
            f"The published model takes {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free",
            suggestion="Free disk space.",
        )


def _copy_companions(base: Path, out: Path) -> None:
    """Tokenizer, chat template, generation settings and licence, as the base has them."""
    for pattern in _COPIED:
        for file in base.glob(pattern):
            if file.is_file() and file.name not in _NOT_COPIED:
                shutil.copyfile(file, out / file.name)


def _compare(engine: FuseEngine, base: Path, weights: Path, out: Path) -> Agreement:
    """Raises ForgeError with the figures where the two models are not the same."""
    agreement = engine.agreement(base, weights, out, _prompts(Tokenizer.load(base)))
    # A comparison with NaN is false, so it is refused too.
    if agreement.top1 >= MIN_TOP1_AGREEMENT and agreement.mean_kl <= MAX_MEAN_KL:
        return agreement
    raise ForgeError(
        "The merged model does not answer as the base model with its checkpoint does: they agree "
        f"on {100 * agreement.top1:.1f} % of tokens, with a mean divergence of "
        f"{agreement.mean_kl:.4f} nats. It was not published.",
        suggestion="Use the adapter with its base model instead, and report this.",
        details={
            "top1_agreement": agreement.top1,
            "mean_kl": agreement.mean_kl if agreement.mean_kl == agreement.mean_kl else None,
            "positions": agreement.num_positions,
        },
    )


def _prompts(tokenizer: Tokenizer) -> list[list[int]]:
    """The beginnings of a few general texts that come with the package."""
    folder = resources.files("forgellm") / "assets" / "general" / "heldout"
    texts = sorted((file for file in folder.iterdir()), key=lambda file: file.name)[:_PROMPTS]
    start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    ids = [start + tokenizer.encode(text.read_text("utf-8")) for text in texts]
    return [prompt[:_PROMPT_TOKENS] for prompt in ids]


def _free_name(published: Path, run: Run, checkpoint: Checkpoint, now: datetime) -> str:
    """Stays free, as the lock on publishing is held."""
    wanted = f"{run.name}_{checkpoint.iteration:07d}_{now:%Y%m%d_%H%M%S}"
    name, number = wanted, 1
    while (published / name).exists():
        number += 1
        name = f"{wanted}_{number}"
    return name
