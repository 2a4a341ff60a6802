"""Who answers behind the routes: models that this process holds, or an upstream."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.responses import Response

from forgellm.generation.session import Done
from forgellm.schema.generation import GenerateRequest, LoadRequest
from forgellm.schema.openai import ChatCompletionRequest, CompletionRequest, Model


@dataclass(frozen=True)
class ScoredText:
    """A piece of text; with scores, where asked for, of the tokens whose text has begun to appear."""

    text: str
    scores: list[dict[str, Any]] | None = None


_NOTHING: dict[str, Any] = {
    "loaded": False,
    "is_loading": False,
    "model_name": None,
    "adapter_path": None,
    "model_type": None,
    "memory_usage_gb": None,
    "error": None,
}


def status_of(models: list[dict[str, Any]]) -> dict[str, Any]:
    """The spec's status fields, those of the latest model, which is the last, and all of them in
    `models`."""
    latest = models[-1] if models else _NOTHING
    return {name: latest[name] for name in _NOTHING} | {"models": models}


class Answer(Protocol):
    """Pieces as they come, and last a Done. Raises the ForgeError that ended it."""

    def __aiter__(self) -> AsyncIterator[ScoredText | Done]: ...

    async def aclose(self) -> None: ...


class Backend(Protocol):
    """All but `aclose` raise ForgeError."""

    async def check(self) -> None:
        """Raises where requests would not be answered."""

    async def load(self, request: LoadRequest) -> None: ...

    async def unload(self, model_name: str | None, adapter_path: str | None) -> None: ...

    async def status(self) -> dict[str, Any]:
        """The fields of ModelStatusReply but for `success`."""

    async def generate(self, request: GenerateRequest, request_id: str) -> Answer:
        """The answer, once it has begun."""

    def cancel(self, request_id: str | None) -> list[str]:
        """Cancel one request, or all; the ids of those cancelled."""

    async def models(self) -> list[Model]:
        """What is loaded, the latest first, then what can be."""

    async def complete(self, request: CompletionRequest) -> Response:
        """OpenAI's reply, whole or as a stream."""

    async def chat(self, request: ChatCompletionRequest) -> Response: ...

    async def aclose(self) -> None: ...
