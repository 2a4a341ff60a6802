"""Any model, run or checkpoint measured as a run measures its own: `forgellm eval`, and as a job."""

from __future__ import annotations

import sys
from typing import Any

from forgellm.child import OnProgress, run_child
from forgellm.errors import CheckpointNotFound, InvalidRequest, RunNotFound
from forgellm.evaluation.measure import Measurer
from forgellm.evaluation.suite import Suite, named_suite
from forgellm.generation.loading import (
    Source,
    base_model_of,
    find_source,
    find_weights,
    open_source,
)
from forgellm.paths import Workspace
from forgellm.runs.store import find_run
from forgellm.schema.evaluation import EvaluateRequest, ModelEvaluation
from forgellm.schema.generation import LoadRequest

ALLOW_ABSOLUTE = "--allow-absolute"


def find_measured(
    request: EvaluateRequest, workspace: Workspace, *, allow_absolute: bool = False
) -> tuple[Source, Suite]:
    """The files to open and what to measure, before anything is loaded.

    Raises PathNotFound, DataError, ModelNotFound, CheckpointNotFound, InvalidRequest.
    """
    suite = named_suite(
        request.probe_files, request.general_files, workspace, allow_absolute=allow_absolute
    )
    if suite.is_empty:
        raise InvalidRequest(
            "There is nothing to measure", suggestion="Name probe_files or general_files."
        )
    weights = _checkpoint(request.model, workspace, allow_absolute)
    model_name = request.model if weights is None else _base_model(weights, workspace)
    load = LoadRequest(
        model_name=model_name,
        adapter_path=weights,
        engine=request.engine,
        dtype=request.dtype,
        allow_changed_base=request.allow_changed_base,
    )
    return find_source(load, workspace, allow_absolute=allow_absolute), suite


def evaluate_model(
    request: EvaluateRequest,
    workspace: Workspace,
    on_progress: OnProgress = lambda fraction, text: None,
    *,
    allow_absolute: bool = False,
) -> ModelEvaluation:
    """Raises what `find_measured` and loading raise, and OutOfMemory."""
    source, suite = find_measured(request, workspace, allow_absolute=allow_absolute)
    on_progress(0.0, "loading the model")
    engine, tokenizer = open_source(source)
    on_progress(0.1, "measuring")
    num_steps = 0

    def on_step() -> None:
        nonlocal num_steps
        num_steps += 1
        on_progress(0.1, f"measuring, step {num_steps}")

    line = Measurer(tokenizer, suite, on_step).first(engine)
    return ModelEvaluation(
        model=request.model,
        checkpoint=source.adapter.name if source.adapter else None,
        engine=engine.info.engine,
        device=engine.info.device,
        dtype=engine.info.dtype,
        probes=line.probes,
        general=line.general,
        seconds=line.seconds,
    )


def evaluate_in_child(
    request: EvaluateRequest, workspace: Workspace, *, allow_absolute: bool = False, **watched: Any
) -> dict[str, Any]:
    """As `evaluate_model`, in a process of its own; `watched` as `run_child` takes it."""
    command = [sys.executable, "-P", "-m", "forgellm.evaluation", request.model_dump_json()]
    if allow_absolute:
        command.append(ALLOW_ABSOLUTE)
    environment = {"FORGELLM_WORKSPACE": str(workspace.root)}
    return run_child(command, environment, "Measuring", **watched)


def _checkpoint(name: str, workspace: Workspace, allow_absolute: bool) -> str | None:
    """The adapter path that is meant; None where the name is that of a model."""
    try:
        return find_run(workspace, name).output_dir
    except RunNotFound:
        pass
    try:
        weights = find_weights(name, workspace, allow_absolute=allow_absolute)
    except CheckpointNotFound:
        return None
    return name if (weights.parent / "run.json").is_file() else None


def _base_model(adapter_path: str, workspace: Workspace) -> str:
    weights = find_weights(adapter_path, workspace, allow_absolute=True)
    name = base_model_of(weights, workspace)
    assert name is not None  # `_checkpoint` has seen that the file is in a run
    return name
