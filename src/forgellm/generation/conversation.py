"""A conversation with a loaded model: what was said, and the figures of the session."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from time import perf_counter

from forgellm.data.tokenizer import Tokenizer
from forgellm.engines.base import GenerateEngine
from forgellm.generation.prompt import build_prompt, require_room, stops_of
from forgellm.generation.session import Done, Token, answer
from forgellm.schema.generation import Message, Sampling


@dataclass
class Conversation:
    """Each prompt is answered in the light of the turns before it.

    Attributes:
        is_base_model: true joins all turns as plain text; None lets the chat template decide.
        context_tokens: tokens of the conversation after the last answer, template included.
    """

    engine: GenerateEngine
    tokenizer: Tokenizer
    sampling: Sampling
    is_base_model: bool | None = None
    system: str | None = None
    turns: list[Message] = field(default_factory=list)
    context_tokens: int = 0
    num_answers: int = 0
    generated_tokens: int = 0
    generation_seconds: float = 0.0

    def ask(self, prompt: str) -> Generator[Token | Done]:
        """The answer as it is made. Closing the iterator stops it; what was said until then stays.

        Raises InvalidRequest at once where the template or the context's length refuses the prompt.
        """
        system = [Message(role="system", content=self.system)] if self.system else []
        prompt_ids = build_prompt(
            self.tokenizer, prompt, [*system, *self.turns], is_base_model=self.is_base_model
        )
        require_room(prompt_ids, self.engine.info.context_length)
        return self._answer(prompt, prompt_ids)

    def clear(self) -> None:
        """Forget the turns; the system prompt stays."""
        self.turns.clear()
        self.context_tokens = 0

    def _answer(self, prompt: str, prompt_ids: list[int]) -> Generator[Token | Done]:
        said, num_tokens, started = "", 0, perf_counter()
        try:
            stop = stops_of(self.tokenizer, is_base_model=self.is_base_model)
            items = answer(self.engine, self.tokenizer, prompt_ids, self.sampling, stop=stop)
            with closing(items):
                for item in items:
                    if isinstance(item, Token):
                        said += item.text
                        num_tokens += 1
                    yield item
        finally:
            if said:
                self.turns.append(Message(role="user", content=prompt))
                self.turns.append(Message(role="assistant", content=said))
                self.context_tokens = len(prompt_ids) + num_tokens
            self.num_answers += 1
            self.generated_tokens += num_tokens
            self.generation_seconds += perf_counter() - started
