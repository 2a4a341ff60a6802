"""Probe files: questions with their answers, as people write them down."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from forgellm.errors import DataError

Match = Literal["choice", "exact", "contains"]
_Text = Annotated[str, Field(min_length=1)]


@dataclass(frozen=True)
class Probe:
    """A question with its answer.

    Attributes:
        stem: a statement cut before its end, for a choice; may replace the question otherwise.
        distractors: wrong endings of the stem; none where the model answers in its own words.
        match: choice: the likeliest ending counts. exact, contains: the model's words do.
        also: further answers that are right.
    """

    question: str
    stem: str
    answer: str
    distractors: tuple[str, ...] = ()
    match: Match = "choice"
    also: tuple[str, ...] = ()

    @property
    def options(self) -> tuple[str, ...]:
        return (self.answer, *self.distractors)

    @property
    def answers(self) -> tuple[str, ...]:
        return (self.answer, *self.also)


class _Item(BaseModel):
    """A probe as it stands in a file. Other keys are passed over."""

    model_config = ConfigDict(strict=True)

    question: str = ""
    stem: str = ""
    answer: _Text | Annotated[list[_Text], Field(min_length=1)]
    distractors: list[_Text] = Field(default_factory=list)
    match: Match = "choice"

    @model_validator(mode="after")
    def _can_be_asked(self) -> _Item:
        if self.match == "choice":
            if not self.stem or not self.distractors or not isinstance(self.answer, str):
                raise ValueError("a choice has a stem, one answer and at least one distractor")
        elif not self.stem and not self.question:
            raise ValueError("a question or a stem is missing")
        return self

    def probe(self) -> Probe:
        answers = [self.answer] if isinstance(self.answer, str) else self.answer
        if self.match == "choice":
            return Probe(self.question, self.stem, answers[0], tuple(self.distractors))
        return Probe(self.question, self.stem, answers[0], (), self.match, tuple(answers[1:]))


def read_probes(file: Path) -> list[Probe]:
    """From `{"probes": [...]}`, or JSON lines of items. Raises DataError for any other file."""
    try:
        content = file.read_bytes()
        if file.suffix.lower() in (".jsonl", ".ndjson"):
            items = [orjson.loads(line) for line in content.splitlines() if line.strip()]
        else:
            items = orjson.loads(content)["probes"]
        return [_probe(item, number) for number, item in enumerate(items, 1)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file.name} is not a probe file: {error}",
            suggestion="docs/evaluation.md shows the format.",
        ) from error


def _probe(item: object, number: int) -> Probe:
    try:
        return _Item.model_validate(item).probe()
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, problem["loc"])) or "item"
        raise ValueError(f"probe {number}, {where}: {problem['msg']}") from None


def fingerprint_of(probes: Sequence[Probe]) -> str:
    return hashlib.sha256(orjson.dumps(list(probes))).hexdigest()[:16]
