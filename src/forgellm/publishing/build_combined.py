"""What the publishing process does to combine adapters: combine, read back, compare, describe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from forgellm import __version__
from forgellm.atomic import file_lock, whole_folder
from forgellm.catalog import ModelFolder
from forgellm.catalog.safetensors_header import read_header
from forgellm.catalog.safety import weight_files
from forgellm.catalog.tensor_values import read_rows
from forgellm.child import OnProgress
from forgellm.engines.base import Agreement
from forgellm.engines.combining import SAMPLE_ROWS, Combination
from forgellm.engines.merged_model import model_of, require_disk, write_model
from forgellm.engines.pinned_base import require_same_base
from forgellm.engines.registry import load_fuse_engine
from forgellm.engines.stacking import can_stack, write_stacked
from forgellm.errors import ForgeError
from forgellm.paths import Workspace
from forgellm.publishing.artefact import write_lineage
from forgellm.publishing.build import compare
from forgellm.publishing.card_head import card_head, licence_shown
from forgellm.publishing.combine import find_parts, require_free_name
from forgellm.publishing.comparison import agreement_of, figures_of
from forgellm.publishing.sources import Source, name_of, shown_name
from forgellm.runs.checkpoints import verify, weights_sha256
from forgellm.schema.combining import CombineRequest

# Half a unit in the last place, relative to the value.
_ROUNDING = {"F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8}
_SMALLEST = 2.0**-24  # below it float16 has no more numbers


@dataclass(frozen=True)
class Combined:
    """A combined model, and how it compares.

    Attributes:
        verification: `weights_read_back`, the number of weights of which rows were read back and
            found to be as computed; for a linear combination of LoRA also the figures of its
            comparison with the base model that has all adapters beside it.
        parts: for each checkpoint its `weight`, and how often and how closely the combined model
            predicts as the base model with that checkpoint does.
    """

    model_name: str
    published_model_path: str
    readme_path: str
    verification: dict[str, Any]
    parts: list[dict[str, Any]]


def combine_task(
    request: dict[str, Any], workspace: Workspace, on_progress: OnProgress
) -> dict[str, Any]:
    """See `combine.combine`, which asks for it. Raises ForgeError."""
    return asdict(build_combined(CombineRequest(**request), workspace, on_progress))


def build_combined(
    request: CombineRequest, workspace: Workspace, on_progress: OnProgress
) -> Combined:
    """`request` must be pinned. Raises ForgeError."""
    on_progress(0.0, "checking the checkpoints")
    parts = find_parts(request.checkpoints, workspace)
    for _, checkpoint in parts:
        verify(checkpoint)
    record = parts[0][0].record()
    allow = request.allow_changed_base
    base = model_of(record, workspace, record.recipe.engine, allow_changed=allow)
    for run, _ in parts[1:]:
        require_same_base(run.record(), base.path, workspace, allow_changed=allow)
    published = workspace.published_models
    with file_lock(published / ".publish.lock"):
        require_free_name(request.name, workspace)
        require_disk(published, base, "combined")
        with whole_folder(published / request.name, "the combined model") as model:
            verification, compared = _write(request, parts, base, model, on_progress)
    path = workspace.relative(published / request.name)
    return Combined(
        model_name=f"published/{request.name}",
        published_model_path=path,
        readme_path=f"{path}/README.md",
        verification=verification,
        parts=compared,
    )


def _write(
    request: CombineRequest,
    parts: list[Source],
    base: ModelFolder,
    out: Path,
    on_progress: OnProgress,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Everything the folder holds, and how it compares."""
    engine = load_fuse_engine(parts[0][0].record().recipe.engine)
    files = [checkpoint.weights for _, checkpoint in parts]
    weights = request.weights_used()
    change = Combination(base.path, files, weights, request.method, request.density, request.seed)
    write_model(
        base.path,
        parts,
        out,
        lambda: engine.rewrite(
            base.path,
            change,
            out,
            lambda done: on_progress(0.05 + 0.5 * done, "combining the weights"),
        ),
    )
    on_progress(0.55, "reading the weights back")
    verification: dict[str, Any] = {"weights_read_back": _read_back(out, change)}
    if request.method == "linear" and can_stack(files):
        on_progress(0.6, "comparing with the base model and its adapters")
        stacked = write_stacked(files, weights, out.with_name("stacked"))
        verification |= figures_of(compare(engine, base.path, stacked, out))
    compared = []
    for number, (part, weight) in enumerate(zip(parts, weights, strict=True)):
        name = name_of(*part)
        on_progress(0.7 + 0.25 * number / len(parts), f"comparing with {name}")
        agreement = agreement_of(engine, base.path, files[number], out)
        compared.append({"checkpoint": name, "weight": weight, **_alike(agreement)})
    on_progress(0.95, "writing the model card")
    write_lineage(
        out,
        "combined",
        request.checkpoints,
        _command(request),
        base_model=shown_name(base.name),
        weights_sha256=[weights_sha256(checkpoint) for _, checkpoint in parts],
    )
    (out / "README.md").write_text(_card(request, base, verification, compared), "utf-8")
    return verification, compared


