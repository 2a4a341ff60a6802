"""What of a row's values is said, and by whom: turns of any shape as chat templates take them.

Only text is text: null, numbers, truth values, lists of alternatives and pictures never become
words. What a turn has besides is noted, so that nothing is left out in silence.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import orjson

from forgellm.data.chat.template import Turn

Notes = dict[str, None]
"""What of a row is not used, in order, each once."""

ROLES: Mapping[str, str] = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model", "bing", "bard"), "assistant"),
    **dict.fromkeys(("function_call", "tool_call"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(
        ("tool", "function", "observation", "function_response", "tool_response", "ipython"), "tool"
    ),
}
"""Names of speakers, and which of a chat template's roles they are."""
ASKED = ("input", "question", "user", "human", "instruction", "prompt", "query", "q")
ANSWERED = ("output", "answer", "assistant", "gpt", "bot", "response", "completion", "a")
IMAGES = ("image", "images", "audio", "audios", "video", "videos")
_CALLS = ("function_call", "tool_call")
_CONTENT = ("content", "value", "text")
_REASONING = ("reasoning_content", "reasoning", "thinking")
_MARKS = ("weight", "train", "training", "trainable", "loss")
_PARTLY = ("train_detail", "training_detail")
_IDS = ("name", "tool_call_id")
_TURNS_HAVE = (*_IDS, *_MARKS)
_ANSWERS_HAVE = (*_REASONING, "tool_calls", "function_call")
_TEXT_PARTS = ("text", "input_text", "output_text")
_HALF = re.compile("[\ud800-\udfff]")
_THINK = re.compile(r"\s*(?:<think>)?(.*?)</think>\s*(.*)", re.DOTALL)


class RowRefused(Exception):
    """The row holds nothing to learn from; the message is the reason."""


class Spoken(NamedTuple):
    """A turn of a row.

    Attributes:
        is_learned: False for an answer that is context only, as its `weight` or `train` says.
        as_written: the whole content of an answer of which thoughts or a call were taken apart.
    """

    turn: Turn
    is_learned: bool = True
    as_written: str | None = None


def turns_of(items: Iterable[Any], notes: Notes) -> list[Spoken]:
    """Objects with a role each, or pairs of question and answer, or texts of user and assistant in
    turn. Raises RowRefused."""
    items = list(items)
    if items and all(isinstance(item, str) for item in items):
        roles = ("user", "assistant")
        items = [{"role": roles[n % 2], "content": text} for n, text in enumerate(items)]
    return [spoken for item in items for spoken in _turns(item, notes)]


def exchanges_of(items: Iterable[Any], notes: Notes) -> list[Spoken]:
    """Earlier questions and answers: as `turns_of`, or lists of two texts. Raises RowRefused."""
    found: list[Spoken] = []
    for item in items:
        if isinstance(item, (list, tuple)):
            if len(item) != 2:
                raise RowRefused("an entry of the history has not two parts")
            found += [*said(item[0], "user", notes), *said(item[1], "assistant", notes)]
        elif isinstance(item, dict):
            found += _turns(item, notes)
        else:
            raise RowRefused("an entry of the history is no pair of question and answer")
    return found


def said(value: Any, role: str, notes: Notes) -> list[Spoken]:
    """A text of `role`, a turn, or a list of turns, also where a table holds that as text.

    Raises RowRefused.
    """
    items = [value] if isinstance(value, dict) else json_list(value)
    if items and all(isinstance(item, dict) and _role_name(item) for item in items):
        return turns_of(items, notes)
    return _turn({"role": role, "content": value}, notes)


def _turns(item: Any, notes: Notes) -> list[Spoken]:
    if not isinstance(item, dict):
        raise RowRefused("a turn is not an object")
    if _role_name(item):
        return _turn(item, notes)
    asked, answered = (_first(item, names) for names in (ASKED, ANSWERED))
    if asked is None or answered is None:
        raise RowRefused("a turn without a role")
    _note_keys(item, (asked, answered), notes)
    return [*said(item[asked], "user", notes), *said(item[answered], "assistant", notes)]


def _turn(item: dict[str, Any], notes: Notes) -> list[Spoken]:
    """One turn, or none for an empty one that says nothing."""
    name = _role_name(item)
    role = ROLES.get(name.lower()) if isinstance(name, str) else None
    if role is None:
        shown = name if isinstance(name, str) else type(name).__name__
        raise RowRefused(f"a turn of an unknown role {shown[:40]!r}")
    key = next((key for key in _CONTENT if item.get(key) is not None), "content")
    content = text_of(item.get(key), _NAMES[role])
    # What a turn has besides who speaks and what is said: mostly nothing.
    more = {k: v for k, v in item.items() if k not in (key, "role", "from") and not is_empty(v)}
    turn: Turn = {"role": role, "content": content}
    if role == "assistant":
        turn |= _answer(more, name.lower(), content)
    elif role == "user" and not content.strip():
        notes["an empty turn is not used"] = None
    is_learned = True
    if more:
        if found := more.keys() & IMAGES:
            raise RowRefused(f"a turn with more than text: {min(found)!r}")
        turn |= {k: more[k] for k in _IDS if isinstance(more.get(k), str)}
        used = (*_ANSWERS_HAVE, *_TURNS_HAVE) if role == "assistant" else _TURNS_HAVE
        _note_keys(more, used, notes)
        is_learned = _is_learned(more, role, notes)
    is_said = role in ("assistant", "tool") or bool(content.strip())
    as_written = content if turn["content"] != content else None
    return [Spoken(turn, is_learned, as_written)] if is_said else []


