"""A workspace with a tiny model, its tokenizer and a few documents: all real, all small."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from forgellm.paths import Workspace
from forgellm.schema.recipe import Recipe, parse_recipe
from tiny_model import build_tiny_model
from tiny_tokenizer import build_tiny_tokenizer

WORDS = "the tide lamp keeper walks north over wet stones and counts eleven green boats".split()


def build_tiny_workspace(root: Path, *, num_documents: int = 24, **model_changes: Any) -> Workspace:
    """`models/base/tiny` and `dataset/notes`."""
    workspace = Workspace(root.resolve())
    model = workspace.base_models / "tiny"
    model.mkdir(parents=True)
    build_tiny_tokenizer(model)
    size = len(json.loads((model / "tokenizer.json").read_text())["model"]["vocab"])
    build_tiny_model(model, vocab_size=max(400, size), **model_changes)
    write_documents(workspace, "notes", num_documents)
    return workspace


def build_two_models(root: Path) -> Workspace:
    """`models/base/tiny` and `models/base/other`, unlike each other, and no data."""
    for name in ("tiny", "other"):
        folder = build_tiny_tokenizer(root / "models" / "base" / name)
        build_tiny_model(folder, vocab_size=400, seed=len(name))
    return Workspace(root)


def write_documents(workspace: Workspace, name: str, num_documents: int) -> Path:
    folder = workspace.datasets / name
    folder.mkdir(parents=True)
    rng = random.Random(7)
    for index in range(num_documents):
        text = " ".join(rng.choice(WORDS) for _ in range(60))
        (folder / f"{index:03d}.txt").write_text(f"Note {index}.\n\n{text}.\n")
    return folder


def write_conversations(workspace: Workspace, name: str, num_rows: int = 40) -> Path:
    """A dataset whose answers can be learned: each follows from its question."""
    folder = workspace.datasets / name
    folder.mkdir(parents=True)
    rng = random.Random(5)
    rows = []
    for _ in range(num_rows):
        first, second = rng.choice(WORDS), rng.choice(WORDS)
        turns = [("user", f"After {first}?"), ("assistant", f"{first} and {first}.")]
        turns += [("user", f"And {second}?"), ("assistant", f"{second} and {second}.")]
        rows.append({"messages": [{"role": r, "content": c} for r, c in turns]})
    (folder / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def tiny_recipe(**fields: Any) -> Recipe:
    """A run of seconds in float32."""
    return parse_recipe(
        {
            "model_name": "tiny",
            "dataset": "notes",
            "dtype": "float32",
            "max_iterations": 12,
            "batch_size": 2,
            "max_seq_length": 64,
            "learning_rate": 1e-2,
            "lora_rank": 4,
            "save_every": 4,
            "warmup_steps": 2,
            **fields,
        }
    )


# All weights learn a few texts by heart, which says nothing of the one that validates.
MEMORISING: dict[str, Any] = {
    "fine_tune_type": "full",
    "learning_rate": 5e-3,
    "max_iterations": 200,
    "save_every": 5,
    "data_mixture_ratio": 1.0,
    "overfitting_threshold": 0.05,
    "early_stopping_patience": 1,
}


def write_unlike_notes(workspace: Workspace) -> None:
    """Texts that have little in common, in the place of the dataset `notes`."""
    folder = workspace.datasets / "notes"
    for file in folder.iterdir():
        file.unlink()
    for index in range(4):
        text = " ".join(str(index * 7919 + k * k) for k in range(80))
        (folder / f"{index}.txt").write_text(text)
