"""The stages of a chain that measure: what was measured is kept, and measured again if it changes."""

from __future__ import annotations

from forgellm.child import OnProgress
from forgellm.errors import ForgeError
from forgellm.evaluation.any_model import evaluate_in_child, find_measured
from forgellm.evaluation.suite import Suite, named_suite
from forgellm.paths import Workspace
from forgellm.runs.chains import Chain, held, weights_of
from forgellm.schema.chain import EvalRecipe, StageEvaluation
from forgellm.schema.evaluation import EvaluateRequest, Measurement, ModelEvaluation


def check_eval_stages(chain: Chain, *, allow_absolute: bool = False) -> None:
    """Find what they name, and forget figures of files that have changed since.

    Raises what `find_measured` raises.
    """
    for stage in chain.record.stages:
        if isinstance(stage.recipe, EvalRecipe):
            suite = _suite(stage.recipe, chain.workspace, allow_absolute)
            found = stage.evaluation.result if stage.evaluation else None
            if found is not None and not _are_of(found, suite):
                stage.evaluation = None


def measure_stage(
    chain: Chain,
    number: int,
    on_progress: OnProgress = lambda fraction, text: None,
    *,
    allow_absolute: bool = False,
) -> ModelEvaluation:
    """In a process of its own. The figures, or why there are none, are kept in the chain.

    Raises RunNotFound, CheckpointNotFound, CheckpointCorrupt and what `evaluate_in_child` raises.
    """
    recipe = chain.record.stages[number].recipe
    assert isinstance(recipe, EvalRecipe)
    measured = chain.measured_by(number)
    weights = weights_of(measured)
    # This very checkpoint, whatever becomes the run's best meanwhile.
    model = f"{measured[0].output_dir}/{measured[1].weights.name}" if measured else None
    request = _request(recipe, model or recipe.model_name)
    try:
        answer = evaluate_in_child(
            request, chain.workspace, allow_absolute=allow_absolute, on_progress=on_progress
        )
    except ForgeError as error:
        _keep(chain, number, StageEvaluation(weights=weights, result=None, error=error.to_dict()))
        raise
    found = ModelEvaluation.model_validate(answer)
    if measured:
        found = found.model_copy(update={"model": measured[0].output_dir})
    _keep(chain, number, StageEvaluation(weights=weights, result=found, error=None))
    return found


def _suite(recipe: EvalRecipe, workspace: Workspace, allow_absolute: bool) -> Suite:
    if recipe.base_run is None:
        request = _request(recipe, recipe.model_name)
        return find_measured(request, workspace, allow_absolute=allow_absolute)[1]
    return named_suite(
        recipe.probe_files, recipe.general_files, workspace, allow_absolute=allow_absolute
    )


def _request(recipe: EvalRecipe, model: str) -> EvaluateRequest:
    return EvaluateRequest(model=model, **recipe.model_dump(include=set(Measurement.model_fields)))


def _are_of(found: ModelEvaluation, suite: Suite) -> bool:
    """Whether the figures are of these files as they are now."""
    return [f.fingerprint for f in found.probes] == [f.fingerprint for f in suite.probe_files] and [
        f.fingerprint for f in found.general
    ] == [f.fingerprint for f in suite.general]


def _keep(chain: Chain, number: int, evaluation: StageEvaluation) -> None:
    with held(chain.workspace):
        chain.set_evaluation(number, evaluation)
