"""Which models this machine has, and their end."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from forgellm.catalog import ListedModel, list_models
from forgellm.catalog.remove import remove_model
from forgellm.envelope import JsonRoute
from forgellm.paths import Workspace
from forgellm.publishing.family import family
from forgellm.runs.lineage import models_in_use
from forgellm.schema.family import FamilyReply
from forgellm.schema.files import LocalModel, ModelRemovedReply, ModelsReply, TrainedModel

ModelName = Annotated[
    str, Path(max_length=1000, description="As it is listed, such as `base/my-model`.")
]


def make_router(workspace: Workspace) -> APIRouter:
    router = APIRouter(prefix="/api", route_class=JsonRoute)

    @router.get("/models")
    def models() -> ModelsReply:
        """Models to start from, runs with checkpoints, and published models, newest first."""
        found = list_models(workspace)
        return ModelsReply(
            cached_models=[_local(model) for model in found if model.kind in ("cached", "base")],
            cpt_models=[_trained(model) for model in found if model.kind == "cpt"],
            ift_models=[_trained(model) for model in found if model.kind == "ift"],
            dpo_models=[_trained(model) for model in found if model.kind == "dpo"],
            orpo_models=[_trained(model) for model in found if model.kind == "orpo"],
            published_models=[_trained(model) for model in found if model.kind == "published"],
        )

    @router.get("/models/tree")
    def tree() -> FamilyReply:
        """What was made from what, with the commands that would make it again."""
        return FamilyReply(members=family(workspace))

    @router.delete("/models/{name:path}")
    def remove(name: ModelName) -> ModelRemovedReply:
        """Delete a base, downloaded or published model for good."""
        freed = remove_model(name, workspace, models_in_use(workspace))
        return ModelRemovedReply(
            message="Model deleted", model_name=name, freed_mb=round(freed / 1e6, 3)
        )

    return router


def _local(model: ListedModel) -> LocalModel:
    return LocalModel(
        name=model.name,
        type=model.type or "base",
        size_gb=model.size_gb,
        path=model.path,
        created_at=model.created_at,
    )


def _trained(model: ListedModel) -> TrainedModel:
    return TrainedModel(
        name=model.name,
        path=model.path or model.name,
        size_gb=model.size_gb,
        created_at=model.created_at,
        type=model.type,
    )
