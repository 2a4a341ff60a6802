"""What a chat template leaves out is written as the row has it, told, or the row is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chat_templates import CHATML, GEMMA, QWEN3
from forgellm.data.chat.encoding import ChatFormat, Entry
from forgellm.data.chat.layout import LossOn
from forgellm.data.chat.pairs import row_encoder
from forgellm.data.tokenizer import Tokenizer
from tiny_workspace import build_tiny_workspace

ASKED = {"role": "user", "content": "How high is the tide?"}
CALL = {"function": {"name": "tide", "arguments": '{"at": "noon"}'}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "low"}
LOW = {"role": "assistant", "content": "It is low."}
TOOLS = [{"name": "tide", "description": "Height."}]
NO_TOOL_TURNS = CHATML.replace(
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}",
    "{% if message['role'] != 'tool' %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endif %}",
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder: Path = tmp_path_factory.mktemp("w")
    return Tokenizer.load(build_tiny_workspace(folder).base_models / "tiny")


def encoded(
    tokenizer: Tokenizer,
    template: str,
    row: Any,
    loss_on: LossOn = "assistant",
    in_pairs: bool = False,
) -> Entry | str:
    form = ChatFormat(template, loss_on, 2000, in_pairs=in_pairs)
    (found,) = row_encoder(tokenizer, form).encode([row])
    return found


def learned(tokenizer: Tokenizer, found: Entry | str) -> str:
    assert not isinstance(found, str), found
    ids = np.frombuffer(found.tokens.ids, "<u4")
    marks = np.frombuffer(found.tokens.trained, "u1").astype(bool)
    return tokenizer.decode(ids[marks].tolist(), skip_special=False)


def test_a_call_that_is_not_shown_is_never_an_empty_answer(tokenizer: Tokenizer) -> None:
    for turns in ([ASKED, CALLING], [ASKED, CALLING, RESULT, LOW]):
        found = encoded(tokenizer, CHATML, {"messages": turns, "tools": TOOLS})
        assert found == "the chat template does not show tool calls"
    shown = encoded(tokenizer, QWEN3, {"messages": [ASKED, CALLING], "tools": TOOLS})
    assert '{"name": "tide", "arguments": {"at": "noon"}}' in learned(tokenizer, shown)


def test_a_call_whose_name_is_said_anyway_is_still_not_shown(tokenizer: Tokenizer) -> None:
    asked = {"role": "user", "content": "Call tide with at: noon."}
    found = encoded(tokenizer, CHATML, {"messages": [asked, CALLING]})
    assert found == "the chat template does not show tool calls"


def test_a_call_that_the_row_writes_as_text_is_learned_as_that(tokenizer: Tokenizer) -> None:
    call = '{"name": "tide", "arguments": {"at": "noon"}}'
    row = {
        "conversations": [
            {"from": "human", "value": "How high?"},
            {"from": "function_call", "value": call},
        ]
    }
    assert learned(tokenizer, encoded(tokenizer, CHATML, row)) == call + "<|im_end|>"
    assert f"<tool_call>\n{call}" in learned(tokenizer, encoded(tokenizer, QWEN3, row))
    unseen = encoded(tokenizer, CHATML, row | {"tools": json.dumps(TOOLS)})
    assert unseen == "the chat template does not show tool calls"


def test_tools_that_are_not_shown_are_told(tokenizer: Tokenizer) -> None:
    row = {"messages": [ASKED, LOW], "tools": TOOLS}
    found = encoded(tokenizer, CHATML, row)
    assert isinstance(found, Entry)
    assert found.notes == ("the tools on offer are not used: the chat template does not show them",)
    shown = encoded(tokenizer, QWEN3, row)
    assert isinstance(shown, Entry) and not shown.notes


def test_turns_of_tools_that_are_not_shown_are_refused(tokenizer: Tokenizer) -> None:
    call = {"role": "function_call", "content": '{"name": "tide", "arguments": {}}'}
    found = encoded(tokenizer, NO_TOOL_TURNS, {"messages": [ASKED, call, RESULT, LOW]})
    assert found == "the chat template does not show turns of the tool"


def test_names_of_speakers_that_are_not_shown_are_told(tokenizer: Tokenizer) -> None:
    row = {"messages": [ASKED | {"name": "Ada"}, LOW]}
    found = encoded(tokenizer, CHATML, row)
    assert isinstance(found, Entry) and "names of who speaks" in found.notes[0]
    naming = CHATML.replace("message['role'] +", "message['role'] + (message['name'] or '') +")
    found = encoded(tokenizer, naming, row)
    assert isinstance(found, Entry) and not found.notes


def test_a_system_text_that_is_not_shown_is_told(tokenizer: Tokenizer) -> None:
    deaf = CHATML.replace(
        "{{ '<|im_start|>' + message['role']",
        "{% if message['role'] == 'system' %}{% continue %}{% endif %}{{ '<|im_start|>' + message['role']",
    )
    row = {"messages": [{"role": "system", "content": "Be brief."}, ASKED, LOW]}
    found = encoded(tokenizer, deaf, row)
    assert isinstance(found, Entry) and "the system's text is not used" in found.notes[0]
    assert "Be brief." not in learned(tokenizer, encoded(tokenizer, deaf, row, "all"))


def test_a_template_that_refuses_the_system_is_looked_at_without_it(tokenizer: Tokenizer) -> None:
    thoughtful = {**LOW, "reasoning_content": "The moon is half."}
    row = {"messages": [{"role": "system", "content": "Be brief."}, ASKED, thoughtful]}
    found = encoded(tokenizer, GEMMA, row)
    assert isinstance(found, Entry) and "thoughts are not used" in found.notes[0]
    called = {"messages": [*row["messages"][:2], CALLING]}
    assert encoded(tokenizer, GEMMA, called) == "the chat template does not show tool calls"


THOUGHTFUL = "<think>\nThe moon is half.\n</think>\n\nIt is low."
EMPTY = "<think>\n\n</think>\n\nIt is low."


@pytest.mark.parametrize("template", [CHATML, QWEN3])
@pytest.mark.parametrize("content", [THOUGHTFUL, EMPTY])
def test_thoughts_are_learned_as_the_row_has_them(
    tokenizer: Tokenizer, template: str, content: str
) -> None:
    found = encoded(tokenizer, template, {"messages": [ASKED, {**LOW, "content": content}]})
    assert learned(tokenizer, found) == content + "<|im_end|>"
    assert isinstance(found, Entry) and not found.notes


def test_thoughts_that_a_template_leaves_out_are_told(tokenizer: Tokenizer) -> None:
    told = ("thoughts are not used where the chat template does not show them",)
    earlier = [ASKED, {**LOW, "content": THOUGHTFUL}, ASKED, {**LOW, "content": THOUGHTFUL}]
    found = encoded(tokenizer, QWEN3, {"messages": earlier})
    assert isinstance(found, Entry) and found.notes == told
    assert learned(tokenizer, found) == f"It is low.<|im_end|>{THOUGHTFUL}<|im_end|>"
    apart = {**LOW, "reasoning_content": "The moon is half."}
    found = encoded(tokenizer, CHATML, {"messages": [ASKED, apart]})
    assert isinstance(found, Entry) and found.notes == told
    pair = {"prompt": "How high?", "chosen": [apart], "rejected": "No."}
    found = encoded(tokenizer, CHATML, pair, in_pairs=True)
    assert isinstance(found, Entry) and found.notes == told


def said(*marked: tuple[str, int]) -> dict[str, Any]:
    turns = []
    for text, weight in marked:
        turns += [ASKED, {"role": "assistant", "content": text, "weight": weight}]
    return {"messages": turns}


def test_answers_of_weight_0_are_context_only(tokenizer: Tokenizer) -> None:
    row = said(("Go away.", 0), ("Low.", 1), ("Enough.", 0), ("Still low.", 1))
    found = encoded(tokenizer, CHATML, row)
    assert learned(tokenizer, found) == "Low.<|im_end|>Still low.<|im_end|>"
    assert learned(tokenizer, encoded(tokenizer, CHATML, row, "last")) == "Still low.<|im_end|>"
    everything = learned(tokenizer, encoded(tokenizer, CHATML, row, "all"))
    assert "Go away." not in everything and "Enough." not in everything
    assert everything.count("How high is the tide?") == 4 and "Still low.<|im_end|>" in everything


@pytest.mark.parametrize(
    ("row", "loss_on"),
    [
        (said(("Go away.", 0)), "assistant"),
        (said(("Low.", 1), ("Go away.", 0)), "last"),
    ],
)
def test_where_no_answer_may_be_learned_the_row_is_skipped(
    tokenizer: Tokenizer, row: Any, loss_on: LossOn
) -> None:
    found = encoded(tokenizer, CHATML, row, loss_on)
    assert found == "its answers are marked as not to be learned"


def test_pairs_honour_the_marks(tokenizer: Tokenizer) -> None:
    def side(text: str, weight: int) -> list[dict[str, Any]]:
        return [{"role": "assistant", "content": text, "train": bool(weight)}, ASKED, LOW]

    row = {"prompt": "How high?", "chosen": side("Hm.", 0), "rejected": side("Go.", 1)}
    found = encoded(tokenizer, CHATML, row, in_pairs=True)
    assert learned(tokenizer, found) == "It is low.<|im_end|>Go.<|im_end|>It is low.<|im_end|>"


def test_text_that_no_tokenizer_takes_costs_its_row(tokenizer: Tokenizer) -> None:
    form = ChatFormat(CHATML, "assistant", 2000)
    rows = [{"prompt": "Why?", "completion": "So \ud800."}, {"prompt": "Why?", "completion": "So."}]
    broken, whole = row_encoder(tokenizer, form).encode(rows)
    assert isinstance(broken, str) and learned(tokenizer, whole) == "So.<|im_end|>"


def test_an_unforeseen_failure_costs_its_row(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokenizer fails on one text of a batch: the others are encoded all the same."""
    encode = Tokenizer.encode_spans

    def failing(self: Tokenizer, texts: Any, *spans: Any, **how: Any) -> Any:
        if any("poison" in text for text in texts):
            raise ValueError
        return encode(self, texts, *spans, **how)

    monkeypatch.setattr(Tokenizer, "encode_spans", failing)
    form = ChatFormat(CHATML, "assistant", 2000)
    rows = [{"prompt": "Why?", "completion": text} for text in ("So.", "poison", "Thus.")]
    found = row_encoder(tokenizer, form).encode(rows)
    assert found[1] == "cannot be read (ValueError)"
    assert [learned(tokenizer, found[n]) for n in (0, 2)] == ["So.<|im_end|>", "Thus.<|im_end|>"]
