"""What every model card begins with: the YAML head that the hub reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from forgellm.catalog import ModelFolder
from forgellm.catalog.licence import licence_of


def card_head(library: str, base: ModelFolder, tags: Sequence[str]) -> str:
    """Of a card of what was made of `base`; `tags` come after `forgellm`."""
    head: dict[str, Any] = {"library_name": library, "pipeline_tag": "text-generation"}
    if base.kind == "cached":  # only then is the name one that the hub knows
        head["base_model"] = base.name
    if licence := licence_of(base.path):
        head["license"] = licence
    head["tags"] = ["forgellm", *tags]
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n"


def licence_shown(base: ModelFolder) -> str:
    return licence_of(base.path) or "not stated in its files"
