"""Questions made of a dataset's documents: requests."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from forgellm.schema.request import Request

_QUESTIONS: dict[str, Any] = {"dataset": "my_domain", "name": "my_questions", "limit": 200}


class QuestionsRequest(Request, json_schema_extra={"examples": [_QUESTIONS]}):
    dataset: str = Field(
        min_length=1, max_length=400, description="Whose documents are asked about."
    )
    name: str = Field(
        min_length=1,
        max_length=200,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$",
        description="The dataset that the pairs go into; one begun with the same settings goes on.",
    )
    per_passage: int = Field(1, ge=1, le=20, description="Attempts at each passage.")
    limit: int | None = Field(None, ge=1, le=1_000_000, description="Pairs at which to end.")
    seed: int = Field(42, ge=0, lt=2**31, description="Of the order of passages, and of sampling.")
    known: Literal["mark", "drop", "ignore"] = Field(
        "mark",
        description="Pairs that the model answers without the text too: marked, dropped, or not looked for.",
    )
    max_tokens: int = Field(
        120, ge=8, le=100_000, description="Of each reply; models that think first need thousands."
    )
