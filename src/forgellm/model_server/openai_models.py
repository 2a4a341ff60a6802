"""Models as the OpenAI-compatible routes name them, and the way from a name to a loaded model."""

from __future__ import annotations

import asyncio
from datetime import datetime

from forgellm.catalog.find import find_model
from forgellm.catalog.listing import list_models
from forgellm.errors import CheckpointNotFound, ModelNotFound, ModelNotLoaded, PathNotFound
from forgellm.generation.loading import Source, base_model_of, find_source, find_weights
from forgellm.model_server.loading import LoadedModel
from forgellm.model_server.slot import Slot
from forgellm.paths import Workspace
from forgellm.schema.generation import LoadRequest
from forgellm.schema.openai import Model


def known_models(slot: Slot) -> list[Model]:
    """The model that is loaded or loading, then what the catalog finds."""
    models = []
    if current := slot.current():
        request, source = current
        files = source.adapter or source.model
        created = int(files.stat().st_mtime) if files.exists() else 0
        models.append(Model(id=_id_of(request, source, slot.workspace), created=created))
    for listed in list_models(slot.workspace):
        name = listed.path or listed.name
        if all(model.id != name for model in models):
            created = int(datetime.fromisoformat(listed.created_at).timestamp())
            models.append(Model(id=name, created=created))
    return models


def known_model(slot: Slot, name: str) -> Model:
    """Raises ModelNotFound."""
    for model in known_models(slot):
        if model.id == name:
            return model
    raise ModelNotFound(name, [], suggestion="See GET /v1/models for those on this machine")


async def model_named(slot: Slot, name: str, may_replace: bool) -> LoadedModel | None:
    """The model of that name, loaded in place of another if need be; None if that may not be.

    Raises ModelNotFound (and leaves the loaded model alone), UnsupportedModel or ModelNotLoaded.
    """
    wanted = await asyncio.to_thread(_load_if_needed, slot, name, may_replace)
    if wanted is None:
        return None
    model = await slot.wait_ready()
    current = slot.current()
    if current is None or _files(current[1]) != _files(wanted):
        raise ModelNotLoaded("Another model was loaded meanwhile")
    return model


def _load_if_needed(slot: Slot, name: str, may_replace: bool) -> Source | None:
    current = slot.current()
    if current and name == _id_of(*current, slot.workspace):
        return current[1]
    request = _load_request(name, slot.workspace)
    source = find_source(request, slot.workspace)
    if current is None or _files(current[1]) != _files(source):
        if not may_replace:
            return None
        slot.load(request)
    return source


def _load_request(name: str, workspace: Workspace) -> LoadRequest:
    """A model by its name, or a run (`cpt/NAME`), which means its best checkpoint."""
    try:
        find_model(name, workspace)
    except ModelNotFound as not_found:
        try:
            weights = find_weights(f"models/{name}", workspace)
        except CheckpointNotFound:
            raise not_found from None
        base = base_model_of(weights, workspace)
        if base is None:
            raise
        return LoadRequest(model_name=base, adapter_path=f"models/{name}")
    return LoadRequest(model_name=name, adapter_path=None)


def _id_of(request: LoadRequest, source: Source, workspace: Workspace) -> str:
    if request.adapter_path:
        name = request.adapter_path.removeprefix("./").rstrip("/")
    else:
        try:
            name = workspace.relative(source.model)
        except PathNotFound:  # in the hub cache, or a folder the user of the machine named
            name = request.model_name
    return name.removeprefix(f"{workspace.models.name}/")


def _files(source: Source) -> tuple[object, ...]:
    return source.model, source.adapter
