"""Several checkpoints combined to one model: the request and its reply."""

from __future__ import annotations

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from forgellm.schema.request import AllowChangedBase, Request

CombineMethod = Literal["linear", "ties", "dare_linear", "dare_ties"]
COMBINE_METHODS: tuple[CombineMethod, ...] = get_args(CombineMethod)
MAX_COMBINED = 8

_COMBINE = {
    "checkpoints": ["my_model@300", "my_other_model"],
    "method": "ties",
    "name": "both",
}


class CombineRequest(Request, json_schema_extra={"examples": [_COMBINE]}):
    checkpoints: list[Annotated[str, Field(min_length=1, max_length=400)]] = Field(
        min_length=2,
        max_length=MAX_COMBINED,
        description="Runs of one base model, by name or id: RUN (its best checkpoint) or RUN@ITERATION.",
    )
    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,99}$",
        description="Of the folder in models/published/.",
    )
    method: CombineMethod = Field(
        "linear",
        description="How changes of the same weight are combined: weighted sum; TIES; DARE before either.",
    )
    weights: list[Annotated[float, Field(ge=-10, le=10)]] | None = Field(
        None,
        min_length=2,
        max_length=MAX_COMBINED,
        description="One for each checkpoint; default: 1 each with ties and dare_ties, else shares of 1.",
    )
    density: float = Field(
        0.5, gt=0, le=1, description="Share of each change that ties and dare keep."
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Of what dare keeps.")
    allow_changed_base: AllowChangedBase = False

    @model_validator(mode="after")
    def _one_weight_each(self) -> Self:
        if self.weights is not None and len(self.weights) != len(self.checkpoints):
            raise ValueError("weights: give one for each of checkpoints")
        return self

    def weights_used(self) -> list[float]:
        if self.weights is not None:
            return self.weights
        share = 1.0 if self.method in ("ties", "dare_ties") else 1.0 / len(self.checkpoints)
        return [share] * len(self.checkpoints)
