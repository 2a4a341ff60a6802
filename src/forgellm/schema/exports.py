"""Files for other programs, made of models: requests and replies."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field

from forgellm.schema.reply import Item, Reply
from forgellm.schema.request import AllowChangedBase, Request

AdapterFormat = Literal["peft", "mlx", "gguf-lora"]
ADAPTER_FORMATS: tuple[str, ...] = get_args(AdapterFormat)

_EXPORT = {"model_name": "published/my_model", "format": "gguf", "type": "Q8_0"}


class ExportRequest(Request, json_schema_extra={"examples": [_EXPORT]}):
    model_name: str = Field(
        min_length=1,
        max_length=1000,
        description="What the model is loaded by; for an adapter alone RUN (its best checkpoint) or "
        "RUN@ITERATION.",
    )
    format: Literal["gguf"] | AdapterFormat = Field(
        description="gguf: a whole model. peft, mlx, gguf-lora: the adapter of a checkpoint."
    )
    type: str = Field(
        "Q8_0",
        pattern=r"^[A-Z0-9_]{1,20}$",
        description="What a GGUF model's weights are stored in, such as BF16, Q8_0 or Q4_K_M.",
    )
    allow_changed_base: AllowChangedBase = False


class ExportItem(Item):
    """A folder in `models/exported/`."""

    name: str
    path: str = Field(examples=["models/exported/my_model-gguf-q8_0"])
    kind: str = Field(description="What it was made as, such as gguf or peft.")
    made_from: list[str] = Field(description="Names of models and checkpoints.")
    size_gb: float
    files: list[str]
    created_at: str


class ExportsReply(Reply):
    exports: list[ExportItem] = Field(description="Newest first.")


class ExportRemovedReply(Reply):
    message: str
    name: str
    freed_mb: float
