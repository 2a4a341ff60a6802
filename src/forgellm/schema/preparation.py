"""Measuring, cleaning and dividing datasets: requests and replies."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from forgellm.schema.recipe import ColumnRole
from forgellm.schema.reply import Item, Reply
from forgellm.schema.request import Request

DataKind = Literal["documents", "conversations", "pairs"]
Maskable = Literal["secrets", "emails"]


class DatasetRequest(Request):
    kind: DataKind | None = Field(
        None, description="What the dataset holds; null finds out from its first rows."
    )
    columns: dict[ColumnRole, str] | None = Field(
        None,
        description="Which column of a conversation or a pair holds what, where names are unusual.",
    )


_INSPECT: dict[str, Any] = {"model": None, "kind": "documents"}


class InspectRequest(DatasetRequest, json_schema_extra={"examples": [_INSPECT]}):
    model: str | None = Field(
        None,
        min_length=1,
        max_length=400,
        description="Whose tokenizer counts; default the latest run's model, else any.",
    )
    max_seq_length: int = Field(
        2048,
        ge=8,
        le=8192,
        description="Conversations that are longer lose their last turns, pairs their first.",
    )


_DEDUP = {"similarity": 0.8}


class DedupRequest(DatasetRequest, json_schema_extra={"examples": [_DEDUP]}):
    similarity: float = Field(
        0.8,
        ge=0.5,
        le=1,
        description="From which Jaccard similarity of word 5-grams texts are nearly the same; 1 "
        "finds the same alone.",
    )


_SPLIT = {"validation_split": 0.1, "against": ["probes.json"]}


class SplitRequest(DatasetRequest, json_schema_extra={"examples": [_SPLIT]}):
    validation_split: float = Field(
        0.1, ge=0, le=0.5, description="Share held out, as in a run's recipe."
    )
    seed: int = Field(42, ge=0, lt=2**31, description="As in a run's recipe.")
    against: list[str] = Field(
        default_factory=list,
        max_length=20,
        description="Probe or benchmark files in the workspace to look for in what is trained on.",
    )


_PREPARE = {"similarity": 0.8, "mask": ["secrets"], "against": ["probes.json"]}


class PrepareRequest(DedupRequest, SplitRequest, json_schema_extra={"examples": [_PREPARE]}):
    duplicates: bool = Field(True, description="Leave out duplicates, and near ones.")
    boilerplate: bool = Field(True, description="Leave out lines that repeat at edges.")
    mask: list[Maskable] = Field(
        default_factory=list,
        max_length=2,
        description="What to replace by a placeholder; else it is only told.",
    )


_RESTORE = {"removals": ["6f1c2a9be07d"]}


class RestoreRequest(Request, json_schema_extra={"examples": [_RESTORE]}):
    removals: Literal["all"] | Annotated[list[str], Field(min_length=1, max_length=10_000)] = Field(
        description="Ids from the preparation's list, or all."
    )


class RemovalItem(Item):
    """What a preparation left out or masked."""

    id: str
    kind: Literal["duplicate", "near_duplicate", "boilerplate", "masked", "empty"]
    source: str = Field(description="File, with :row where it holds several texts.")
    lines: list[int] = Field(description="Line numbers in that text; empty for all of it.")
    text: str = Field(description="What was removed, or its beginning.")
    reason: str
    duplicate_of: str | None = Field(description="The text that was kept instead.")


class PreparationReply(Reply):
    name: str = Field(examples=["my_domain-prepared"])
    dataset: str = Field(description="The dataset it was made of.")
    kind: DataKind
    settings: dict[str, Any]
    fingerprint: str = Field(description="Of the prepared files: names and contents.")
    original_fingerprint: str
    num_read: int = Field(description="Documents, conversations or pairs in the dataset.")
    num_written: int
    num_skipped: int
    num_flags: int = Field(description="Likely secrets and e-mail addresses.")
    num_removals: int
    removals: list[RemovalItem] = Field(description="From `offset` on, at most `limit`.")
    restored: list[str]
