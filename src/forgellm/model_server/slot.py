"""One place for a model: loading, ready, failed or given up, and the turns of those who ask it."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from forgellm.errors import ForgeError, ModelNotLoaded, Unavailable
from forgellm.generation.loading import Source
from forgellm.model_server.loading import LoadedModel
from forgellm.runs.checkpoints import iteration_of
from forgellm.schema.generation import LoadRequest

LOAD_TIMEOUT_SECONDS = 600.0


@dataclass(eq=False)
class Line:
    """Those who wait for a model, and how many it answers. For `Turns` alone, in the event loop."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    num_running: int = 0
    one_ended: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(eq=False)
class Slot:
    """One request to load and what became of it.

    Attributes:
        finished: resolved when there is a model or an error, or the slot was given up.
        is_given_up: its model was unloaded, or others took its place.
    """

    request: LoadRequest
    allow_absolute: bool = False
    source: Source | None = None
    model: LoadedModel | None = None
    error: ForgeError | None = None
    is_given_up: bool = False
    finished: Future[None] = field(default_factory=Future)
    line: Line = field(default_factory=Line)

    @property
    def name(self) -> tuple[str, str | None]:
        return self.request.model_name, self.request.adapter_path

    async def wait_ready(self, timeout: float = LOAD_TIMEOUT_SECONDS) -> LoadedModel | None:
        """The model, once it is loaded; None where it was given up.

        Raises ModelNotLoaded after a load that failed, and Unavailable after `timeout` seconds.
        """
        try:
            async with asyncio.timeout(timeout):
                # Shielded: who waits may go away, the load goes on.
                await asyncio.shield(asyncio.wrap_future(self.finished))
        except TimeoutError:
            raise Unavailable(
                f"The model is still loading after {timeout:.0f} seconds",
                suggestion="Watch GET /api/model/status and try again when it is loaded.",
            ) from None
        if self.error is not None and not self.is_given_up:
            raise ModelNotLoaded(
                f"The last load failed: {self.error.message}",
                details={"load_error": self.error.to_dict()},
                suggestion=self.error.suggestion,
            )
        return self.model

    def status(self) -> dict[str, Any]:
        """The fields of the spec's status for this model, and `error` of a load that failed."""
        model, adapter = self.model, self.source.adapter if self.source else None
        return {
            "loaded": model is not None,
            "is_loading": not self.finished.done(),
            "model_name": self.request.model_name,
            "adapter_path": self.request.adapter_path,
            "iteration": iteration_of(adapter) if adapter else None,
            "model_type": model.model_type if model else None,
            "memory_usage_gb": round(model.engine.memory_bytes() / 1e9, 4) if model else None,
            "context_length": model.engine.info.context_length if model else None,
            "error": self.error.to_dict() if self.error else None,
        }
