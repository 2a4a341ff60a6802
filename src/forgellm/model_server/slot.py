"""The one place for a model: empty, loading, ready or failed."""

from __future__ import annotations

import asyncio
import gc
import logging
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Lock, RLock, Thread
from typing import Any

from forgellm.errors import CheckpointNotFound, ForgeError, ModelNotLoaded, Unavailable
from forgellm.generation.loading import Source, find_source
from forgellm.model_server.loading import LoadedModel, Opener, Users, detached, open_model
from forgellm.paths import Workspace
from forgellm.schema.generation import LoadRequest

_log = logging.getLogger(__name__)
LOAD_TIMEOUT_SECONDS = 600.0


@dataclass(eq=False)
class _Load:
    """One request and what became of it. `finished` is resolved when there is a model or an error."""

    request: LoadRequest
    allow_absolute: bool = False
    source: Source | None = None
    model: LoadedModel | None = None
    error: ForgeError | None = None
    finished: Future[None] = field(default_factory=Future)


class Slot:
    """Holds at most one model. Loading runs in a thread; the last request wins.

    The old weights are given up before new ones are read, so that memory holds one model, and a
    load that fails leaves no model rather than the old one under a new name.
    """

    def __init__(self, workspace: Workspace, open_model: Opener = open_model) -> None:
        self._workspace = workspace
        self._open_model = open_model
        self._current: _Load | None = None
        self._lock = RLock()  # guards _current and its model
        self._one_load = Lock()  # held by the thread that reads weights

    @property
    def workspace(self) -> Workspace:
        return self._workspace

    def current(self) -> tuple[LoadRequest, Source] | None:
        """What is loaded or loading, unless that failed."""
        load = self._current
        if load is None or load.source is None or load.error:
            return None
        return load.request, load.source

    def load(self, request: LoadRequest, *, allow_absolute: bool = False) -> None:
        """Start loading and return. What is loaded or loading already stays.

        Raises at once what is clear without reading weights, such as ModelNotFound.
        """
        load = _Load(request, allow_absolute)
        try:
            load.source = self._find(load)
        except ForgeError as error:
            load.error = error
            load.finished.set_result(None)
            self._replace(load)
            raise
        with self._lock:
            current = self._current
            if current and current.source == load.source and not current.error:
                return
            old_users = self._replace(load)
        Thread(target=self._run, args=(load, old_users), daemon=True, name="load-model").start()

    def unload(self) -> None:
        """Give up the model, or the load in progress. Running answers end within a token."""
        _wait_until_free(self._replace(None))

    async def wait_ready(self, timeout: float = LOAD_TIMEOUT_SECONDS) -> LoadedModel:
        """The model, after the load in progress. Raises ModelNotLoaded when there is none."""
        try:
            async with asyncio.timeout(timeout):
                while (load := self._current) is not None:
                    # Shielded: who waits may go away, the load goes on.
                    await asyncio.shield(asyncio.wrap_future(load.finished))
                    if load is self._current:
                        return _model_of(load)
        except TimeoutError:
            raise Unavailable(
                f"The model is still loading after {timeout:.0f} seconds",
                suggestion="Watch GET /api/model/status and try again when it is loaded.",
            ) from None
        raise ModelNotLoaded("No model is loaded")

    def require_load(self) -> None:
        """Raises ModelNotLoaded unless a model is there or on its way."""
        load = self._current
        if load is None:
            raise ModelNotLoaded("No model is loaded")
        if load.error:
            _model_of(load)

    def status(self) -> dict[str, Any]:
        """The spec's status fields, and `error` with the envelope of a load that failed."""
        load = self._current
        model = load.model if load else None
        return {
            "loaded": model is not None,
            "is_loading": load is not None and not load.finished.done(),
            "model_name": load.request.model_name if load else None,
            "adapter_path": load.request.adapter_path if load else None,
            "model_type": model.model_type if model else None,
            "memory_usage_gb": round(model.engine.memory_bytes() / 1e9, 4) if model else None,
            "error": load.error.to_dict() if load and load.error else None,
        }

    def _replace(self, load: _Load | None) -> Users | None:
        """Make `load` the current one and let go of the model held so far; returns its users."""
        with self._lock:
            old, self._current = self._current, load
            model = old.model if old else None
            if old is None or model is None:
                return None
            old.model = None
            model.retired.set()
            return model.users

    def _run(self, load: _Load, old_users: Users | None) -> None:
        with self._one_load:
            _wait_until_free(old_users)
            if load is self._current:
                self._open(load)
        load.finished.set_result(None)

    def _find(self, load: _Load) -> Source:
        return find_source(load.request, self._workspace, allow_absolute=load.allow_absolute)

    def _read(self, load: _Load) -> LoadedModel:
        assert load.source is not None
        try:
            return self._open_model(load.source)
        except CheckpointNotFound:  # pruned since by its run, which has a better one now
            load.source = self._find(load)
            return self._open_model(load.source)

    def _open(self, load: _Load) -> None:
        try:
            model = self._read(load)
        except ForgeError as error:
            load.error = detached(error)
        except Exception:
            _log.exception("loading %s failed", load.request.model_name)
            load.error = ForgeError(
                "The model could not be loaded",
                suggestion="The model server's log has the reason.",
            )
        else:
            with self._lock:
                if load is self._current:
                    load.model = model


def _wait_until_free(users: Users | None) -> None:
    if users is not None:
        users.wait_until_none()
        gc.collect()


def _model_of(load: _Load) -> LoadedModel:
    if load.error is not None:
        raise ModelNotLoaded(
            f"The last load failed: {load.error.message}",
            details={"load_error": load.error.to_dict()},
            suggestion=load.error.suggestion,
        )
    if load.model is None:
        raise ModelNotLoaded("The model was unloaded")
    return load.model