def _read_back(out: Path, change: Combination) -> int:
    """How many weights were changed. Raises ForgeError unless rows of each are there, rounded once."""
    found = {name: (file, i) for file in weight_files(out) for name, i in read_header(file).items()}
    for name, expected in change.samples.items():
        file, info = found[name]
        stored = read_rows(file, info, SAMPLE_ROWS)
        bound = abs(expected) * _ROUNDING[info.dtype] + _SMALLEST
        # A comparison with NaN is false, so it is refused too.
        if not (abs(stored - expected) <= bound).all():
            raise ForgeError(
                f"{name} was not stored as it was computed, so the model was not kept.",
                suggestion="Check the disk, try again, and report this.",
            )
    if change.samples.keys() != change.names:
        raise ForgeError("Not every weight that the adapters change was in the base model.")
    return len(change.samples)


def _alike(agreement: Agreement) -> dict[str, float]:
    return {
        "top1_agreement": round(agreement.top1, 6),
        "mean_kl": round(agreement.mean_kl, 6),
    }


def _command(request: CombineRequest) -> list[str]:
    command = ["forgellm", "models", "combine", *request.checkpoints, "--name", request.name]
    command += ["--method", request.method, "--weights", *map(str, request.weights_used())]
    if request.method != "linear":
        command += ["--density", str(request.density)]
    if request.method.startswith("dare"):
        command += ["--seed", str(request.seed)]
    return command


def _card(
    request: CombineRequest,
    base: ModelFolder,
    verification: dict[str, Any],
    compared: Sequence[dict[str, Any]],
) -> str:
    rows = "".join(
        f"| `{part['checkpoint']}` | {part['weight']:g} | {100 * part['top1_agreement']:.1f} % "
        f"| {part['mean_kl']:.4f} |\n"
        for part in compared
    )
    checked = (
        f"Rows of all {verification['weights_read_back']} changed weights were read back from "
    )
    checked += "the disk and are as computed."
    if "mean_kl" in verification:
        checked += (
            " Against the base model with all adapters beside it, the likeliest next token is the "
            f"same at {100 * verification['top1_agreement']:.1f} % of "
            f"{verification['positions']} positions (mean divergence "
            f"{verification['mean_kl']:.2g} nats)."
        )
    return f"""{card_head("transformers", base, ["merge"])}# {request.name}

Adapters of `{shown_name(base.name)}`, combined with ForgeLLM {__version__}: {_METHODS[request.method]}.

| Checkpoint | Weight | Same likeliest token | Mean divergence (nats) |
| --- | ---: | ---: | ---: |
{rows}
The last two columns compare this model with the base model and that one checkpoint, on general text.
They say how much of each is left, not how good the model is: measure that with `forgellm eval`.

{checked}

## Run it

```bash
forgellm cli generate --model published/{request.name}
```

It is a model in Hugging Face layout, for `transformers`, `mlx_lm` and others.

## Make it again

```bash
{" ".join(_command(request))}
```

The licence of the base model ({licence_shown(base)}) applies.
"""


_METHODS = {
    "linear": "their changes of each weight, summed by weight",
    "ties": "TIES (Yadav et al. 2023, arXiv 2306.01708)",
    "dare_linear": "DARE (Yu et al. 2023, arXiv 2311.03099), then summed by weight",
    "dare_ties": "DARE (Yu et al. 2023, arXiv 2311.03099), then TIES (arXiv 2306.01708)",
}
