"""Where in a rendered conversation the assistant's own words are, whatever they are.

The assistant's part of a turn begins where a prompt for it would end, and ends with the control
token, or the text, that ends the turn. All are found by rendering, so that no template needs markers.
"""

from __future__ import annotations

from typing import Any, Literal

from forgellm.data.chat.rows import RowRefused
from forgellm.data.chat.template import ChatTemplate, Part, Shape, Slot
from forgellm.data.chat.turn_ends import TurnEnds

LossOn = Literal["assistant", "last", "all"]
"""All answers, the last one, or every token."""
Layout = list[tuple[bool, list[Part]]]
"""Neighbouring parts that are all learned, or all not."""
_Place = tuple[int, int]
"""A part's number, and how many of its characters come before."""


def layout_of(
    shape: Shape,
    tools: list[Any] | None,
    loss_on: LossOn | int,
    template: ChatTemplate,
    ends: TurnEnds,
    context_only: frozenset[int] = frozenset(),
) -> Layout:
    """`loss_on` may be how many of the last answers are learned. `context_only` are those that are
    never learned, counted from the first answer on. Raises RowRefused, TemplateRefused."""
    whole = template.parts(shape, for_answer=False, tools=tools)
    every = [number for number, turn in enumerate(shape) if ("role", "assistant") in turn]
    never = {every[answer] for answer in context_only}
    if loss_on == "all":
        answers = sorted(never)
    elif loss_on == "assistant":
        answers = [number for number in every if number not in never]
    else:
        last = every[-1 if loss_on == "last" else -loss_on :]
        answers = [number for number in last if number not in never]
    spans = []
    for number in answers:
        prompt = template.parts(shape[:number], for_answer=True, tools=tools)
        spans.append(_span(number, whole, prompt, ends))
    layout = _cut(whole, spans)
    return [(not inside, parts) for inside, parts in layout] if loss_on == "all" else layout


def _span(
    number: int, whole: list[Part], prompt: list[Part], ends: TurnEnds
) -> tuple[_Place, _Place]:
    """Where the assistant's part of turn `number` begins and ends."""
    own = [n for n, part in enumerate(whole) if isinstance(part, Slot) and part.turn == number]
    start = _end_of(prompt, whole) or ((own[0], 0) if own else None)
    if start is None:
        raise RowRefused("the chat template hides where an answer begins")
    said = (own[-1] + 1, 0) if own else start
    following = next(
        (n for n in range(said[0], len(whole)) if isinstance(whole[n], Slot)), len(whole)
    )
    for n in range(said[0], following):
        words, first = str(whole[n]), said[1] if n == said[0] else 0
        found = ((words.find(end, first), end) for end in (*ends.tokens, *ends.texts))
        if places := [(place, -len(end)) for place, end in found if place >= 0]:
            place, less = min(places)  # the longest where several begin
            return start, (n, place - less)
    return start, said if own else (following, 0)


def _end_of(prompt: list[Part], whole: list[Part]) -> _Place | None:
    """Where in the conversation the prompt ends; None if that does not begin with it."""
    for n, (part, other) in enumerate(zip(prompt, whole, strict=False)):
        if (
            isinstance(part, Slot)
            and isinstance(other, Slot)
            and part.text_number == other.text_number
        ):
            continue
        if part == other:
            continue
        is_begun = isinstance(part, str) and isinstance(other, str) and other.startswith(part)
        return (n, len(part)) if is_begun and n == len(prompt) - 1 else None
    return (len(prompt), 0) if len(prompt) <= len(whole) else None


def _cut(whole: list[Part], spans: list[tuple[_Place, _Place]]) -> Layout:
    """The parts inside the spans and outside, cut at the spans' borders."""
    layout: Layout = []
    for n, part in enumerate(whole):
        length = 1 if isinstance(part, Slot) else len(part)
        inner = sorted({at for span in spans for m, at in span if m == n and 0 < at < length})
        for start, end in zip([0, *inner], [*inner, length], strict=True):
            is_inside = any(first <= (n, start) and (n, end) <= last for first, last in spans)
            if not layout or layout[-1][0] != is_inside:
                layout.append((is_inside, []))
            layout[-1][1].append(part if isinstance(part, Slot) else part[start:end])
    return layout
