"""Chains of runs: each starts, through the queue, from the run before it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path

from forgellm.envelope import JsonRoute
from forgellm.errors import ConfigError, InvalidRequest
from forgellm.paths import Workspace, utc_now
from forgellm.runs.chains import Chain, find_chain, held, list_chains, open_chain
from forgellm.schema.chain import (
    ChainItem,
    ChainReply,
    ChainRequest,
    ChainsReply,
    EvalRecipe,
    StageItem,
    parse_stages,
)
from forgellm.schema.recipe import recipe_schema
from forgellm.schema.run import ACTIVE_PHASES, Phase
from forgellm.supervisor import queue_again, start_training
from forgellm.training.plan import plan_chain

ChainName = Annotated[str, Path(min_length=1, max_length=100, description="A chain's name.")]
_SCHEMA = ChainRequest.model_json_schema()
_SCHEMA["properties"] |= recipe_schema()["properties"]
_SCHEMA["additionalProperties"] = False
_BODY = {"requestBody": {"content": {"application/json": {"schema": _SCHEMA}}}}


def make_router(workspace: Workspace) -> APIRouter:
    router = APIRouter(prefix="/api/chains", route_class=JsonRoute)

    @router.get("")
    def chains() -> ChainsReply:
        """Chains of runs, and which stage each has reached."""
        return ChainsReply(chains=[_item(chain) for chain in list_chains(workspace)])

    @router.post("", openapi_extra=_BODY)
    def start(body: dict[str, Any]) -> ChainReply:
        """Queue a run for each stage, or go on with the chain of that name.

        Its runs are kept up to the first stage that has changed.
        """
        name = body.get("chain") or f"chain_{utc_now():%Y%m%d_%H%M%S}"
        if not isinstance(name, str):
            raise InvalidRequest("chain: must be a name")
        recipes = parse_stages(body)
        with held(workspace):
            chain = open_chain(workspace, name, recipes)
            _queue_stages(chain)
        return ChainReply(message="Chain started", chain=_item(chain))

    @router.get("/{name}")
    def inspect(name: ChainName) -> ChainReply:
        """One chain, with its runs."""
        chain = find_chain(workspace, name)
        return ChainReply(message="Chain found", chain=_item(chain))

    @router.post("/{name}/continue")
    def go_on(name: ChainName) -> ChainReply:
        """Go on with the stage that failed or was stopped; the rest follows it."""
        with held(workspace):
            chain = find_chain(workspace, name)
            _queue_stages(chain)
        return ChainReply(message="Chain goes on", chain=_item(chain))

    @router.delete("/{name}")
    def forget(name: ChainName) -> ChainReply:
        """Forget a chain. Its runs stay, those that wait in the queue too."""
        with held(workspace):
            chain = find_chain(workspace, name)
            chain.delete()
        return ChainReply(message="Chain forgotten", chain=_item(chain))

    return router


def _queue_stages(chain: Chain) -> None:
    """Whatever is not complete shall be queued or training. Raises ForgeError."""
    _refuse_evaluations(chain)
    workspace = chain.workspace
    for number, plan in plan_chain(chain).items():
        run = chain.run_of(number)
        if run is None:
            recipe = chain.recipe_of(number).model_copy(update={"queue": True})
            length = plan.max_seq_length
            chain.set_run(number, start_training(workspace, recipe, max_seq_length=length))
        elif run.state().phase not in {*ACTIVE_PHASES, "queued", "completed"}:
            queue_again(workspace, run)


def _refuse_evaluations(chain: Chain) -> None:
    """The queue holds runs, and a measurement is none. Raises ConfigError."""
    problems = [
        {
            "field": f"stages.{number}.training_type",
            "message": "eval stages are measured only by forgellm train in a terminal",
        }
        for number, stage in enumerate(chain.record.stages, 1)
        if isinstance(stage.recipe, EvalRecipe)
    ]
    if problems:
        raise ConfigError(
            problems,
            suggestion="Leave them out, and measure a run that is complete with POST /api/evaluate.",
        )


def _item(chain: Chain) -> ChainItem:
    stages = [_stage(chain, number) for number in range(len(chain.record.stages))]
    first = next((stage for stage in stages if stage.phase != "completed"), None)
    return ChainItem(
        name=chain.record.name,
        created_at=chain.record.created_at,
        status=_status(first),
        stage=first.number if first else None,
        stages=stages,
    )


def _status(first: StageItem | None) -> Any:
    if first is None:
        return "completed"
    if first.phase in ACTIVE_PHASES:
        return "running"
    return "waiting" if first.phase in (None, "queued") else "stalled"


def _stage(chain: Chain, number: int) -> StageItem:
    recipe, run = chain.record.stages[number].recipe, chain.run_of(number)
    if isinstance(recipe, EvalRecipe):
        return _eval_stage(chain, number)
    state = run.state() if run else None
    return StageItem(
        number=number + 1,
        training_type=recipe.training_type,
        dataset=recipe.dataset,
        name=run.name if run else None,
        training_id=chain.record.stages[number].training_id,
        phase=state.phase if state else None,
        current_iteration=state.iteration if state else 0,
        max_iterations=recipe.max_iterations,
        error=state.error if state else None,
        weights=None,
        evaluation=None,
    )


def _eval_stage(chain: Chain, number: int) -> StageItem:
    found = chain.record.stages[number].evaluation
    phase: Phase | None = "failed" if found and found.error else None
    is_complete = chain.is_complete(number)
    return StageItem(
        number=number + 1,
        training_type="eval",
        dataset=None,
        name=None,
        training_id=None,
        phase="completed" if is_complete else phase,
        current_iteration=0,
        max_iterations=0,
        error=found.error if found else None,
        weights=found.weights if found else None,
        evaluation=found.result if found and is_complete else None,
    )