def _answer(more: dict[str, Any], name: str, content: str) -> Turn:
    """An answer's own fields: what was thought before it, and which tools it calls."""
    found = _thoughts(more, content)
    calls = _calls_of(more, name, content)
    if calls:
        found["tool_calls"] = calls
        if name in _CALLS:
            found["content"] = ""
    elif not found.get("content", content).strip():
        raise RowRefused("an empty answer")
    return found


_NAMES = {
    "user": "the question",
    "assistant": "the answer",
    "system": "the system's text",
    "tool": "the tool's text",
}


def _role_name(item: dict[str, Any]) -> Any:
    name = item.get("role")
    return item.get("from") if name is None else name


def _first(item: dict[str, Any], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in item), None)


def _note_keys(item: dict[str, Any], used: tuple[str, ...], notes: Notes) -> None:
    for key, value in item.items():
        if key not in used and not is_empty(value):
            notes[f"the key {str(key)[:40]!r} of turns is not used"] = None


def _is_learned(more: dict[str, Any], role: str, notes: Notes) -> bool:
    """Whether the marks of a turn let it be learned, if it is an answer."""
    if more.keys() & _PARTLY:
        raise RowRefused("a turn of which only parts are to be learned")
    marks = {key: more[key] for key in _MARKS if key in more}
    if role != "assistant":
        for key, value in marks.items():
            if value:
                notes[f"{key!r} of turns that are no answers is not used"] = None
        return True
    for key, value in marks.items():
        if not isinstance(value, (bool, int, float)) or value not in (0, 1):
            raise RowRefused(f"{key!r} of an answer is neither 0 nor 1")
    return all(marks.values())


def _thoughts(more: dict[str, Any], content: str) -> Turn:
    """What was thought before an answer, apart from it, as templates of thinking models take it."""
    if given := [more[key] for key in _REASONING if key in more]:
        return {"reasoning_content": text_of(given[0], "a thought")}
    if "</think>" in content and (match := _THINK.fullmatch(content)):
        return {"content": match[2], "reasoning_content": match[1].strip("\n")}
    return {}


def _calls_of(more: dict[str, Any], role_name: str, content: str) -> list[dict[str, Any]]:
    """The tools that a turn calls, under any of the names for that."""
    calls = more.get("tool_calls")
    if calls is None and "function_call" in more:
        calls = [more["function_call"]]
    if calls is None and role_name in _CALLS:
        found = _json(content)
        calls = [found] if isinstance(found, dict) else found if isinstance(found, list) else None
        if not calls or not all(isinstance(call, dict) and "name" in call for call in calls):
            return []
    listed = json_list(calls)
    if listed is None and calls is not None:
        raise RowRefused("the tool calls of a turn are not a list")
    return [tool_call(_json(call) if isinstance(call, str) else call) for call in listed or []]


def tool_call(call: Any) -> dict[str, Any]:
    """Templates want arguments as an object, where OpenAI's files have them as text.

    Raises RowRefused.
    """
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowRefused("a tool call without a name")
    name = "parameters" if "arguments" not in function else "arguments"  # as Llama 3 writes them
    rest = {key: value for key, value in function.items() if key != name}
    arguments = function.get(name)
    if is_empty(arguments):
        arguments = {}
    elif isinstance(arguments, str):
        arguments = _json(arguments)
    if not isinstance(arguments, dict):
        raise RowRefused("a tool call whose arguments are not JSON of an object")
    found = {"type": "function", "function": {**rest, "arguments": arguments}}
    return {**found, "id": call["id"]} if isinstance(call.get("id"), str) else found


def tools_of(value: Any) -> list[Any] | None:
    """The tools that a row offers, each as `{"type": "function", "function": {...}}`; None where
    there are none. Raises RowRefused."""
    if is_empty(value):
        return None
    listed = json_list(value)
    if listed is None:
        found = _json(value) if isinstance(value, str) else value
        listed = [found] if isinstance(found, dict) else None
    if listed is None:
        raise RowRefused("the tools are not a list")
    return [_tool(_json(tool) if isinstance(tool, str) else tool) for tool in listed] or None


def _tool(tool: Any) -> dict[str, Any]:
    if isinstance(tool, dict) and isinstance(tool.get("function"), dict):
        return tool
    if isinstance(tool, dict) and isinstance(tool.get("name"), str):
        return {"type": "function", "function": tool}
    raise RowRefused("a tool without a name")


def text_of(value: Any, name: str) -> str:
    """The text of a value, "" where it is missing. `name` says in a reason what it is.

    Raises RowRefused.
    """
    if is_missing(value):
        return ""
    if isinstance(value, bool):
        raise RowRefused(f"{name} is true or false, not text")
    if isinstance(value, (int, float)):
        raise RowRefused(f"{name} is a number, not text")
    if isinstance(value, list):
        return "".join(_part(part, name) for part in value)
    if not isinstance(value, str):
        raise RowRefused(f"{name} is not text")
    if _HALF.search(value):
        raise RowRefused(f"{name} holds half a character")
    return value


def _part(part: Any, name: str) -> str:
    if not isinstance(part, dict):
        raise RowRefused(f"{name} is a list of alternatives")
    kind = part.get("type", "text")
    if kind not in _TEXT_PARTS:
        raise RowRefused(f"a turn with more than text: a part of the type {str(kind)[:40]!r}")
    return text_of(part.get("text"), name)


def is_missing(value: Any) -> bool:
    """Null, or what tables have in its place: a number that is none."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def is_empty(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return is_missing(value) or value == [] or value == {}


def json_list(value: Any) -> list[Any] | None:
    """A list, also where a table holds it as text."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _json(value)
    return value if isinstance(value, list) else None


def _json(text: str) -> Any:
    """None where it is no JSON."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
