"""What every body of a request has in common."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

AllowChangedBase = Annotated[
    bool,
    Field(
        description="Go on although the model under the run's weights is not, to the bit, the one that "
        "they were trained on."
    ),
]
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

    @model_validator(mode="before")
    @classmethod
    def _whole_numbers(cls, fields: Any) -> Any:
        # All at once: a validator called for each field would take most of the time of a record.
        if not isinstance(fields, dict):
            return fields
        floats = {name: value for name, value in fields.items() if isinstance(value, float)}
        return fields | {name: as_whole(value) for name, value in floats.items()}
