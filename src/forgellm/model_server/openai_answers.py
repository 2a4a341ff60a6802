"""What the OpenAI-compatible routes have the model do: several answers in one turn, scored or not."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace

from forgellm.data.chat.turn_ends import stop_ids
from forgellm.data.tokenizer import Tokenizer
from forgellm.errors import InvalidRequest
from forgellm.generation.prompt import build_prompt, require_room, stops_of
from forgellm.generation.session import (
    CANCELLED,
    Done,
    TextStream,
    answer,
)
from forgellm.model_server.loading import LoadedModel
from forgellm.model_server.token_scores import NamedScore, TokenNames
from forgellm.model_server.turns import Work
from forgellm.schema.answers import FinishReason
from forgellm.schema.generation import Message, Sampling
from forgellm.schema.openai import ChatCompletionRequest, CompletionRequest, Usage

_TO_THE_END = 1_000_000  # more than any context holds


@dataclass(frozen=True)
class Piece:
    """What came next in one choice. The last piece of each has the finish reason."""

    index: int
    text: str = ""
    scores: tuple[NamedScore, ...] = ()
    finish_reason: FinishReason | None = None


@dataclass(frozen=True)
class _Prompt:
    ids: list[int]
    text: str


@dataclass(frozen=True)
class _Task:
    """Answers to make, each `n` times.

    Attributes:
        sampling: None where nothing is to be generated.
        num_top: None where no scores are asked for.
        scores_end: whether the token that ends an answer is among its scores.
    """

    prompts: list[_Prompt]
    n: int
    sampling: Sampling | None
    stop: tuple[str, ...]
    num_top: int | None
    echo: bool
    scores_end: bool


def if_cancelled(num_choices: int) -> list[Piece | Usage]:
    """The items of a request that was cancelled before its turn."""
    pieces = [Piece(index, finish_reason="cancelled") for index in range(num_choices)]
    return [*pieces, Usage(prompt_tokens=0, completion_tokens=0, total_tokens=0)]


def prepare_chat(model: LoadedModel, request: ChatCompletionRequest) -> Work[Piece | Usage]:
    """Raises InvalidRequest where the chat template or the context refuses the messages."""
    *history, last = [
        Message(role="system" if turn.role == "developer" else turn.role, content=turn.text)
        for turn in request.messages
    ]
    ids = build_prompt(model.tokenizer, last.content, history, is_base_model=None)
    require_room(ids, model.engine.info.context_length)
    max_tokens = request.max_completion_tokens or request.max_tokens or _TO_THE_END
    return _work(
        _Task(
            prompts=[_Prompt(ids, "")],
            n=request.num_choices,
            sampling=_sampling(request, max_tokens),
            stop=(*request.stops, *stops_of(model.tokenizer)),
            num_top=(request.top_logprobs or 0) if request.logprobs else None,
            echo=False,
            scores_end=False,
        )
    )


def prepare_completion(model: LoadedModel, request: CompletionRequest) -> Work[Piece | Usage]:
    """Raises InvalidRequest where a prompt is empty, too long, or has ids the model lacks."""
    prompts = [_read_prompt(model.tokenizer, prompt) for prompt in _prompts_of(request)]
    max_tokens = 16 if request.max_tokens is None else request.max_tokens
    for prompt in prompts:
        # A prompt that is only scored may fill the context.
        require_room(prompt.ids, model.engine.info.context_length + (max_tokens == 0))
    return _work(
        _Task(
            prompts=prompts,
            n=request.num_choices,
            sampling=_sampling(request, max_tokens) if max_tokens else None,
            stop=request.stops,
            num_top=request.logprobs,
            echo=bool(request.echo),
            scores_end=True,
        )
    )


def num_prompts(request: CompletionRequest) -> int:
    return len(_prompts_of(request))


def _prompts_of(request: CompletionRequest) -> list[str] | list[list[int]]:
    prompt = request.prompt
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt[0], int):
        return [prompt]
    return prompt


def _read_prompt(tokenizer: Tokenizer, prompt: str | list[int]) -> _Prompt:
    if isinstance(prompt, str):
        return _Prompt(build_prompt(tokenizer, prompt, [], is_base_model=True), prompt)
    if max(prompt) >= tokenizer.vocab_size:
        message = f"the model's token ids end at {tokenizer.vocab_size - 1}"
        problem = {"field": "prompt", "message": message}
        raise InvalidRequest(f"prompt: {message}", details={"problems": [problem]})
    return _Prompt(prompt, tokenizer.decode(prompt))


def _sampling(request: ChatCompletionRequest | CompletionRequest, max_tokens: int) -> Sampling:
    return Sampling(
        max_tokens=max_tokens,
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
        repetition_penalty=request.repetition_penalty or 1.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        presence_penalty=request.presence_penalty or 0.0,
        seed=None if request.seed is None else request.seed % 2**31,
    )


def _work(task: _Task) -> Work[Piece | Usage]:
    def work(model: LoadedModel, is_cancelled: Callable[[], bool]) -> Generator[Piece | Usage]:
        names, num_generated = TokenNames(model.tokenizer), 0
        for number, prompt in enumerate(task.prompts):
            for repeat in range(task.n):
                choice = _Choice(model, names, task, prompt, number * task.n + repeat)
                num_generated += yield from choice.make(repeat, is_cancelled)
        num_prompt = sum(len(prompt.ids) for prompt in task.prompts)
        yield Usage(
            prompt_tokens=num_prompt,
            completion_tokens=num_generated,
            total_tokens=num_prompt + num_generated,
        )

    return work


class _Choice:
    """One answer in the making."""

    def __init__(
        self, model: LoadedModel, names: TokenNames, task: _Task, prompt: _Prompt, index: int
    ) -> None:
        self._model = model
        self._names = names
        self._task = task
        self._prompt = prompt
        self._index = index

    def make(self, repeat: int, is_cancelled: Callable[[], bool]) -> Generator[Piece, None, int]:
        """Yields the pieces; returns the number of tokens generated."""
        if is_cancelled():
            yield Piece(self._index, finish_reason="cancelled")
            return 0
        if self._task.echo:
            yield self._echo()
        done = CANCELLED if is_cancelled() else (yield from self._answer(repeat, is_cancelled))
        yield Piece(self._index, finish_reason=done.finish_reason)
        return done.tokens_generated

    def _answer(
        self, repeat: int, is_cancelled: Callable[[], bool]
    ) -> Generator[Piece, None, Done]:
        task, engine, tokenizer = self._task, self._model.engine, self._model.tokenizer
        if task.sampling is None:
            return replace(CANCELLED, finish_reason="length")
        start = len(self._prompt.text) if task.echo else 0
        ends = stop_ids(tokenizer)
        items = answer(
            engine,
            tokenizer,
            self._prompt.ids,
            _reseeded(task.sampling, repeat),
            stop=task.stop,
            num_top=task.num_top,
            is_cancelled=is_cancelled,
        )
        for item in items:
            if isinstance(item, Done):
                return item
            scores = tuple(
                self._names.score(start + score.offset, score.token)
                for score in item.scores
                if task.scores_end or score.token.token_id not in ends
            )
            if item.text or scores:
                yield Piece(self._index, item.text, scores)
        raise AssertionError("an answer ends with Done")

    def _echo(self) -> Piece:
        """The prompt, with the scores of its tokens where they are asked for."""
        ids, num_top = self._prompt.ids, self._task.num_top
        if num_top is None:
            return Piece(self._index, self._prompt.text)
        found = self._model.engine.score(ids, num_top)
        text, offsets = TextStream(self._model.tokenizer), []
        for token_id in ids:
            offsets.append(len(text.emitted))
            text.add(token_id)
        first = NamedScore(0, self._names.text(ids[0]), None, ())
        rest = (
            self._names.score(offset, token)
            for offset, token in zip(offsets[1:], found, strict=True)
        )
        return Piece(self._index, self._prompt.text, (first, *rest))


def _reseeded(sampling: Sampling, repeat: int) -> Sampling:
    """The first of several answers is the one that the seed alone gives; the others differ."""
    if sampling.seed is None or repeat == 0:
        return sampling
    return sampling.model_copy(update={"seed": (sampling.seed + repeat) % 2**31})
