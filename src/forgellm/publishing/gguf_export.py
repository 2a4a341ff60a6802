"""A model as a GGUF file for llama.cpp and what is built on it, checked against the model.

Weights are written and read back a few megabytes at a time; the comparison loads one of the two
models at a time, as generating does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from forgellm.atomic import file_lock, storage_errors, whole_folder
from forgellm.catalog import ModelFolder, find_model
from forgellm.catalog.gguf_export_config import export_config
from forgellm.catalog.gguf_import import write_folder
from forgellm.catalog.gguf_weights import Dtype
from forgellm.catalog.gguf_writer import GgufPlan, plan_gguf, write_gguf
from forgellm.child import OnProgress
from forgellm.data.tokenizer import Tokenizer
from forgellm.engines.base import Agreement
from forgellm.engines.merged_model import require_room
from forgellm.engines.merging import comparison_dtype
from forgellm.engines.registry import load_fuse_engine
from forgellm.paths import Workspace
from forgellm.publishing.artefact import write_lineage
from forgellm.publishing.comparison import (
    agreement_of,
    figures_of,
    finite,
    perplexity,
    require_alike,
)
from forgellm.publishing.exports import check_export, plain_name
from forgellm.publishing.gguf_card import gguf_card, modelfile
from forgellm.publishing.gguf_tokenizer import carried_tokenizer
from forgellm.publishing.gguf_types import GgufType, gguf_type, requantise
from forgellm.publishing.same_tokens import require_same_tokens
from forgellm.schema.exports import ExportRequest

_HEADER_BYTES = 30_000_000  # room for the largest vocabularies


def build_gguf(
    wanted: ExportRequest, workspace: Workspace, on_progress: OnProgress
) -> dict[str, Any]:
    """See `exports.export_model`. Raises ForgeError."""
    model = find_model(wanted.model_name, workspace)
    kind = gguf_type(wanted.type)
    described = export_config(model.config)
    tokenizer = Tokenizer.load(model.path)
    metadata = carried_tokenizer(model.path, tokenizer, described.config["vocab_size"])
    plan = plan_gguf(described, kind.kind)
    exported = workspace.exported_models
    with file_lock(exported / ".publish.lock"):
        target = check_export(wanted, workspace)
        _require_disk(exported, model, plan, kind)
        with whole_folder(target, "the GGUF file") as folder:
            name = plain_name(model)
            file = folder / f"{name}-{kind.name}.gguf"
            source = file if kind.binary is None else folder.parent / f"{name}-BF16.gguf"
            write_gguf(
                plan, model.path, metadata, name, source,
                lambda done: on_progress(0.02 + 0.4 * done, "writing the weights"),
            )  # fmt: skip
            if kind.binary is not None:
                on_progress(0.42, f"llama-quantize makes {kind.name} of it")
                requantise(kind, source, file)
                source.unlink()
            figures = _check(model, tokenizer, kind, file, folder.parent / "again", on_progress)
            _describe(model, tokenizer, kind, file, described.config, figures, wanted)
    return {
        "name": target.name,
        "path": workspace.relative(target),
        "file": file.name,
        "type": kind.name,
        **figures,
    }


def _require_disk(folder: Path, model: ModelFolder, plan: GgufPlan, kind: GgufType) -> None:
    """Room for the file, for what it is made of, and for the model that is read back from it."""
    again = model.facts.num_parameters * _item_bytes(model.path)
    first = plan.num_bytes * (kind.binary is not None)
    final = model.facts.num_parameters * kind.bits / 8 if kind.binary else plan.num_bytes
    needed = final + _HEADER_BYTES + max(first, again)
    require_room(folder, needed, "The export and its check take")


def _item_bytes(model: Path) -> int:
    return 4 if comparison_dtype(model) == "float32" else 2


def _check(
    model: ModelFolder,
    tokenizer: Tokenizer,
    kind: GgufType,
    file: Path,
    again: Path,
    on_progress: OnProgress,
) -> dict[str, Any]:
    """Read the file back as a model of its own, and compare. Raises ForgeError with the figures."""
    again.mkdir()
    dtype: Dtype = "float32" if _item_bytes(model.path) == 4 else "bfloat16"
    with storage_errors("the model read back"):
        write_folder(
            file, again, dtype,
            lambda done, total: on_progress(0.45 + 0.1 * done / total, "reading the file back"),
        )  # fmt: skip
    require_same_tokens(tokenizer, Tokenizer.load(again), "the GGUF file")
    on_progress(0.55, "comparing with the model")
    # A folder in place of an adapter is a model by itself.
    agreement = agreement_of(load_fuse_engine(), model.path, model.path, again)
    _require_alike(agreement, kind)
    on_progress(0.7, "measuring the model's perplexity")
    before = perplexity(model.path)
    on_progress(0.85, "measuring the file's perplexity")
    return {
        "size_gb": round(file.stat().st_size / 1e9, 3),
        "model_size_gb": round(model.facts.size_bytes / 1e9, 3),
        "verification": figures_of(agreement),
        "perplexity": finite(perplexity(again)),
        "model_perplexity": finite(before),
    }


def _require_alike(agreement: Agreement, kind: GgufType) -> None:
    top1, kl = kind.bounds
    message = (
        f"The GGUF file in {kind.name} does not answer as the model does: they agree on "
        f"{100 * agreement.top1:.1f} % of tokens (at least {100 * top1:.0f} % are asked for), with "
        f"a mean divergence of {agreement.mean_kl:.4f} nats (at most {kl}). It was not exported."
    )
    require_alike(agreement, top1, kl, message, "Choose a type with more bits: Q8_0 or BF16.")


def _describe(
    model: ModelFolder,
    tokenizer: Tokenizer,
    kind: GgufType,
    file: Path,
    config: dict[str, Any],
    figures: dict[str, Any],
    wanted: ExportRequest,
) -> None:
    folder = file.parent
    context = config["max_position_embeddings"]
    (folder / "Modelfile").write_text(modelfile(file.name, tokenizer, context), "utf-8")
    command = ["forgellm", "models", "export", wanted.model_name, "--format", "gguf"]
    command += ["--type", wanted.type]
    card = gguf_card(model, kind.name, file.name, config, figures, command)
    (folder / "README.md").write_text(card, "utf-8")
    write_lineage(folder, "gguf", [model.name], command, type=kind.name, figures=figures)
