"""What a model is asked, by example, and what is taken from what it says.

The examples are few and short, so that small models follow them. What a model says is untrusted: it
is cut, freed of control characters, and read line by line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from forgellm.schema.generation import Message

_FERRY = "The ferry to Holm leaves at seven every morning from the north pier."
_PENROSE = "Ada Penrose has kept the light on the pier since 1962. She lives above the bakery."
_STRAIT = "In winter the ferry sails only on Mondays, because the strait freezes."
_HOLM = "Where does the ferry to Holm leave from?"
_KEPT = "Who has kept the light on the pier since 1962?"
_WINTER = "Why does the ferry sail only on Mondays in winter?"
UNKNOWN = "The text does not say."

_LONGEST_REPLY = 20_000
_LONGEST_QUESTION = 300
_LONGEST_ANSWER = 600
_CONTROL = re.compile(
    r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]"
)
_THOUGHTS = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_LABEL = re.compile(r"[\s*_#>\d.)-]{0,12}(question|answer|q|a)[\s*_\d]{0,6}:[\s*_]{0,6}", re.I)


@dataclass(frozen=True)
class Prompt:
    """An instruction, examples of what is asked and said, what is asked now, and how the reply begins."""

    instruction: str
    examples: tuple[tuple[str, str], ...]
    asked: str
    begin: Literal["Question:", "Answer:"]

    def as_text(self) -> str:
        """To be continued, by a model without regard to any chat template."""
        parts = [f"{asked}\n{said}" for asked, said in self.examples]
        return "\n\n".join([self.instruction, *parts, f"{self.asked}\n{self.begin}"])

    def as_turns(self) -> list[Message]:
        turns = [Message(role="system", content=self.instruction)]
        for asked, said in self.examples:
            turns.append(Message(role="user", content=asked))
            turns.append(Message(role="assistant", content=said))
        return [*turns, Message(role="user", content=self.asked)]


@dataclass(frozen=True)
class Pair:
    question: str
    answer: str


def writing(text: str) -> Prompt:
    """Asks for a question about `text`, with its answer."""
    examples = (
        (_text(_FERRY), f"Question: {_HOLM}\nAnswer: From the north pier."),
        (_text(_PENROSE), f"Question: {_KEPT}\nAnswer: Ada Penrose."),
        (_text(_STRAIT), f"Question: {_WINTER}\nAnswer: Because the strait freezes."),
    )
    instruction = (
        "Write one question that the text answers, and the answer in a few words of the text. Name "
        "in the question what it is about, so that it can be understood without the text."
    )
    return Prompt(instruction, examples, _text(text), "Question:")


def answering(text: str, question: str) -> Prompt:
    """Asks `question` of a model that has `text` before it and is told to use nothing else."""
    examples = (
        (_about(_FERRY, _HOLM), "Answer: From the north pier."),
        (_about(_PENROSE, _KEPT), "Answer: Ada Penrose."),
        (_about(_FERRY, "What does a ticket to Holm cost?"), f"Answer: {UNKNOWN}"),
        (_about(_STRAIT, _WINTER), "Answer: Because the strait freezes."),
    )
    instruction = f'Answer from the text alone, in a few words. Else answer "{UNKNOWN}"'
    return Prompt(instruction, examples, _about(text, question), "Answer:")


def knowing(question: str) -> Prompt:
    """Asks `question` with nothing before it."""
    examples = (
        ("Question: What is the capital of France?", "Answer: Paris."),
        ("Question: How many legs does a spider have?", "Answer: Eight."),
        ("Question: Who wrote Hamlet?", "Answer: William Shakespeare."),
    )
    return Prompt("Answer in a few words.", examples, f"Question: {question}", "Answer:")


def pair_in(said: str) -> Pair | None:
    """The first question and answer in a reply, or None."""
    question: list[str] = []
    answer: list[str] = []
    part: list[str] | None = None
    for line in _cleaned(said).split("\n"):
        if label := _LABEL.match(line):
            is_question = label[1].lower().startswith("q")
            if is_question and question:
                break
            part = question if is_question else answer
            line = line[label.end() :]
        elif not line.strip() and answer:
            break
        if part is not None and (text := line.strip(" \t*_")):
            part.append(text)
    if not question or not answer:
        return None
    pair = Pair(" ".join(question), " ".join(answer))
    is_short = len(pair.question) <= _LONGEST_QUESTION and len(pair.answer) <= _LONGEST_ANSWER
    return pair if is_short else None


def answer_in(said: str) -> str:
    """The first paragraph of a reply, without its label."""
    text = _cleaned(said).strip()
    label = _LABEL.match(text)
    return text[label.end() if label else 0 :].lstrip().split("\n\n", 1)[0][:_LONGEST_ANSWER]


def _cleaned(said: str) -> str:
    said = said[:_LONGEST_REPLY].replace("\r\n", "\n").replace("\r", "\n")
    said = _THOUGHTS.sub("", said).encode("utf-8", "replace").decode()
    return _CONTROL.sub("", said)


def _text(text: str) -> str:
    return f"Text: {' '.join(text.split())}"


def _about(text: str, question: str) -> str:
    return f"{_text(text)}\nQuestion: {question}"
