"""What is in the datasets, and how a model would see it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Path, Query

from forgellm.catalog import ModelFolder, find_model
from forgellm.data.datasets import find_dataset, list_datasets
from forgellm.data.documents import dataset_files
from forgellm.errors import ConfigError, DatasetNotFound, ModelNotFound
from forgellm.paths import Workspace
from forgellm.schema.files import (
    DatasetInfo,
    DatasetsReply,
    PreviewBlock,
    PreviewDocument,
    PreviewReply,
)
from forgellm.schema.recipe import Recipe, TrainingType, parse_recipe
from forgellm.training.estimate import resolve_seq_length
from forgellm.web.measuring import TokenCounts, load_tokenizer, usual_model
from forgellm.web.run_figures import MB

if TYPE_CHECKING:
    from forgellm.data.batches import Batch
    from forgellm.data.preview import Preview
    from forgellm.data.tokenizer import Tokenizer

_DOCUMENTS_SHOWN = 100
_SKIPPED_SHOWN = 100

ModelName = Annotated[
    str | None,
    Query(
        min_length=1,
        max_length=400,
        description="Whose tokenizer measures; default the latest run's model, else any.",
    ),
]


def make_router(workspace: Workspace) -> APIRouter:
    router = APIRouter(prefix="/api")
    counts = TokenCounts(workspace)

    @router.get("/dataset/info")
    def info(model: ModelName = None) -> DatasetsReply:
        """Every dataset with its size, and its tokens as measured on a sample."""
        measuring = _model(model, workspace)
        found = []
        for name in list_datasets(workspace):
            try:
                found.append(_info(name, measuring, workspace, counts))
            except DatasetNotFound:  # a link that leads outside, or gone in this moment
                continue
        return DatasetsReply(datasets=found, tokenizer=measuring.name if measuring else None)

    @router.get("/datasets/{name}/preview")
    def preview(
        name: Annotated[str, Path(min_length=1, max_length=400)],
        model: ModelName = None,
        max_seq_length: Annotated[int | None, Query(ge=8, le=8192)] = None,
        blocks: Annotated[int, Query(ge=0, le=8, description="How many blocks to show.")] = 2,
        training_type: Annotated[
            TrainingType, Query(description="Read documents, conversations, or pairs.")
        ] = "cpt",
        loss_on: Annotated[
            Literal["assistant", "last", "all"], Query(description="ift: what is learned.")
        ] = "assistant",
    ) -> PreviewReply:
        """Documents, conversations or pairs with their tokens, and the first blocks of a run."""
        measuring = _model(model, workspace)
        if measuring is None:
            raise ModelNotFound("any", ["models/base/"], suggestion="Download a model first.")
        asked: dict[str, Any] = {"training_type": training_type, "loss_on": loss_on}
        asked |= {"model_name": measuring.name, "dataset": name, "max_seq_length": max_seq_length}
        return _preview(parse_recipe(asked), measuring, blocks, workspace)

    return router


def _model(name: str | None, workspace: Workspace) -> ModelFolder | None:
    return find_model(name, workspace) if name is not None else usual_model(workspace)


def _info(
    name: str, model: ModelFolder | None, workspace: Workspace, counts: TokenCounts
) -> DatasetInfo:
    folder = find_dataset(workspace, name)
    files = dataset_files(folder).files
    return DatasetInfo(
        name=name,
        path=f"dataset/{name}",
        file_count=len(files),
        total_size_mb=round(sum(file.size_bytes for file in files) / MB, 3),
        estimated_tokens=counts.estimate(name, files, model) if model else None,
    )


def _previewed(
    recipe: Recipe, tokenizer: Tokenizer, length: int, num_blocks: int, workspace: Workspace
) -> Preview:
    from forgellm.data.chat.format import chat_format
    from forgellm.data.chat.preview import preview_conversations
    from forgellm.data.chat.template import TemplateRefused
    from forgellm.data.preview import preview_dataset

    dataset = find_dataset(workspace, recipe.dataset)
    if recipe.training_type == "cpt":
        return preview_dataset(dataset, tokenizer, length, num_blocks, recipe)
    form = chat_format(recipe, tokenizer, length)
    try:
        return preview_conversations(dataset, tokenizer, form, length, num_blocks, recipe)
    except TemplateRefused as error:
        raise ConfigError.one("chat_template", f"the model's own cannot be used: {error}") from None


def _preview(
    recipe: Recipe, model: ModelFolder, num_blocks: int, workspace: Workspace
) -> PreviewReply:
    name = recipe.dataset
    length = resolve_seq_length(recipe, model.facts.context_length)
    tokenizer = load_tokenizer(model)
    found = _previewed(recipe, tokenizer, length, num_blocks, workspace)
    documents = [
        PreviewDocument(
            source=item.source, size_bytes=item.size_bytes, tokens=item.num_tokens, split=part
        )
        for item, part in zip(found.documents, found.parts, strict=True)
    ]
    return PreviewReply(
        name=name,
        tokenizer=model.name,
        max_seq_length=length,
        file_count=found.file_count,
        document_count=len(documents),
        token_count=sum(item.num_tokens for item in found.documents),
        complete=found.is_complete,
        documents=documents[:_DOCUMENTS_SHOWN],
        blocks=[
            _block(batch, lambda token: tokenizer.decode([token], skip_special=False))
            for batch in found.blocks
        ],
        skipped=found.skipped[:_SKIPPED_SHOWN],
        notes=found.notes[:_SKIPPED_SHOWN],
    )


def _block(batch: Batch, text_of: Callable[[int], str]) -> PreviewBlock:
    token_ids: list[int] = batch.tokens[0].tolist()
    return PreviewBlock(
        token_ids=token_ids,
        tokens=[text_of(token) for token in token_ids],
        segment_ids=batch.segment_ids[0].tolist(),
        loss_mask=batch.loss_mask[0].astype(int).tolist(),
    )
