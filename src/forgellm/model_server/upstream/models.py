"""Which of the upstream's models answers here, and by what names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from forgellm.errors import InvalidRequest, ModelNotFound, ModelNotLoaded
from forgellm.model_server.backend import status_of
from forgellm.model_server.upstream.client import Listed
from forgellm.schema.generation import LoadRequest
from forgellm.schema.openai import Model

_NUM_SHOWN = 20


@dataclass(frozen=True)
class Named:
    """A model of the upstream and the names that it is loaded by here.

    Attributes:
        id: what the upstream calls it.
        model_type: None where the upstream does not say, and decides itself.
    """

    id: str
    model_name: str
    adapter_path: str | None = None
    model_type: Literal["base", "instruct"] | None = None


class Choice:
    """The models that are loaded, as far as this server is concerned: nothing is read for it.

    Before the first load that is the last of those that `known` says, or the upstream's first.
    """

    def __init__(self, known: Sequence[Named] = ()) -> None:
        self._known = known
        self._held: tuple[Named, ...] | None = tuple(known[-1:]) or None

    def load(self, request: LoadRequest, listed: Sequence[Listed]) -> None:
        """Raises ModelNotFound, InvalidRequest."""
        chosen = self._find(request, {model.id for model in listed})
        others = [held for held in self.held(listed) if held != chosen] if request.beside else []
        self._held = (*others, chosen)

    def unload(
        self, model_name: str | None, adapter_path: str | None, listed: Sequence[Listed]
    ) -> None:
        """Raises ModelNotLoaded."""
        held = self.held(listed)
        leaving = held if model_name is None else (self.named(model_name, adapter_path, listed),)
        self._held = tuple(model for model in held if model not in leaving)

    def held(self, listed: Sequence[Listed]) -> tuple[Named, ...]:
        """The last one is that which answers when none is named."""
        if self._held is not None:
            return self._held
        return tuple(Named(model.id, model.id) for model in listed[:1])

    def named(
        self, model_name: str | None, adapter_path: str | None, listed: Sequence[Listed]
    ) -> Named:
        """Raises ModelNotLoaded."""
        held = self.held(listed)
        if model_name is None and held:
            return held[-1]
        for model in held:
            if (model.model_name, model.adapter_path) == (model_name, adapter_path):
                return model
        if model_name is None:
            raise ModelNotLoaded("No model is loaded")
        raise ModelNotLoaded(
            "This model is not loaded",
            details={
                "model_name": model_name,
                "adapter_path": adapter_path,
                "loaded": [
                    {"model_name": model.model_name, "adapter_path": model.adapter_path}
                    for model in held
                ],
            },
        )

    def status(self, listed: Sequence[Listed]) -> dict[str, Any]:
        """As `Shelf.status`, and the ids of all that can be loaded."""
        lengths = {model.id: model.context_length for model in listed}
        models = [_status(held, lengths) for held in self.held(listed)]
        return status_of(models) | {"upstream_models": list(lengths)}

    def in_order(self, listed: Sequence[Listed]) -> list[Model]:
        """What is loaded, the latest first, then the others."""
        order = [held.id for held in reversed(self.held(listed))]
        return [
            Model(id=model.id, created=model.created, owned_by=model.owned_by)
            for model in sorted(
                listed, key=lambda model: order.index(model.id) if model.id in order else len(order)
            )
        ]

    def _find(self, request: LoadRequest, ids: set[str]) -> Named:
        names = request.model_name, request.adapter_path
        for model in self._known:
            if (model.model_name, model.adapter_path) == names and model.id in ids:
                return model
        if (request.engine, request.dtype, request.kv_bits) != ("auto", "auto", None):
            raise InvalidRequest(
                "How its models compute is for the upstream to decide",
                suggestion="Load without engine, dtype and kv_bits.",
            )
        found = next((name for name in _ids_of(request) if name in ids), None)
        if found is not None:
            known = next((model for model in self._known if model.id == found), None)
            return Named(found, *names, known.model_type if known else None)
        if request.adapter_path is not None:
            raise InvalidRequest(
                "The upstream does not serve this checkpoint, and cannot be given it from here",
                suggestion="Publish it and serve it there, or load it in a model server"
                f" without --upstream. {_shown(ids)}",
                details={"adapter_path": request.adapter_path, "upstream_models": sorted(ids)},
            )
        raise ModelNotFound(
            request.model_name, [], suggestion=f"The upstream has no such model. {_shown(ids)}"
        )


def _status(held: Named, lengths: dict[str, int | None]) -> dict[str, Any]:
    is_there = held.id in lengths
    gone = ModelNotFound(held.model_name, [], suggestion="The upstream has it no more.")
    return {
        "loaded": is_there,
        "is_loading": False,
        "model_name": held.model_name,
        "adapter_path": held.adapter_path,
        "iteration": None,
        "model_type": held.model_type,
        "memory_usage_gb": None,
        "context_length": lengths.get(held.id),
        "error": None if is_there else gone.to_dict(),
    }


def _ids_of(request: LoadRequest) -> list[str]:
    """What a ForgeLLM elsewhere may call it: a run by its folder, a model with or without `base/`."""
    if request.adapter_path is not None:
        path = request.adapter_path.removeprefix("./").rstrip("/")
        return [path, path.removeprefix("models/")]
    name = request.model_name
    return [name, name.removeprefix("models/"), f"base/{name}"]


def _shown(ids: set[str]) -> str:
    if not ids:
        return "It serves none."
    names = sorted(ids)
    more = ", ..." if len(names) > _NUM_SHOWN else "."
    return f"It serves: {', '.join(names[:_NUM_SHOWN])}{more}"
