"""What was made from what."""

from __future__ import annotations

from pydantic import Field

from forgellm.schema.reply import Item, Reply


class FamilyMember(Item):
    """A model, a run, a checkpoint that something was made of, or files for other programs."""

    name: str = Field(
        description="What to load it by; of a checkpoint `cpt/RUN@300`, of files for other "
        "programs `exported/NAME`."
    )
    kind: str = Field(
        description="base, cached, run, checkpoint, what it was made as (published, quantised, "
        "gguf ...), or missing: something was made of it, and it is not here any more."
    )
    made_from: list[str] = Field(default_factory=list, description="Names of other members.")
    command: str | None = Field(default=None, description="What would make it again.")
    created_at: str | None = None


class FamilyReply(Reply):
    members: list[FamilyMember]
