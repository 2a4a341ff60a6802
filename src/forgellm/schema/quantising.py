"""A model with its weights in a few bits: the request and what a finished job tells."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from forgellm.schema.publishing import Verification
from forgellm.schema.reply import Item
from forgellm.schema.request import Request

_QUANTISE = {"model_name": "published/my_model", "bits": 4, "group_size": 64}


class QuantiseRequest(Request, json_schema_extra={"examples": [_QUANTISE]}):
    model_name: str = Field(
        min_length=1, max_length=1000, description="What the model is loaded by."
    )
    bits: Literal[4, 8] = Field(4, description="Of each weight.")
    group_size: Literal[32, 64, 128] = Field(
        64, description="Weights that share a scale. Fewer are more exact and take more space."
    )


class ModelMeasures(Item):
    size_gb: float = Field(description="Of the weight files.")
    perplexity: float | None = Field(description="On general text; null where not measured.")
    tokens_per_second: float | None = Field(
        description="Of one answer, on the machine that quantised; null where not measured."
    )


class QuantisedModel(Item):
    """A quantised model and how it compares with what it was made of."""

    model_name: str = Field(description="What to load it by.")
    published_model_path: str
    readme_path: str
    bits: int
    group_size: int
    num_quantised: int = Field(description="Matrices that were rounded.")
    num_matrices: int = Field(description="All of them; rows of the others are no whole groups.")
    before: ModelMeasures
    after: ModelMeasures
    verification: Verification | None = Field(
        description="null where the model itself does not fit into memory."
    )
    engine: str | None = Field(description="What measured it.")
