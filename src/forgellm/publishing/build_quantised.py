"""What the publishing process does to quantise a model: round, read back, compare, describe.

Weights are rounded a few megabytes at a time. The comparison loads one of the two models at a time,
as generating does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from forgellm import hardware
from forgellm.atomic import file_lock, whole_folder
from forgellm.catalog import ModelFolder
from forgellm.catalog.safety import weight_files
from forgellm.child import OnProgress
from forgellm.data.tokenizer import Tokenizer
from forgellm.engines.base import Agreement
from forgellm.engines.chat_files import name_turn_ends
from forgellm.engines.merged_model import copy_beside_weights, require_room
from forgellm.engines.merging import comparison_dtype
from forgellm.engines.quantising import plan_quantising, read_back, write_quantised
from forgellm.engines.registry import load_fuse_engine, load_generate_engine
from forgellm.paths import Workspace
from forgellm.publishing.artefact import write_lineage
from forgellm.publishing.comparison import (
    agreement_of,
    decode_speed,
    figures_of,
    finite,
    perplexity_of,
    require_alike,
)
from forgellm.publishing.quantise import find_quantisable
from forgellm.publishing.quantised_card import quantised_card
from forgellm.publishing.same_tokens import require_same_tokens
from forgellm.schema.publishing import Verification
from forgellm.schema.quantising import ModelMeasures, QuantisedModel, QuantiseRequest

# By bits: the least share of equal likeliest tokens, and the most divergence in nats. Beyond them a
# model is broken rather than less exact; docs/models.md has what sound ones measure.
_BOUNDS = {8: (0.9, 0.05), 4: (0.4, 1.5)}
_BYTES_TO_COMPARE = 2.4  # of each parameter: bfloat16, and what computing takes


def quantise_task(
    request: dict[str, Any], workspace: Workspace, on_progress: OnProgress
) -> dict[str, Any]:
    """The child's side of `quantise.quantise_model`."""
    wanted = QuantiseRequest.model_validate(request)
    return build_quantised(wanted, workspace, on_progress).model_dump()


def build_quantised(
    wanted: QuantiseRequest, workspace: Workspace, on_progress: OnProgress
) -> QuantisedModel:
    """Raises ForgeError."""
    on_progress(0.0, "reading the model")
    model, _ = find_quantisable(wanted, workspace)
    plan = plan_quantising(model.path, model.config, wanted.bits, wanted.group_size)
    published = workspace.published_models
    with file_lock(published / ".publish.lock"):
        _, name = find_quantisable(wanted, workspace)  # nobody else makes it from here on
        require_room(published, plan.num_bytes, "The quantised model takes")
        with whole_folder(published / name, "the quantised model") as out:
            write_quantised(
                plan, model.path, out,
                lambda done: on_progress(0.02 + 0.38 * done, "rounding the weights"),
            )  # fmt: skip
            copy_beside_weights(model.path, out)
            name_turn_ends(out)
            read_back(plan, out)
            compared = _compared(model, out, wanted, on_progress)
            path = workspace.relative(published / name)
            made = QuantisedModel(
                model_name=f"published/{name}",
                published_model_path=path,
                readme_path=f"{path}/README.md",
                bits=wanted.bits,
                group_size=wanted.group_size,
                num_quantised=len(plan.quantised),
                num_matrices=plan.num_matrices,
                **compared,
            )
            _describe(model, made, out)
    return made


def _compared(
    model: ModelFolder, out: Path, wanted: QuantiseRequest, on_progress: OnProgress
) -> dict[str, Any]:
    """Compare what was written, read back, with the model; only its sizes where the model itself has
    no room in memory. Raises ForgeError with the figures."""
    tokenizer = Tokenizer.load(model.path)
    require_same_tokens(tokenizer, Tokenizer.load(out), "the quantised model")
    needed = _BYTES_TO_COMPARE * model.facts.num_parameters
    if needed > hardware.training_memory_bytes():
        sizes = {"before": _size(model.path), "after": _size(out)}
        return {**sizes, "verification": None, "engine": None}
    on_progress(0.4, "comparing with the model")
    # A folder in place of an adapter is a model by itself.
    agreement = agreement_of(load_fuse_engine(), model.path, model.path, out)
    _require_alike(agreement, wanted)
    dtype = "bfloat16" if comparison_dtype(model.path) == "bfloat16" else "auto"
    on_progress(0.6, "measuring the model")
    before, engine = _measured(model.path, tokenizer, dtype)
    on_progress(0.8, "measuring the quantised model")
    after, _ = _measured(out, tokenizer, dtype)
    verification = Verification(**figures_of(agreement))
    return {"before": before, "after": after, "verification": verification, "engine": engine}


def _require_alike(agreement: Agreement, wanted: QuantiseRequest) -> None:
    top1, kl = _BOUNDS[wanted.bits]
    message = (
        f"The model with {wanted.bits} bits in groups of {wanted.group_size} does not answer as it "
        f"did: they agree on {100 * agreement.top1:.1f} % of tokens (at least {100 * top1:.0f} % are "
        f"asked for), with a mean divergence of {agreement.mean_kl:.4f} nats (at most {kl}). It was "
        "not kept."
    )
    finer = "a smaller group size, or 8 bits" if wanted.bits == 4 else "a smaller group size"
    require_alike(agreement, top1, kl, message, f"Choose {finer}.")


def _measured(folder: Path, tokenizer: Tokenizer, dtype: str) -> tuple[ModelMeasures, str]:
    """Also says with what."""
    engine = load_generate_engine(folder, None, dtype=dtype)
    measures = _size(folder).model_copy(
        update={
            "perplexity": finite(perplexity_of(engine, tokenizer)),
            "tokens_per_second": round(decode_speed(engine, tokenizer), 2),
        }
    )
    return measures, f"{engine.info.engine} on {engine.info.device} in {engine.info.dtype}"


def _size(folder: Path) -> ModelMeasures:
    size = sum(file.stat().st_size for file in weight_files(folder))
    return ModelMeasures(size_gb=round(size / 1e9, 4), perplexity=None, tokens_per_second=None)


def _describe(model: ModelFolder, made: QuantisedModel, out: Path) -> None:
    command = ["forgellm", "models", "quantize", model.name]
    command += ["--bits", str(made.bits), "--group-size", str(made.group_size)]
    (out / "README.md").write_text(quantised_card(model, made, command), encoding="utf-8")
    figures = made.model_dump(include={"bits", "group_size", "before", "after", "verification"})
    write_lineage(out, "quantised", [model.name], command, figures=figures)
