"""The known shapes of datasets: which columns a row must have, and what becomes of each.

The row parsers go by these tables from top to bottom; the first shape whose columns all say
something is a row's. docs/conversations.md and docs/preferences.md show the same tables.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from forgellm.data.chat.turns import IMAGES, is_empty, is_missing, json_list

Part = Literal[
    "turns",
    "transcript",
    "asked",
    "before",
    "after",
    "system",
    "history",
    "tools",
    "answered",
    "spans",
    "calls",
    "chosen",
    "rejected",
    "first",
    "second",
    "preference",
]
PARTS: Mapping[Part, str] = {
    "turns": "all turns",
    "transcript": "all turns, as one text",
    "asked": "the question",
    "before": "before the question",
    "after": "after the question",
    "system": "the system's text",
    "history": "earlier questions and answers",
    "tools": "the tools on offer",
    "answered": "the answer",
    "spans": "the answer, if there is just one",
    "calls": "the tools called",
    "chosen": "the better answer",
    "rejected": "the worse answer",
    "first": "an answer",
    "second": "another answer",
    "preference": "below 0: the first is better, above 0: the second",
}
"""What a column is for, in words."""


class Column(NamedTuple):
    """The first of `names` that says something in a row is read, as `part`."""

    part: Part
    names: tuple[str, ...]


@dataclass(frozen=True)
class Shape:
    """Rows that have columns for all of `needs`.

    Attributes:
        also: read where a row has them.
        datasets: who writes rows of this shape.
    """

    needs: tuple[Column, ...]
    also: tuple[Column, ...]
    datasets: tuple[str, ...]

    def named(self, columns: Mapping[Part, str]) -> Shape:
        """With the columns that a user named for some parts, by part."""
        needs, also = (
            tuple(c._replace(names=(columns.get(c.part, ""),)) if c.part in columns else c for c in some)
            for some in (self.needs, self.also)
        )  # fmt: skip
        return replace(self, needs=needs, also=also)


class Transcript(NamedTuple):
    """A whole conversation in one text, in which `speaker` finds who speaks from there on."""

    speaker: re.Pattern[str]
    roles: Mapping[str, str]
    strips: bool = True


class Refusal(NamedTuple):
    """Rows that are not read though their columns are known, and why.

    Attributes:
        columns: a row has at least one of them.
    """

    name: str
    columns: tuple[str, ...]
    reason: str
    is_one: Callable[[Mapping[str, Any]], bool]


HH = Transcript(
    re.compile(r"(?:\A|\n\n)\s*(Human|Assistant): ?"),
    {"Human": "user", "Assistant": "assistant"},
    strips=False,
)
TRANSCRIPTS = (
    Transcript(
        re.compile(r"(?:\A|\n)\s*(SYSTEM|USER|ASSISTANT|FUNCTION RESPONSE):"),
        {
            "SYSTEM": "system",
            "USER": "user",
            "ASSISTANT": "assistant",
            "FUNCTION RESPONSE": "tool",
        },
    ),
    Transcript(
        re.compile(r"###\s?(System|Human|User|Assistant):"),
        {"System": "system", "Human": "user", "User": "user", "Assistant": "assistant"},
    ),
    HH,
)
SYSTEM = Column("system", ("system", "system_prompt", "system_message"))
TOOLS = Column("tools", ("tools", "functions"))
HISTORY = Column("history", ("history",))
_INPUT = Column("after", ("input",))
_QUESTION = Column("after", ("question", "query"))
_CONTEXT_AFTER = Column("after", ("context", "passage"))
_CONTEXT = Column("before", ("context", "passage"))
_ALSO = (SYSTEM, HISTORY, TOOLS)


def _turns(columns: tuple[str, ...], *datasets: str) -> Shape:
    return Shape((Column("turns", columns),), (SYSTEM, TOOLS), datasets)


def _pair(asked: str, answered: tuple[str, ...], also: tuple[Column, ...], *datasets: str) -> Shape:
    needs = Column("asked", (asked,)), Column("answered", answered)
    return Shape(needs, (*also, *_ALSO), datasets)


CONVERSATIONS: tuple[Shape, ...] = (
    _turns(
        ("messages",),
        "OpenAI",
        "TRL",
        "MLX",
        "UltraChat",
        "OASST as conversations",
        "Tulu",
        "No Robots",
        "smoltalk",
        "LLaMA-Factory (OpenAI style)",
        "Axolotl chat_template",
    ),
    _turns(
        ("conversations",),
        "ShareGPT",
        "OpenHermes",
        "SlimOrca",
        "Magpie",
        "LIMA",
        "LLaMA-Factory sharegpt",
    ),
    _turns(
        ("conversation", "turns", "dialogue", "dialog", "chat", "data"),
        "Capybara",
        "UltraChat (raw)",
    ),
    Shape(
        (Column("asked", ("query",)), Column("tools", ("tools",)), Column("calls", ("answers",))),
        (SYSTEM,),
        ("xLAM",),
    ),
    Shape((Column("transcript", ("chat",)),), (SYSTEM, TOOLS), ("Glaive",)),
    Shape(
        (Column("asked", ("question",)), _CONTEXT, Column("spans", ("answers",))),
        (SYSTEM,),
        ("SQuAD",),
    ),
    _pair(
        "instruction",
        ("output", "response", "completion", "answer"),
        (_INPUT, _QUESTION, _CONTEXT_AFTER),
        "Alpaca",
        "CodeAlpaca",
        "Dolly",
        "LLaMA-Factory alpaca",
        "Axolotl alpaca",
    ),
    _pair(
        "prompt",
        ("completion", "response", "output", "generation", "answer"),
        (_INPUT, _QUESTION, _CONTEXT_AFTER),
        "TRL prompt and completion",
        "MLX prompt and completion",
        "HelpSteer",
    ),
    _pair(
        "question",
        ("answer", "response", "output", "completion", "solution"),
        (_INPUT, _CONTEXT),
        "GSM8K",
        "OpenOrca",
    ),
    _pair("query", ("response", "answer", "output"), (_INPUT, _CONTEXT), "MetaMath"),
    _pair("problem", ("solution", "answer"), (_INPUT, _CONTEXT)),
    _pair("input", ("output", "response", "answer"), (_CONTEXT,)),
    _pair("user", ("assistant",), (_CONTEXT,)),
    _pair("q", ("a",), (_CONTEXT,)),
    Shape((Column("transcript", ("text",)),), (SYSTEM,), ("OASST Guanaco",)),
)
BY_COLUMNS = Shape(
    (Column("asked", ()), Column("answered", ())),
    (Column("system", ()), TOOLS),
    (),
)
"""For rows whose columns a user named."""

_ASKED = Column(
    "asked",
    ("prompt", "instruction", "question", "query", "input", "problem", "conversations", "messages", "conversation"),
)  # fmt: skip
PREFERENCES: tuple[Shape, ...] = (
    Shape(
        (
            Column("chosen", ("chosen", "chosen_response", "preferred_output", "preferred", "response_j")),
            Column(
                "rejected",
                ("rejected", "rejected_response", "non_preferred_output", "dispreferred", "response_k"),
            ),
        ),
        (_ASKED, _INPUT, _QUESTION, _CONTEXT_AFTER, *_ALSO),
        (
            "TRL preference",
            "TRL preference without prompt",
            "HH-RLHF",
            "UltraFeedback (binarised)",
            "Orca DPO",
            "LLaMA-Factory alpaca preference",
            "LLaMA-Factory sharegpt preference",
            "OpenAI preference",
        ),
    ),
    Shape(
        (
            Column("asked", ("prompt", "context", "question")),
            Column("first", ("response_1", "response1")),
            Column("second", ("response_2", "response2")),
            Column("preference", ("preference_strength", "overall_preference")),
        ),
        _ALSO,
        ("HelpSteer2 preference", "HelpSteer3 preference"),
    ),
)  # fmt: skip


def _is_kto(row: Mapping[str, Any]) -> bool:
    label = str(row.get("label")).strip().lower()
    has_columns = "prompt" in row and "completion" in row
    is_label = label in ("true", "false") or (label in ("0", "1") and has_columns)
    return (is_label and not _is_ranked(row)) or not is_missing(row.get("kto_tag"))


def _is_ranked(row: Mapping[str, Any]) -> bool:
    return not is_empty(row.get("chosen")) and not is_empty(row.get("rejected"))


def _is_tree(row: Mapping[str, Any]) -> bool:
    prompt = row.get("prompt")
    return isinstance(prompt, dict) and "replies" in prompt


REFUSALS: tuple[Refusal, ...] = (
    Refusal(
        "Pictures and sound",
        IMAGES,
        "it has pictures or sound, and only text is learned",
        lambda row: any(not is_empty(row.get(name)) for name in IMAGES),
    ),
    Refusal(
        "KTO",
        ("label", "kto_tag"),
        "its label (KTO) says whether an answer is good: for ift keep the good ones without the"
        " column, for dpo and orpo put good and bad ones together as chosen and rejected",
        _is_kto,
    ),
    Refusal(
        "Rows of weight 0",
        ("weight", "train"),
        "the row is marked as not to be learned",
        lambda row: (
            str(row.get("weight")).strip() in ("0", "0.0")
            or str(row.get("train")).strip().lower() == "false"
        ),
    ),
    Refusal(
        "OASST as single messages",
        ("parent_id",),
        "one message of a tree: join the messages of each path by parent_id into conversations first",
        lambda row: "parent_id" in row and "role" in row and "text" in row,
    ),
    Refusal(
        "OASST as trees",
        ("prompt",),
        "a tree of messages: write each of its paths as a conversation first",
        _is_tree,
    ),
    Refusal(
        "Axolotl input_output",
        ("segments",),
        "segments of text with labels have no turns: write them as messages, with `train` where an"
        " answer is not to be learned",
        lambda row: json_list(row.get("segments")) is not None,
    ),
)
LABELS = frozenset(
    """id ids _id idx index uuid uid no number row hash source sources src dataset dataset_name origin
    url link license licence lang language locale category categories topic tag tags task type split
    subset difficulty score scores rating ratings quality helpfulness correctness coherence complexity
    verbosity model model_name generator timestamp created_at date tokens num_tokens length""".split()
)
LABEL_ENDS = ("_id", "_ids", "_idx", "_hash", "_score", "_scores", "_rating", "_quality", "_source")
LABEL_STARTS = ("score_", "rating_", "num_")
LABEL_NOTE = " (a label)"
"""How a note on a column ends that only labels rows."""


def is_label(name: str) -> bool:
    """Whether a column of this name tells of a row and holds nothing that is said in it."""
    return name in LABELS or name.endswith(LABEL_ENDS) or name.startswith(LABEL_STARTS)
