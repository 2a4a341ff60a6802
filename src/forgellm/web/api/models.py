"""Which models this machine has."""

from __future__ import annotations

from fastapi import APIRouter

from forgellm.catalog import ListedModel, list_models
from forgellm.paths import Workspace
from forgellm.schema.files import LocalModel, ModelsReply, TrainedModel


def make_router(workspace: Workspace) -> APIRouter:
    router = APIRouter(prefix="/api")

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
