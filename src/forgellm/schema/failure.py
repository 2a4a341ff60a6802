"""The reply of every failure, on both servers."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Failure(BaseModel):
    """The spec's error envelope."""

    model_config = ConfigDict(extra="forbid")

    success: Literal[False]
    error: str = Field(description="What was wrong.", examples=["Model not found"])
    error_code: str = Field(pattern="^[A-Z_]+$", examples=["MODEL_NOT_FOUND"])
    details: dict[str, Any] = Field(description="Where we looked, or which fields are wrong.")
    suggestion: str = Field(description="What to do about it; may be empty.")
