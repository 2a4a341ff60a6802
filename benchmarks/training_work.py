"""What the training benchmark trains on: rows of tokens, or conversations, in one file for all."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

RANK, ALPHA = 8, 16


@dataclass(frozen=True)
class Work:
    """Attributes:
    batch_size: rows a step; conversations a step where they are padded.
    seq_len: tokens a row, of packed conversations too.
    """

    title: str
    batch_size: int
    seq_len: int
    is_full: bool = False
    in_conversations: bool = False

    @property
    def learning_rate(self) -> float:
        return 1e-5 if self.is_full else 1e-4


WORKS = {
    "lora": Work("LoRA r=8, 2 x 512 tokens", 2, 512),
    "lora-2048": Work("LoRA r=8, 2 x 2,048 tokens", 2, 2048),
    "full": Work("full fine-tuning, 2 x 512 tokens", 2, 512, is_full=True),
    "ift": Work("LoRA r=8, conversations", 1, 2048, in_conversations=True),
}


def write_rows(model: Path, work: Work, steps: int, file: Path) -> None:
    """The shipped handbook, over and over. tokens [steps * batch_size, seq_len]."""
    from forgellm.data.tokenizer import Tokenizer

    folder = Path(str(files("forgellm") / "assets" / "handbook"))
    text = "\n\n".join(page.read_text("utf-8") for page in sorted(folder.glob("*.md")))
    ids = np.array(Tokenizer.load(model).encode(text), np.int64)
    np.savez(file, tokens=np.resize(ids, (steps * work.batch_size, work.seq_len)))


def write_conversations(model: Path, work: Work, steps: int, file: Path) -> None:
    """Eight conversations a step of 30 to 1,200 tokens, half of them shorter than 200: `tokens` and
    `trained` laid flat with `offsets`, and the rows that our own packing makes of them."""
    from tokenising import TEMPLATE

    from forgellm.data.chat.encoding import ChatFormat
    from forgellm.data.chat.packing import PackedConversations
    from forgellm.data.chat.store import chat_store
    from forgellm.data.split import all_documents
    from forgellm.data.tokenizer import Tokenizer

    with tempfile.TemporaryDirectory() as folder:
        dataset = Path(folder) / "dataset"
        dataset.mkdir()
        lines = [json.dumps({"messages": turns}) for turns in _conversations(8 * steps)]
        (dataset / "rows.jsonl").write_text("\n".join(lines))
        form = ChatFormat(TEMPLATE, "assistant", work.seq_len + 1)
        store = chat_store(dataset, Tokenizer.load(model), form, Path(folder) / "cache")
        packed = PackedConversations(store, all_documents(store), work.seq_len, seed=0)
        rows = [packed.row(number) for number in range(int(packed.rows_per_epoch))]
        fields = {
            name: np.concatenate([getattr(row, name) for row in rows]) for name in vars(rows[0])
        }
        kept = {name: np.array(getattr(store, name)) for name in ("tokens", "trained", "offsets")}
    np.savez(file, **kept, **{f"packed_{name}": value for name, value in fields.items()})


def _conversations(count: int) -> list[list[dict[str, str]]]:
    folder = Path(str(files("forgellm") / "assets" / "handbook"))
    words = " ".join(page.read_text("utf-8") for page in sorted(folder.glob("*.md"))).split(" ")
    rng = np.random.default_rng(1)
    conversations = []
    for _ in range(count):
        length = int(np.exp(rng.uniform(np.log(20), np.log(800))))
        start = int(rng.integers(0, len(words) - 1000))
        question, answer = words[start : start + length // 4], words[start + length // 4 :][:length]
        conversations.append(
            [
                {"role": "user", "content": " ".join(question).strip() or "Go on."},
                {"role": "assistant", "content": " ".join(answer).strip()},
            ]
        )
    return conversations


def write_work(model: Path, work: Work, steps: int, file: Path) -> None:
    write = write_conversations if work.in_conversations else write_rows
    write(model, work, steps, file)


def read_work(file: Path) -> dict[str, Any]:
    with np.load(file) as arrays:
        return dict(arrays)


def conversations_of(arrays: dict[str, Any]) -> dict[str, list[list[int]]]:
    """As TRL wants them: a list of tokens and one of what is learned for each conversation."""
    ends = arrays["offsets"][1:-1]
    return {
        "input_ids": [part.tolist() for part in np.split(arrays["tokens"].astype(int), ends)],
        "assistant_masks": [
            part.tolist() for part in np.split(arrays["trained"].astype(int), ends)
        ],
    }
