"""Every shape in which people have conversations, and what is no conversation."""

from __future__ import annotations

import json
from typing import Any

import pytest

from forgellm.data.chat.pairs import pair_of
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


@pytest.mark.parametrize(
    "history",
    [
        [["Hm?", "Yes."]],
        [{"role": "user", "content": "Hm?"}, {"role": "assistant", "content": "Yes."}],
        [{"from": "human", "value": "Hm?"}, {"from": "gpt", "value": "Yes."}],
        [{"question": "Hm?", "answer": "Yes."}],
        [{"user": "Hm?", "assistant": "Yes."}],
        '[["Hm?", "Yes."]]',
    ],
)
def test_a_history_of_any_form_comes_before_the_question(history: Any) -> None:
    said = ["Hm?", "Yes.", "Why?", "So."]
    for row in (
        {"instruction": "Why?", "output": "So.", "history": history},
        {"prompt": "Why?", "completion": "So.", "history": history},
    ):
        assert [turn["content"] for turn in conversation_of(row).turns] == said
    pair = pair_of({"question": "Why?", "chosen": "So.", "rejected": "No.", "history": history})
    assert [turn["content"] for turn in pair.chosen.turns] == said
    assert pair.num_shared == 3


@pytest.mark.parametrize(
    "history", [[["Hm?"]], [["Hm?", "Yes.", "No."]], ["Hm?", "Yes."], "Hm?", [[1, 2]], [{"a": "b"}], [7]]
)  # fmt: skip
def test_a_history_that_is_none_costs_its_row(history: Any) -> None:
    with pytest.raises(RowRefused, match="histor|role|number"):
        conversation_of({"instruction": "Why?", "output": "So.", "history": history})


@pytest.mark.parametrize(
    "asked", ["instruction", "prompt", "question", "query", "input", "problem"]
)
@pytest.mark.parametrize("more", ["context", "passage"])
def test_what_is_asked_about_is_in_the_question(asked: str, more: str) -> None:
    found = conversation_of({asked: "Why?", more: "It rains.", "response": "So.", "answer": "So.", "output": "So.", "solution": "So."})  # fmt: skip
    assert "It rains." in found.turns[0]["content"] and "Why?" in found.turns[0]["content"]
    pair = pair_of({asked: "Why?", more: "It rains.", "chosen": "So.", "rejected": "No."})
    assert set(pair.chosen.turns[0]["content"].split("\n\n")) == {"Why?", "It rains."}


@pytest.mark.parametrize("name", ["system", "system_prompt", "system_message"])
def test_a_system_text_comes_first_or_is_told(name: str) -> None:
    assert (
        conversation_of({"prompt": "Why?", "response": "So.", name: "Be brief."}).turns[0] == SYSTEM
    )
    assert conversation_of({"messages": PAIR, name: "Be brief."}).turns[0] == SYSTEM
    same = conversation_of({"messages": [SYSTEM, *PAIR], name: "Be brief."})
    other = conversation_of({"messages": [SYSTEM, *PAIR], name: "Be long."})
    assert same.turns == other.turns == [SYSTEM, *PAIR]
    assert not same.notes and "system" in other.notes[0]
    for prompt in ({"prompt": "Why?"}, {}):
        whole = {"chosen": PAIR, "rejected": [ASKED, {"role": "assistant", "content": "No."}]}
        assert pair_of({**prompt, **whole, name: "Be brief."}).chosen.turns == [SYSTEM, *PAIR]


def test_a_prompt_beside_whole_conversations_is_used_or_told() -> None:
    whole = {"chosen": PAIR, "rejected": [ASKED, {"role": "assistant", "content": "No."}]}
    assert not pair_of({"prompt": "Why?", **whole}).notes
    assert pair_of({"prompt": "Who?", **whole}).notes == ("the column 'prompt' is not used",)


def test_each_column_is_used_or_told() -> None:
    row = {
        "Question": "Why?",
        "answer": "So.",
        "remark": "x",
        "score": 3,
        "empty": "",
        "none": None,
    }
    assert conversation_of(row).notes == (
        "the column 'remark' is not used",
        "the column 'score' is not used (a label)",
    )
    doubled = {"question": "Why?", "Question": "Who?", "answer": "So."}
    assert conversation_of(doubled).notes == ("the column 'Question' is not used",)
    both = {"messages": PAIR, "prompt": "Other?", "completion": "Other."}
    found = conversation_of(both)
    assert found.turns == PAIR
    assert found.notes == ("the column 'prompt' is not used", "the column 'completion' is not used")


def test_what_turns_have_besides_is_told() -> None:
    row = {"messages": [ASKED | {"mood": "cross"}, ANSWERED, ASKED]}
    assert conversation_of(row).notes == (
        "the key 'mood' of turns is not used",
        "turns after the last answer are not used",
    )


@pytest.mark.parametrize("columns", [{"user": "frage", "assistant": "antwrt"}, {"messages": "m"}])
def test_a_mapped_column_that_is_not_there_is_named(columns: dict[str, str]) -> None:
    with pytest.raises(RowRefused, match="there is no column '(antwrt|m)'"):
        conversation_of({"frage": "Why?", "antwort": "So."}, columns)
    with pytest.raises(RowRefused, match="there is no column 'gut'"):
        pair_of({"chosen": "a", "rejected": "b"}, {"chosen": "gut", "rejected": "rejected"})


