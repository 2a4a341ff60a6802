"""Replies about what lies on the disk: models, datasets, folders. 1 MB is 10^6 bytes, 1 GB 10^9."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from forgellm.schema.reply import Item, Reply

ModelType = Literal["base", "instruct"]


class LocalModel(Item):
    """A model that can be loaded: from the hub cache, or from `models/base/`."""

    name: str = Field(examples=["mlx-community/Qwen3-4B-bf16"])
    type: ModelType = Field(description="By whether the model has a chat template.")
    size_gb: float
    cached: bool = Field(
        default=True, description="On this machine, as is every model listed here."
    )
    path: str | None = Field(description="Relative to models/; null in the hub cache.")
    created_at: str


class TrainedModel(Item):
    """A run that has checkpoints, or a published model."""

    name: str
    path: str = Field(examples=["cpt/Qwen3_4B_bf16_lr5e_05_bs2_iter500"])
    size_gb: float
    created_at: str = Field(examples=["2025-01-15T10:30:00Z"])
    type: ModelType | None = Field(description="Null for runs, whose type is their base model's.")


class ModelsReply(Reply):
    cached_models: list[LocalModel]
    cpt_models: list[TrainedModel]
    ift_models: list[TrainedModel]
    dpo_models: list[TrainedModel]
    orpo_models: list[TrainedModel]
    published_models: list[TrainedModel]


class ModelRemovedReply(Reply):
    message: str
    model_name: str
    freed_mb: float


class DatasetInfo(Item):
    name: str = Field(examples=["my_domain"])
    path: str = Field(examples=["dataset/my_domain"])
    file_count: int = Field(description="Files that can be read as documents.")
    total_size_mb: float
    estimated_tokens: int | None = Field(
        description="Measured on a sample with a tokenizer; null where no model is there."
    )


class DatasetsReply(Reply):
    datasets: list[DatasetInfo]
    tokenizer: str | None = Field(description="The model whose tokenizer measured the tokens.")


class PreviewDocument(Item):
    source: str = Field(description="File, with :line or :row where it holds several documents.")
    size_bytes: int
    tokens: int = Field(description="Including the token that ends the document.")
    split: Literal["train", "validation", "both"]


class PreviewBlock(Item):
    """One row of a batch. The four lists are of the same length."""

    token_ids: list[int]
    tokens: list[str] = Field(description="Text of each token.")
    segment_ids: list[int] = Field(description="Which document of the row, from 0.")
    loss_mask: list[int] = Field(description="1 where the token after this one is learned.")


class PreviewReply(Reply):
    name: str
    tokenizer: str
    max_seq_length: int
    file_count: int
    document_count: int = Field(description="Documents looked at.")
    token_count: int = Field(description="Tokens of the documents looked at.")
    complete: bool = Field(description="Whether that is the whole dataset.")
    documents: list[PreviewDocument]
    blocks: list[PreviewBlock]
    skipped: list[str] = Field(description="What cannot be read, and why.")
    notes: list[str] = Field(
        default_factory=list, description="What of the rows is not used, and of how many."
    )


class FileChangedReply(Reply):
    message: str
    name: str = Field(description="The dataset.")
    file: str
    size_mb: float


class FolderEntry(Item):
    name: str
    type: Literal["directory"] = "directory"
    file_count: int
    size_mb: float
    complete: bool = Field(description="False where counting was cut short: there is more.")


class FileEntry(Item):
    name: str
    type: Literal["file"] = "file"
    size_mb: float


class BrowseReply(Reply):
    path: str = Field(examples=["dataset"])
    directories: list[FolderEntry]
    files: list[FileEntry]
    truncated: bool = Field(description="Whether the folder has more entries than are shown.")
