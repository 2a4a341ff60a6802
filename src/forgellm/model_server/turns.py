"""One answer at a time, first come, first served, each in a thread of its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from threading import Event, Thread

from forgellm.errors import ForgeError, ModelNotLoaded, Unavailable
from forgellm.generation.prompt import build_prompt, require_room
from forgellm.generation.session import Done, Token, answer
from forgellm.model_server.loading import LoadedModel, detached
from forgellm.model_server.slot import Slot
from forgellm.schema.generation import GenerateRequest

_log = logging.getLogger(__name__)
MAX_WAITING = 64

Item = Token | Done | ForgeError


class Turns:
    """Who may use the model. Belongs to one event loop."""

    def __init__(self, max_waiting: int = MAX_WAITING) -> None:
        self._max_waiting = max_waiting
        self._num_waiting = 0
        self._lock = asyncio.Lock()

    async def take(self) -> None:
        """Wait for the turn. Raises Unavailable when too many wait already."""
        if self._num_waiting >= self._max_waiting:
            raise Unavailable(
                f"{self._num_waiting} requests are waiting for the model already",
                suggestion="Try again in a few seconds.",
            )
        self._num_waiting += 1
        try:
            await self._lock.acquire()
        finally:
            self._num_waiting -= 1

    def give_back(self) -> None:
        self._lock.release()


async def start_answer(slot: Slot, turns: Turns, request: GenerateRequest) -> AnswerStream:
    """The answer, once the model is loaded and free and has accepted the prompt.

    Raises ModelNotLoaded, Unavailable or InvalidRequest.
    """
    slot.require_load()
    await turns.take()
    try:
        model = await slot.wait_ready()
        prompt_ids = await asyncio.to_thread(_prompt_ids, model, request)
    except BaseException:
        turns.give_back()
        raise
    return AnswerStream(model, prompt_ids, request, turns.give_back)


def _prompt_ids(model: LoadedModel, request: GenerateRequest) -> list[int]:
    ids = build_prompt(
        model.tokenizer, request.prompt, request.history, is_base_model=request.is_base_model
    )
    require_room(ids, model.engine.info.context_length)
    return ids


class AnswerStream:
    """An answer as it is made, in a thread; closing it ends the work within a token.

    `on_end` is called in the event loop when the thread has let go of the model.
    """

    def __init__(
        self,
        model: LoadedModel,
        prompt_ids: list[int],
        request: GenerateRequest,
        on_end: Callable[[], None],
    ) -> None:
        self._items: asyncio.Queue[Item | None] = asyncio.Queue()
        self._closed = Event()
        self._loop = asyncio.get_running_loop()
        self._on_end = on_end
        Thread(
            target=self._run, args=(model, prompt_ids, request), daemon=True, name="answer"
        ).start()

    async def __aiter__(self) -> AsyncIterator[Token | Done]:
        """Tokens with text, then Done. Raises the ForgeError that ended the answer."""
        try:
            while (item := await self._items.get()) is not None:
                if isinstance(item, ForgeError):
                    raise item
                yield item
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        self._closed.set()

    def _run(self, model: LoadedModel, prompt_ids: list[int], request: GenerateRequest) -> None:
        try:
            with model.in_use:
                self._answer(model, prompt_ids, request)
        except ForgeError as error:
            self._put(detached(error))
        except Exception:
            _log.exception("an answer failed")
            self._put(ForgeError("The model failed while it answered"))
        finally:
            del model
            self._put(None)
            self._call(self._on_end)

    def _answer(self, model: LoadedModel, prompt_ids: list[int], request: GenerateRequest) -> None:
        with closing(answer(model.engine, model.tokenizer, prompt_ids, request)) as items:
            for item in items:
                if self._closed.is_set():
                    return
                if model.retired.is_set():
                    raise ModelNotLoaded("The model was unloaded while it answered")
                if isinstance(item, Done) or item.text:
                    self._put(item)

    def _put(self, item: Item | None) -> None:
        self._call(self._items.put_nowait, item)

    def _call(self, function: Callable[..., None], *args: Item | None) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:  # the server has ended, and with it everyone who waits
            self._closed.set()