def test_other_columns_than_the_mapped_ones_are_told() -> None:
    row = {"frage": "Why?", "antwort": "So.", "thema": "x"}
    found = conversation_of(row, {"user": "frage", "assistant": "antwort", "system": "rolle"})
    assert found.turns == PAIR
    assert found.notes == (
        "there is no column 'rolle', which `columns` names",
        "the column 'thema' is not used",
    )


@pytest.mark.parametrize(
    ("mark", "learned"),
    [
        ({"weight": 0}, False),
        ({"weight": 0.0}, False),
        ({"train": False}, False),
        ({"loss": False}, False),
        ({"weight": 1, "train": False}, False),
        ({"weight": 1}, True),
        ({"weight": 1.0, "train": True}, True),
        ({"weight": None}, True),
    ],
)
def test_answers_can_be_marked_as_context_only(mark: dict[str, Any], learned: bool) -> None:
    row = {"messages": [ASKED, ANSWERED | mark, ASKED, ANSWERED]}
    assert conversation_of(row).context_only == (frozenset() if learned else {1})


@pytest.mark.parametrize("mark", [{"weight": 0.5}, {"weight": "0"}, {"weight": 2}, {"train": "no"}, {"train_detail": [{"begin_offset": 0}]}])  # fmt: skip
def test_other_marks_are_refused(mark: dict[str, Any]) -> None:
    with pytest.raises(RowRefused, match="neither 0 nor 1|only parts"):
        conversation_of({"messages": [ASKED, ANSWERED | mark]})


@pytest.mark.parametrize(
    ("content", "thought"),
    [
        ("<think>\n\n</think>\n\nSo.", ""),
        ("<think>\nHm.\n</think>\n\nSo.", "Hm."),
        ("Hm.\n</think>\n\nSo.", "Hm."),
    ],
)
def test_thoughts_are_taken_apart_and_kept_as_written(content: str, thought: str) -> None:
    found = conversation_of({"messages": [ASKED, {"role": "assistant", "content": content}]})
    assert found.turns[1] == {"role": "assistant", "content": "So.", "reasoning_content": thought}
    assert found.as_written == {1: content}


def test_an_unknown_role_is_told_by_its_name() -> None:
    with pytest.raises(RowRefused, match="unknown role 'narrator'"):
        conversation_of({"conversations": [{"from": "narrator", "value": "x"}, *PAIR]})


def test_a_row_with_more_cells_than_columns_is_refused() -> None:
    with pytest.raises(RowRefused, match="more cells"):
        conversation_of({"question": "Why?", "answer": "So", None: [" so."]})


def test_whatever_goes_wrong_in_a_parser_costs_its_row() -> None:
    class Odd(dict[str, Any]):
        def items(self) -> Any:
            raise ZeroDivisionError

    for parse in (conversation_of, pair_of):
        with pytest.raises(RowRefused, match="cannot be read \\(ZeroDivisionError\\)"):
            parse(Odd(question="Why?", answer="So.", prompt="a", chosen="b", rejected="c"))


@pytest.mark.parametrize("name", ["arguments", "parameters"])
@pytest.mark.parametrize("given", [{"at": "noon"}, '{"at": "noon"}'])
def test_arguments_of_calls_are_kept_under_either_name(name: str, given: Any) -> None:
    call = {"name": "tide", name: given}
    for turn in (
        {"tool_calls": [call]},
        {"tool_calls": json.dumps([call])},
        {"function_call": call},
    ):
        found = conversation_of(
            {"messages": [ASKED, {"role": "assistant", "content": None, **turn}]}
        )
        assert found.turns[1]["tool_calls"] == [
            {"type": "function", "function": {"name": "tide", "arguments": {"at": "noon"}}}
        ]


@pytest.mark.parametrize("label", [True, False, "True", "false", 0, 1, "0"])
def test_an_answer_with_a_label_of_good_or_bad_is_refused(label: Any) -> None:
    row = {"prompt": "Why?", "completion": "So.", "label": label}
    for parse in (conversation_of, pair_of):
        with pytest.raises(RowRefused, match="KTO"):
            parse(row)
    other = conversation_of({"prompt": "Why?", "completion": "So.", "label": "weather"})
    assert other.notes == ("the column 'label' is not used",)


@pytest.mark.parametrize("mark", [{"weight": 0}, {"weight": "0.0"}, {"train": False}])
def test_a_row_that_is_marked_as_not_to_be_learned_is_refused(mark: dict[str, Any]) -> None:
    with pytest.raises(RowRefused, match="marked"):
        conversation_of({"messages": PAIR, **mark})
    assert conversation_of({"messages": PAIR, "weight": 1, "split": "train"}).turns == PAIR


def test_the_columns_of_a_row_that_is_no_conversation_are_named() -> None:
    with pytest.raises(RowRefused, match="'article', 'summary'"):
        conversation_of({"article": "x", "summary": "y"})


def test_a_second_answer_never_follows_an_answer() -> None:
    no = {"role": "assistant", "content": "No."}
    with pytest.raises(RowRefused, match="ends with an answer"):
        pair_of({"messages": PAIR, "chosen": "So.", "rejected": "No."})
    with pytest.raises(RowRefused, match="ends with an answer"):
        conversation_of({"prompt": PAIR, "completion": "So."})
    whole = pair_of({"messages": PAIR, "chosen": PAIR, "rejected": [ASKED, no]})
    assert whole.chosen.turns == PAIR
    assert whole.notes == ("the column 'messages' is not used",)
