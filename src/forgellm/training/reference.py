"""What the model said of each pair before training: DPO compares with it to the end of the run.

It is kept in the run's folder, as the weights that a run began with may be gone when it is resumed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from forgellm.atomic import storage_errors, sync
from forgellm.data.prepared import PreparedData
from forgellm.engines.base import TrainEngine
from forgellm.errors import CheckpointCorrupt
from forgellm.runs.manifest import sha256
from forgellm.runs.seal import REFERENCE_NAME

_TENSOR = "log_probs"


def score_pairs(
    engine: TrainEngine, data: PreparedData, should_stop: Callable[[], bool]
) -> NDArray[np.float32] | None:
    """[pairs, 2] log-probability of the chosen and of the rejected answer by the weights as they
    are, NaN for pairs that the run will not meet; None where a stop request cut it short."""
    reference = np.full((data.summary["documents"], 2), np.nan, dtype=np.float32)
    with engine.evaluating() as model:
        for batch in data.pair_batches():
            if should_stop():
                return None
            there = batch.pairs >= 0
            log_probs = batch.answer_sums(model.token_log_probs(batch))
            reference[batch.pairs[there]] = log_probs[there]
    return reference


def write_reference(folder: Path, reference: NDArray[np.float32]) -> None:
    """Raises DiskFull."""
    with storage_errors(REFERENCE_NAME):
        (folder / REFERENCE_NAME).write_bytes(save({_TENSOR: reference}))
        sync(folder / REFERENCE_NAME)


def read_reference(folder: Path, digest: str | None) -> NDArray[np.float32]:
    """`digest` is its sha256 as the run's record has it, if it does. Raises CheckpointCorrupt."""
    try:
        if digest is not None and sha256(folder / REFERENCE_NAME) != digest:
            raise KeyError("it is not as it was written")
        reference: NDArray[np.float32] = load_file(folder / REFERENCE_NAME)[_TENSOR]
    except (OSError, SafetensorError, KeyError) as error:
        raise CheckpointCorrupt(
            f"{REFERENCE_NAME} cannot be read, without which the run cannot go on: {error}",
            suggestion="Start a new run, from this one's best checkpoint if you like (base_run).",
        ) from None
    return reference
