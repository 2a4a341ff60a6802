"""Which conversation a row of a dataset holds, whatever shape it comes in.

Known are OpenAI's `messages`, ShareGPT's `conversations`, Alpaca's `instruction` and `output`, and
pairs of columns such as `prompt` and `completion` or `question` and `answer`. The shape is found,
not configured; where names are unusual, a mapping says which column is what.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from forgellm.data.chat.template import Turn

_LISTS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat")
_PAIRS = (
    ("instruction", "output"),
    ("instruction", "response"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("query", "response"),
    ("query", "answer"),
    ("problem", "solution"),
    ("input", "output"),
    ("user", "assistant"),
    ("q", "a"),
)
_ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model", "bing", "bard"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "function", "observation", "function_response"), "tool"),
}
_REASONING = ("reasoning_content", "reasoning", "thinking")
_THINK = re.compile(r"\s*<think>(.*?)</think>\s*(.*)", re.DOTALL)


class RowRefused(Exception):
    """The row holds no conversation to learn from; the message is the reason."""


@dataclass(frozen=True)
class Conversation:
    """Turns as chat templates take them, the last by the assistant; `tools` if the row has some."""

    turns: list[Turn]
    tools: list[Any] | None = None


def conversation_of(row: Any, columns: Mapping[str, str] | None = None) -> Conversation:
    """The conversation of a row. `columns` maps messages, user, assistant or system to names.

    Raises RowRefused.
    """
    if isinstance(row, list):
        row = {"messages": row}
    if not isinstance(row, dict):
        raise RowRefused("not an object")
    turns = until_last_answer(turns_of(_items_of(row, columns)))
    return Conversation(turns, json_list(row.get("tools")))


def _items_of(row: dict[str, Any], columns: Mapping[str, str] | None) -> list[Any]:
    names = {name.lower(): name for name in row}
    if columns and "messages" in columns:
        return _list(row.get(columns["messages"]))
    if columns:
        wanted = {role: row.get(column) for role, column in columns.items()}
        return _pair(wanted.get("system"), wanted.get("user"), wanted.get("assistant"))
    for name in _LISTS:
        if name in names and (items := json_list(row[names[name]])) is not None:
            system = row.get(names.get("system", ""))
            before = [{"role": "system", "content": system}] if system else []
            return [*before, *items]
    for asked, answered in _PAIRS:
        if asked in names and answered in names:
            return _asked(row, names, row[names[asked]], row[names[answered]])
    raise RowRefused("no conversation: none of the known columns")


def _asked(row: dict[str, Any], names: dict[str, str], asked: Any, answered: Any) -> list[Any]:
    if isinstance(asked, list) and isinstance(answered, list):
        return [*asked, *answered]
    more = row.get(names.get("input", ""))
    if "instruction" in names and isinstance(more, str) and more.strip():
        asked = f"{asked}\n\n{more}"
    earlier: list[Any] = []
    for question, answer in json_list(row.get(names.get("history", ""))) or []:
        earlier += _pair(None, question, answer)
    system, *pair = _pair(row.get(names.get("system", "")), asked, answered)
    return [system, *earlier, *pair] if system["role"] == "system" else [*earlier, system, *pair]


def _pair(system: Any, asked: Any, answered: Any) -> list[Any]:
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return [{"role": "system", "content": system}, *turns] if system else turns


def turns_of(items: list[Any]) -> list[Turn]:
    """Items of any shape as turns. Raises RowRefused."""
    return [turn for item in items for turn in _turn(item)]


def _turn(item: Any) -> list[Turn]:
    """One turn, or none for an empty one that says nothing."""
    if not isinstance(item, dict):
        raise RowRefused("a turn is not an object")
    name = item.get("role", item.get("from"))
    content = _text(item.get("content", item.get("value")))
    if name == "function_call":
        return [{"role": "assistant", "content": content}]
    role = _ROLES.get(name.lower()) if isinstance(name, str) else None
    if role is None:
        raise RowRefused("a turn of an unknown role")
    turn: Turn = {"role": role, "content": content}
    if role == "assistant":
        turn |= _thoughts(item, content)
        if calls := json_list(item.get("tool_calls")):
            turn["tool_calls"] = [_tool_call(call) for call in calls]
        elif not turn["content"].strip():
            raise RowRefused("an empty answer")
    for key in ("name", "tool_call_id"):
        if isinstance(item.get(key), str):
            turn[key] = item[key]
    return [turn] if role in ("assistant", "tool") or content.strip() else []


def _thoughts(item: dict[str, Any], content: str) -> Turn:
    """What was thought before an answer, apart from it, as templates of thinking models take it."""
    given = next((item[key] for key in _REASONING if isinstance(item.get(key), str)), "")
    if not given and (match := _THINK.fullmatch(content)):
        given, content = match[1].strip("\n"), match[2]
    return {"content": content, "reasoning_content": given} if given.strip() else {}


def _tool_call(call: Any) -> dict[str, Any]:
    """Templates want arguments as an object, where OpenAI's files have them as text."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowRefused("a tool call without a name")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = orjson.loads(arguments or "{}")
        except orjson.JSONDecodeError:
            raise RowRefused("a tool call whose arguments are not JSON") from None
    found = {"type": "function", "function": {**function, "arguments": arguments}}
    return {**found, "id": call["id"]} if isinstance(call.get("id"), str) else found


def _text(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, (int, float)):
        return str(content)
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        if len(texts) < len(parts):
            raise RowRefused("a turn with more than text")
        return "".join(texts)
    if not isinstance(content, str):
        raise RowRefused("a turn whose content is not text")
    return content


def until_last_answer(turns: list[Turn]) -> list[Turn]:
    """Raises RowRefused where the assistant does not answer anything."""
    answers = [number for number, turn in enumerate(turns) if turn["role"] == "assistant"]
    if not answers:
        raise RowRefused("no answer of an assistant")
    if not any(turn["role"] in ("user", "tool") for turn in turns[: answers[-1]]):
        raise RowRefused("no question before the answer")
    return turns[: answers[-1] + 1]


def _list(value: Any) -> list[Any]:
    found = json_list(value)
    if found is None:
        raise RowRefused("the column of messages is not a list")
    return found


def json_list(value: Any) -> list[Any] | None:
    """A list, also where a table holds it as text."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError:
            return None
    return value if isinstance(value, list) else None
