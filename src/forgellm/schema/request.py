"""What every body of a request has in common."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

_EXACT = 2.0**53  # beyond it a float may stand for an integer that it is not


def as_whole(value: Any) -> Any:
    """JSON has one kind of number: 5.0 is as good an integer as 5."""
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) < _EXACT
    return int(value) if is_whole else value


class Request(BaseModel):
    """Takes the types that its schema says and no others: no `"yes"` or 1 for true, no `"5"` for 5."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=()
    )

    @field_validator("*", mode="before")
    @classmethod
    def _whole_numbers(cls, value: Any) -> Any:
        return as_whole(value)
