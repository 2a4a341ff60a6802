"""Which files can hold conversations or pairs, and what is said where there are none."""

from __future__ import annotations

from pathlib import Path

from forgellm.data.documents import Skipped, dataset_files
from forgellm.data.kinds import OF_DOCUMENTS
from forgellm.data.left_out import nothing_to_train
from forgellm.data.reading.row_readers import ROW_READERS
from forgellm.schema.recipe import Recipe


def require_row_files(dataset: Path, recipe: Recipe) -> None:
    """Raises DataError if no file of the dataset can hold the recipe's rows; none is opened."""
    listing = dataset_files(dataset)
    if not any(file.path.suffix.lower() in ROW_READERS for file in listing.files):
        others = [Skipped(file.name, OF_DOCUMENTS) for file in listing.files]
        raise nothing_to_train(recipe, [*listing.skipped, *others], ROW_READERS)
