"""Every shape in which people have conversations, and what is no conversation."""

from __future__ import annotations

from typing import Any

import pytest

from forgellm.data.chat.rows import RowRefused, conversation_of

ASKED, ANSWERED = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}
PAIR = [ASKED, ANSWERED]
SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        ({"messages": PAIR}, PAIR),
        ({"messages": [SYSTEM, *PAIR, ASKED]}, [SYSTEM, *PAIR]),
        (PAIR, PAIR),
        ({"messages": '[{"role":"user","content":"Why?"},{"role":"assistant","content":"So."}]'}, PAIR),
        ({"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]}, PAIR),
        (
            {"system": "Be brief.", "conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]},
            [SYSTEM, *PAIR],
        ),
        ({"instruction": "Why?", "input": "", "output": "So."}, PAIR),
        (
            {"instruction": "Sort.", "input": "b a", "output": "a b"},
            [{"role": "user", "content": "Sort.\n\nb a"}, {"role": "assistant", "content": "a b"}],
        ),
        ({"instruction": "Why?", "output": "So.", "system": "Be brief."}, [SYSTEM, *PAIR]),
        (
            {"instruction": "Why?", "output": "So.", "history": [["Hm?", "Yes."]]},
            [{"role": "user", "content": "Hm?"}, {"role": "assistant", "content": "Yes."}, *PAIR],
        ),
        ({"prompt": "Why?", "completion": "So."}, PAIR),
        ({"prompt": [ASKED], "completion": [ANSWERED]}, PAIR),
        ({"Question": "Why?", "Answer": "So."}, PAIR),
        ({"query": "Why?", "response": "So."}, PAIR),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}, ANSWERED]}, PAIR),
    ],
)  # fmt: skip
def test_the_shape_is_found(row: Any, turns: list[dict[str, str]]) -> None:
    assert conversation_of(row).turns == turns


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"frage": "Why?", "antwort": "So."}, {"user": "frage", "assistant": "antwort"}),
        ({"verlauf": PAIR}, {"messages": "verlauf"}),
    ],
)
def test_unusual_names_can_be_mapped(row: Any, columns: dict[str, str]) -> None:
    assert conversation_of(row, columns).turns == PAIR


def test_thoughts_stand_apart_from_the_answer() -> None:
    row = {"messages": [ASKED, {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nSo."}]}
    assert conversation_of(row).turns[1] == {
        "role": "assistant",
        "content": "So.",
        "reasoning_content": "Hm.",
    }


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("text", "not an object"),
        ({"text": "Once."}, "none of the known columns"),
        ({"messages": []}, "no answer"),
        ({"messages": [ASKED]}, "no answer"),
        ({"messages": [ANSWERED]}, "no question"),
        ({"messages": [ASKED, {"role": "assistant", "content": " "}]}, "empty answer"),
        ({"messages": [ASKED, {"role": "narrator", "content": "x"}]}, "unknown role"),
        ({"messages": [ASKED, "So."]}, "not an object"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}, ANSWERED]}, "more than text"),
        ({"question": "Why?", "answer": None}, "empty answer"),
        ({"messages": [ASKED, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]}, "not JSON"),
    ],
)  # fmt: skip
def test_what_is_no_conversation_is_refused_with_its_reason(row: Any, reason: str) -> None:
    with pytest.raises(RowRefused, match=reason):
        conversation_of(row)
