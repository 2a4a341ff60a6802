"""The models that the server holds: one, or where that is asked for several side by side."""

from __future__ import annotations

import gc
import logging
from threading import Lock, RLock, Thread
from typing import Any

from forgellm.engines.registry import release_freed_memory
from forgellm.errors import CheckpointNotFound, ForgeError, ModelNotLoaded
from forgellm.generation.loading import Source, find_source
from forgellm.model_server.backend import status_of
from forgellm.model_server.loading import LoadedModel, Opener, Users, detached, open_model
from forgellm.model_server.room import require_room_beside
from forgellm.model_server.slot import Slot
from forgellm.paths import Workspace
from forgellm.schema.generation import LoadRequest

_log = logging.getLogger(__name__)


class Shelf:
    """Holds models in slots, the one that was asked for last at the end.

    Loading runs in a thread, one model after another. Weights that are to leave are given up before
    new ones are read, and a load that fails leaves an error rather than another model's answers
    under its name.
    """

    def __init__(self, workspace: Workspace, open_model: Opener = open_model) -> None:
        self._workspace = workspace
        self._open_model = open_model
        self._slots: tuple[Slot, ...] = ()
        self._lock = RLock()  # guards _slots and their models
        self._one_load = Lock()  # held by the thread that reads weights

    @property
    def workspace(self) -> Workspace:
        return self._workspace

    @property
    def slots(self) -> list[tuple[Slot, Source]]:
        """What is loaded or loading with its files, the latest first; without what failed."""
        slots = reversed(self._slots)
        return [(slot, slot.source) for slot in slots if slot.source and not slot.error]

    def load(self, request: LoadRequest, *, allow_absolute: bool = False) -> Slot:
        """Start loading and return the slot. What is loaded or loading already is not read again.

        All else leaves, or with `beside` only what has the same name and what failed. Raises at once
        what is clear without reading weights, such as ModelNotFound and DoesNotFit.
        """
        slot = Slot(request, allow_absolute)
        try:
            slot.source = self._find(slot)
            self._require_room(slot, slot.source)
        except ForgeError as error:
            slot.error = error
            slot.finished.set_result(None)
            self._put(slot, request)
            raise
        with self._lock:
            there = self._with_files(slot.source)
            held = there or slot
            old_users = self._put(held, request)
        if there is None or old_users:
            args = (held, old_users)
            Thread(target=self._run, args=args, daemon=True, name="load-model").start()
        return held

    def unload(self, model_name: str | None = None, adapter_path: str | None = None) -> None:
        """Give up the model of that name, or all, and loads in progress too.

        Running answers end within a token. Raises ModelNotLoaded for a name that is not here.
        """
        leaving = self._slots if model_name is None else (self.named(model_name, adapter_path),)
        with self._lock:
            users = self._give_up(leaving)
        _wait_until_free(users)

    def latest(self) -> Slot:
        """What was asked for last. Raises ModelNotLoaded where there is nothing."""
        slots = self._slots
        if not slots:
            raise ModelNotLoaded("No model is loaded")
        return slots[-1]

    def named(self, model_name: str, adapter_path: str | None) -> Slot:
        """The slot of that name, as it was loaded by, or of the files that the name means.

        Raises ModelNotLoaded, with what is here.
        """
        for slot in reversed(self._slots):
            if slot.name == (model_name, adapter_path):
                return slot
        try:
            wanted = LoadRequest(model_name=model_name, adapter_path=adapter_path)
            source = find_source(wanted, self._workspace)
        except ForgeError:
            source = None
        for slot, files in self.slots:
            if source and (files.model, files.adapter) == (source.model, source.adapter):
                return slot
        here = [
            {"model_name": held.request.model_name, "adapter_path": held.request.adapter_path}
            for held in self._slots
            if not held.error
        ]
        raise ModelNotLoaded(
            "This model is not loaded",
            details={"model_name": model_name, "adapter_path": adapter_path, "loaded": here},
            suggestion='Load it with POST /api/model/load; "beside": true keeps the others.',
        )

    def status(self) -> dict[str, Any]:
        """As `status_of`."""
        return status_of([slot.status() for slot in self._slots])

    def _with_files(self, source: Source) -> Slot | None:
        return next((slot for slot, held in self.slots if held == source), None)

    def _leaving(self, slot: Slot, request: LoadRequest) -> tuple[Slot, ...]:
        others = [other for other in self._slots if other is not slot]
        if request.beside:
            name = request.model_name, request.adapter_path
            others = [other for other in others if other.error or other.name == name]
        return tuple(others)

    def _put(self, slot: Slot, request: LoadRequest) -> list[Users]:
        """Make `slot` the latest, as `request` asks for it; returns the users of what leaves."""
        with self._lock:
            users = self._give_up(self._leaving(slot, request))
            self._slots = (*(other for other in self._slots if other is not slot), slot)
            return users

    def _give_up(self, leaving: tuple[Slot, ...]) -> list[Users]:
        """Take them off the shelf and let go of their models; returns those models' users.

        To be called with the lock.
        """
        self._slots = tuple(slot for slot in self._slots if slot not in leaving)
        users = []
        for slot in leaving:
            slot.is_given_up = True
            model, slot.model = slot.model, None
            if model is not None:
                model.retired.set()
                users.append(model.users)
            if not slot.finished.done():
                slot.finished.set_result(None)
        return users

    def _require_room(self, slot: Slot, source: Source) -> None:
        """Raises DoesNotFit where a model beside others would take more memory than there is."""
        if not slot.request.beside or self._with_files(source) not in (None, slot):
            return
        leaving = self._leaving(slot, slot.request)
        if staying := [other for other in self._slots if other not in (slot, *leaving)]:
            require_room_beside(source, staying, leaving)

    def _run(self, slot: Slot, old_users: list[Users]) -> None:
        with self._one_load:
            _wait_until_free(old_users)
            if slot.finished.done():  # read already, or given up
                return
            self._open(slot)
            with self._lock:
                if not slot.finished.done():
                    slot.finished.set_result(None)

    def _find(self, slot: Slot) -> Source:
        return find_source(slot.request, self._workspace, allow_absolute=slot.allow_absolute)

    def _read(self, slot: Slot) -> LoadedModel:
        assert slot.source is not None
        # Once more: what was still loading when this was asked for is there now.
        self._require_room(slot, slot.source)
        try:
            return self._open_model(slot.source)
        except CheckpointNotFound:  # pruned since by its run, which has a better one now
            slot.source = self._find(slot)
            return self._open_model(slot.source)

    def _open(self, slot: Slot) -> None:
        try:
            model = self._read(slot)
        except ForgeError as error:
            slot.error = detached(error)
        except Exception:
            _log.exception("loading %s failed", slot.request.model_name)
            slot.error = ForgeError(
                "The model could not be loaded",
                suggestion="The model server's log has the reason.",
            )
        else:
            with self._lock:
                if not slot.is_given_up:
                    slot.model = model


def _wait_until_free(all_users: list[Users]) -> None:
    for users in all_users:
        users.wait_until_none()
    if all_users:
        gc.collect()
        release_freed_memory()
