"""The models of this process behind the routes: the shelf holds them, turns are taken at them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any

from starlette.responses import Response

from forgellm.data.chat.turn_ends import stop_ids
from forgellm.generation.prompt import build_prompt, require_room, stops_of
from forgellm.generation.session import CANCELLED, Done, Token, answer
from forgellm.model_server.backend import ScoredText
from forgellm.model_server.loading import LoadedModel
from forgellm.model_server.local_openai import chat_reply, completion_reply
from forgellm.model_server.openai_models import known_models
from forgellm.model_server.shelf import Shelf
from forgellm.model_server.slot import Slot
from forgellm.model_server.token_scores import NamedScore, TokenNames
from forgellm.model_server.turns import AnswerStream, Turns, Wanted, Work
from forgellm.schema.generation import GenerateRequest, LoadRequest
from forgellm.schema.openai import ChatCompletionRequest, CompletionRequest, Model


class LocalModels:
    """A Backend. Belongs to one event loop."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._turns = Turns()

    async def check(self) -> None:
        pass

    async def load(self, request: LoadRequest) -> None:
        await asyncio.to_thread(self._shelf.load, request)

    async def unload(self, model_name: str | None, adapter_path: str | None) -> None:
        await asyncio.to_thread(self._shelf.unload, model_name, adapter_path)

    async def status(self) -> dict[str, Any]:
        return await asyncio.to_thread(self._shelf.status)

    async def generate(
        self, request: GenerateRequest, request_id: str
    ) -> AnswerStream[ScoredText | Done]:
        return await self._turns.start(
            request_id,
            _wanted(self._shelf, request),
            lambda model: _prepare(model, request),
            [CANCELLED],
        )

    def cancel(self, request_id: str | None) -> list[str]:
        return self._turns.cancel(request_id)

    async def models(self) -> list[Model]:
        return await asyncio.to_thread(known_models, self._shelf)

    async def complete(self, request: CompletionRequest) -> Response:
        return await completion_reply(self._shelf, self._turns, request)

    async def chat(self, request: ChatCompletionRequest) -> Response:
        return await chat_reply(self._shelf, self._turns, request)

    async def aclose(self) -> None:
        pass


def _wanted(shelf: Shelf, request: GenerateRequest) -> Wanted:
    async def choose(may_replace: bool) -> Slot:
        if request.model_name is None:
            return shelf.latest()
        return await asyncio.to_thread(shelf.named, request.model_name, request.adapter_path)

    return Wanted(choose, is_latest=request.model_name is None)


def _prepare(model: LoadedModel, request: GenerateRequest) -> Work[ScoredText | Done]:
    ids = build_prompt(
        model.tokenizer, request.prompt, request.history, is_base_model=request.is_base_model
    )
    require_room(ids, model.engine.info.context_length)

    def work(model: LoadedModel, is_cancelled: Callable[[], bool]) -> Generator[ScoredText | Done]:
        names = None if request.top_logprobs is None else TokenNames(model.tokenizer)
        items = answer(
            model.engine,
            model.tokenizer,
            ids,
            request,
            stop=stops_of(model.tokenizer, is_base_model=request.is_base_model),
            num_top=request.top_logprobs,
            is_cancelled=is_cancelled,
        )
        with closing(items):
            for item in items:
                yield (
                    item
                    if isinstance(item, Done)
                    else _named(item, names, stop_ids(model.tokenizer))
                )

    return work


def _named(token: Token, names: TokenNames | None, ends: frozenset[int]) -> ScoredText:
    """The scores are those of the text, so the token that ends an answer is left out."""
    if names is None:
        return ScoredText(token.text)
    found = [score for score in token.scores if score.token.token_id not in ends]
    return ScoredText(
        token.text, [_score_item(names.score(score.offset, score.token)) for score in found]
    )


def _score_item(score: NamedScore) -> dict[str, Any]:
    top = [{"token": token, "log_prob": log_prob} for token, log_prob in score.top]
    return {"token": score.text, "log_prob": score.log_prob, "top": top}
