"""Pushing to the hub: the request, and what came of it."""

from __future__ import annotations

from pydantic import Field

from forgellm.schema.publishing import HUB_ID_PART
from forgellm.schema.reply import Item
from forgellm.schema.request import Request

_PUSH = {"model_name": "published/my-model", "repo_id": "me/my-model", "dry_run": True}


class PushRequest(Request, json_schema_extra={"examples": [_PUSH]}):
    model_name: str = Field(
        min_length=1, max_length=1000, description="`published/NAME` or `exported/NAME`."
    )
    repo_id: str = Field(
        max_length=200,
        pattern=rf"^{HUB_ID_PART}/{HUB_ID_PART}$",
        description="Where to on the hub: `owner/name`.",
    )
    private: bool = Field(True, description="A new repository is private unless this is false.")
    dry_run: bool = Field(False, description="Only say what would be sent; nobody is asked.")


class PushedFile(Item):
    name: str
    size_bytes: int


class PushResult(Item):
    repo_id: str
    private: bool
    files: list[PushedFile]
    commit_url: str | None = Field(description="null for a dry run.")
