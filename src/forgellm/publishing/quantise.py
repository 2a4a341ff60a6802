"""A model in `models/published/` whose weights take 4 or 8 bits."""

from __future__ import annotations

from collections.abc import Callable

from forgellm.catalog import ModelFolder, find_model
from forgellm.child import OnProgress
from forgellm.errors import Conflict, InvalidRequest
from forgellm.paths import Workspace
from forgellm.publishing.artefact import make
from forgellm.publishing.exports import plain_name
from forgellm.schema.quantising import QuantisedModel, QuantiseRequest


def quantise_model(
    request: QuantiseRequest,
    workspace: Workspace,
    on_progress: OnProgress = lambda fraction, text: None,
    on_start: Callable[[Callable[[], None]], None] = lambda stop: None,
) -> QuantisedModel:
    """Round the weights, compare with the model and move into place, whole or not at all.

    `on_start` is called with a function that ends the work, for use by another thread.
    Raises ModelNotFound, UnsupportedModel, InvalidRequest, Conflict, DiskTooSmall, ForgeError.
    """
    find_quantisable(request, workspace)
    made = make("quantise", request.model_dump(), workspace, on_progress, on_start)
    return QuantisedModel.model_validate(made)


def find_quantisable(request: QuantiseRequest, workspace: Workspace) -> tuple[ModelFolder, str]:
    """The model, and the name of the folder to be made in `models/published/`.

    Raises ModelNotFound, UnsupportedModel, InvalidRequest, Conflict.
    """
    model = find_model(request.model_name, workspace)
    if model.facts.quantization is not None:
        raise InvalidRequest(
            f"The model is quantised already ({model.facts.quantization})",
            suggestion="Quantise the plain model that it was made of.",
        )
    name = f"{plain_name(model)}-{request.bits}bit-g{request.group_size}"
    if (workspace.published_models / name).exists():
        raise Conflict(
            f"models/published/{name} is there already",
            suggestion=f"Remove it first: forgellm models remove published/{name}",
        )
    return model, name
