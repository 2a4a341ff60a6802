"""What the replies of the REST API have in common."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Reply(BaseModel):
    """A reply that says what was asked. Failures leave as the error envelope instead."""

    model_config = ConfigDict(protected_namespaces=())

    success: Literal[True] = True


class Item(BaseModel):
    """A part of a reply."""

    model_config = ConfigDict(protected_namespaces=())
