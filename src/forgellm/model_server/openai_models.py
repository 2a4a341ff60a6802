"""Models as the OpenAI-compatible routes name them, and the way from a name to a loaded model."""

from __future__ import annotations

import asyncio
from datetime import datetime

from forgellm.catalog.find import find_model
from forgellm.catalog.listing import list_models
from forgellm.errors import CheckpointNotFound, ModelNotFound, PathNotFound
from forgellm.generation.loading import Source, base_model_of, find_source, find_weights
from forgellm.model_server.shelf import Shelf
from forgellm.model_server.slot import Slot
from forgellm.paths import Workspace
from forgellm.schema.generation import LoadRequest
from forgellm.schema.openai import Model


def known_models(shelf: Shelf) -> list[Model]:
    """The models that are loaded or loading, the latest first, then what the catalog finds."""
    models = []
    for slot, source in shelf.slots:
        files = source.adapter or source.model
        created = int(files.stat().st_mtime) if files.exists() else 0
        models.append(Model(id=id_of(slot.request, source, shelf.workspace), created=created))
    for listed in list_models(shelf.workspace):
        name = listed.path or listed.name
        if all(model.id != name for model in models):
            created = int(datetime.fromisoformat(listed.created_at).timestamp())
            models.append(Model(id=name, created=created))
    return models


async def slot_named(shelf: Shelf, name: str, may_replace: bool) -> Slot | None:
    """The slot of the model of that name, loaded in place of all others if need be; None if that
    may not be.

    Raises ModelNotFound (and leaves the loaded models alone) or UnsupportedModel.
    """
    return await asyncio.to_thread(_load_if_needed, shelf, name, may_replace)


def _load_if_needed(shelf: Shelf, name: str, may_replace: bool) -> Slot | None:
    held = shelf.slots
    for slot, source in held:
        if name == id_of(slot.request, source, shelf.workspace):
            return slot
    request = _load_request(name, shelf.workspace)
    wanted = find_source(request, shelf.workspace)
    for slot, source in held:
        if (source.model, source.adapter) == (wanted.model, wanted.adapter):
            return slot
    return shelf.load(request) if may_replace else None


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


def id_of(request: LoadRequest, source: Source, workspace: Workspace) -> str:
    """What these files are called below `/v1`."""
    if request.adapter_path:
        name = request.adapter_path.removeprefix("./").rstrip("/")
    else:
        try:
            name = workspace.relative(source.model)
        except PathNotFound:  # in the hub cache, or a folder the user of the machine named
            name = request.model_name
    return name.removeprefix(f"{workspace.models.name}/")
