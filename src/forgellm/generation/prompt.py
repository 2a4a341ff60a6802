"""From a conversation to the token ids that a model reads before it answers.

A turn's text never becomes control tokens: what a user types stays text, also where it spells one.
"""

from __future__ import annotations

from collections.abc import Iterable

from forgellm.data.chat.template import ChatTemplate, TemplateRefused, Turn, without_system_turns
from forgellm.data.chat.tokens import prompt_tokens
from forgellm.data.chat.turn_ends import stop_texts
from forgellm.data.tokenizer import Tokenizer
from forgellm.errors import InvalidRequest
from forgellm.schema.generation import Message


def build_prompt(
    tokenizer: Tokenizer, prompt: str, history: Iterable[Message], *, is_base_model: bool | None
) -> list[int]:
    """Token ids of `history` followed by `prompt` as the user's turn.

    `is_base_model` true joins everything as plain text; None lets the presence of a chat template
    decide. Raises InvalidRequest, with the template's own words where it refuses the conversation.
    """
    is_base_model = _is_plain(tokenizer, is_base_model)
    turns: list[Turn] = [{"role": turn.role, "content": turn.content} for turn in history]
    turns.append({"role": "user", "content": prompt})
    ids = _plain_ids(tokenizer, turns) if is_base_model else _chat_ids(tokenizer, turns)
    if not ids:
        raise InvalidRequest("The prompt is empty", suggestion="Send some text as `prompt`.")
    return ids


def stops_of(tokenizer: Tokenizer, *, is_base_model: bool | None = None) -> tuple[str, ...]:
    """The strings at which an answer to a prompt of `build_prompt` stops, besides its end tokens."""
    return () if _is_plain(tokenizer, is_base_model) else stop_texts(tokenizer)


def require_room(prompt_ids: list[int], context_length: int) -> None:
    """Raises InvalidRequest if the prompt leaves no token of the context for an answer."""
    if len(prompt_ids) >= context_length:
        raise InvalidRequest(
            f"The prompt has {len(prompt_ids)} tokens, but the model's context holds"
            f" {context_length} with the answer",
            details={"prompt_tokens": len(prompt_ids), "context_length": context_length},
            suggestion="Send a shorter prompt, or leave out the oldest turns of the history.",
        )


def _is_plain(tokenizer: Tokenizer, is_base_model: bool | None) -> bool:
    return tokenizer.chat_template is None if is_base_model is None else is_base_model


def _plain_ids(tokenizer: Tokenizer, turns: list[Turn]) -> list[int]:
    start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    return start + tokenizer.encode("\n".join(turn["content"] for turn in turns))


def _chat_ids(tokenizer: Tokenizer, turns: list[Turn]) -> list[int]:
    if tokenizer.chat_template is None:
        raise InvalidRequest(
            "This model has no chat template, so it cannot take turns",
            suggestion='Send "is_base_model": true for plain text, or load an instruct model.',
        )
    try:
        template = ChatTemplate(tokenizer, tokenizer.chat_template)
    except TemplateRefused as error:
        raise InvalidRequest(
            f"The model's chat template cannot be used: {error}",
            suggestion='Send "is_base_model": true to talk to the model in plain text.',
        ) from None
    # A template that refuses a system turn gets it in the first user turn.
    merged = without_system_turns(turns)
    for attempt in [turns] if merged == turns else [turns, merged]:
        try:
            return prompt_tokens(template, tokenizer, attempt)
        except TemplateRefused as error:
            refused = error
    raise _refused(refused) from None


def _refused(error: TemplateRefused) -> InvalidRequest:
    return InvalidRequest(
        f"The model's chat template refused the conversation: {error}",
        suggestion="Change the order or roles of the turns in `history`.",
    )
