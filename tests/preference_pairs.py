"""Batches of pairs without a dataset, and preference datasets that can be learned."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np

from forgellm.data.batches import PairBatch
from forgellm.paths import Workspace
from tiny_model import random_batch
from tiny_workspace import WORDS

# (length of the question, of the chosen and of the rejected answer) of each pair of each row
Shape = list[list[tuple[int, int, int]]]


def random_pairs(shape: Shape, seed: int = 0, padding: int = 0) -> PairBatch:
    """Rows of random pairs; the rows of `shape` must take the same number of tokens."""
    lengths = [[n for q, c, r in row for n in (q + c, q + r)] for row in shape]
    batch = random_batch(lengths, seed=seed, padding=padding)
    pairs = np.full((len(shape), max(map(len, shape))), -1, dtype=np.int64)
    number = 0
    for row, triples in enumerate(shape):
        column = 0
        for place, (asked, chosen, rejected) in enumerate(triples):
            start = batch.tokens[row, column : column + asked].copy()
            for answer in (chosen, rejected):
                batch.tokens[row, column : column + asked] = start
                batch.loss_mask[row, column : column + asked - 1] = 0
                column += asked + answer
            pairs[row, place] = number
            number += 1
    batch.targets[:, :-1] = batch.tokens[:, 1:]
    batch.targets[batch.loss_mask == 0] = 0
    reference = np.zeros((*pairs.shape, 2), dtype=np.float32)
    return PairBatch(**vars(batch), pairs=pairs, reference=reference)


def answers_of(batch: PairBatch) -> list[tuple[list[int], list[int], list[int]]]:
    """(question, chosen, rejected) as token ids of each pair, in order."""
    found = []
    for row, numbers in enumerate(batch.pairs):
        for place in range(int((numbers >= 0).sum())):
            sides = []
            for segment in (2 * place, 2 * place + 1):
                inside = batch.segment_ids[row] == segment
                tokens = batch.tokens[row][inside].tolist()
                num_learned = int(batch.loss_mask[row][inside].sum())
                sides.append((tokens[:-num_learned], tokens[-num_learned:]))
            (question, chosen), (again, rejected) = sides
            assert question == again
            found.append((question, chosen, rejected))
    return found


def write_preferences(workspace: Workspace, name: str, num_rows: int = 40) -> Path:
    """A dataset whose preference can be learned: the answer that repeats the word is better."""
    folder = workspace.datasets / name
    folder.mkdir(parents=True)
    rng = random.Random(5)
    rows = []
    for _ in range(num_rows):
        word, other = rng.sample(WORDS, 2)
        good, bad = f"{word} and {word}.", f"no {other}."
        rows.append({"prompt": f"After {word}?", "chosen": good, "rejected": bad})
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
