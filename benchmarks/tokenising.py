"""From files to packed rows: tokens per second and memory, ours against `datasets.map` and TRL.

    python benchmarks/tokenising.py MODEL_FOLDER [--rounds 3] [--megabytes 60]

MODEL_FOLDER holds the tokenizer. The text is the shipped one with a word in twenty exchanged, so that
no two documents are equal: as JSON lines of documents for cpt, of conversations for ift. Contenders
run in turn, each in a process of its own; imports are not timed. The peer is `datasets.map` in
batches with a process for each core, the tokenizer of transformers, for conversations its chat
template with the mask of assistant tokens, then TRL's `pack_dataset`. Ours ends when every row of an
epoch has been made once. Needs `trl` and `datasets`. Memory is what the processes together hold
beyond files that are mapped (Linux).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from rounds import (
    Column,
    Figures,
    add_rounds,
    cpu_seconds,
    peer_python,
    print_heading,
    print_table,
    run_contender,
    take_turns,
)

SEQ_LEN = {"documents": 512, "conversations": 2048}
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ '<|im_start|>assistant\n' }}{% generation %}{{ message['content'] + '<|im_end|>' }}"
    "{% endgeneration %}{{ '\n' }}{% else %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def write_text(folder: Path, kind: str, megabytes: float) -> None:
    assets = Path(str(files("forgellm") / "assets"))
    texts = [file.read_text() for file in sorted(assets.rglob("*.md"))]
    words = sorted({word for text in texts for word in text.split() if word.isalpha()})
    rng = random.Random(1)

    def varied(text: str) -> str:
        parts = text.split(" ")
        for _ in range(len(parts) // 20 + 1):
            parts[rng.randrange(len(parts))] = rng.choice(words)
        return " ".join(parts)

    paragraphs = [part for text in texts for part in text.split("\n\n") if len(part) > 60]
    left = megabytes * 1e6
    folder.mkdir()
    with (folder / "rows.jsonl").open("w") as file:
        while left > 0:
            if kind == "documents":
                row: dict[str, Any] = {"text": varied(rng.choice(texts))}
            else:
                turns = []
                for _ in range(rng.choice([1, 1, 2, 3])):
                    turns.append({"role": "user", "content": varied(rng.choice(paragraphs))[:200]})
                    turns.append({"role": "assistant", "content": varied(rng.choice(paragraphs))})
                row = {"messages": turns}
            left -= file.write(json.dumps(row) + "\n")


def ours(kind: str, model: Path, data: Path, work: Path) -> Callable[[], int]:
    from forgellm.data.chat.encoding import ChatFormat
    from forgellm.data.chat.packing import PackedConversations
    from forgellm.data.chat.store import chat_store
    from forgellm.data.document_store import token_store
    from forgellm.data.packing import PackedStream
    from forgellm.data.split import all_documents
    from forgellm.data.tokenizer import Tokenizer

    tokenizer, seq_len = Tokenizer.load(model), SEQ_LEN[kind]

    def run() -> int:
        rows: PackedStream | PackedConversations
        if kind == "documents":
            store = token_store(data, tokenizer, work)
            rows = PackedStream(store.tokens, all_documents(store), seq_len, seed=0)
        else:
            form = ChatFormat(TEMPLATE, "assistant", seq_len + 1)
            store = chat_store(data, tokenizer, form, work)
            rows = PackedConversations(store, all_documents(store), seq_len, seed=0)
        for number in range(int(rows.rows_per_epoch)):
            rows.row(number)
        return len(store.tokens)

    return run


def peer(kind: str, model: Path, data: Path, work: Path) -> Callable[[], int]:
    os.environ |= {"HF_HOME": str(work), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    import datasets
    import transformers
    from trl import pack_dataset

    datasets.disable_progress_bars()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)

    def documents(batch: dict[str, list[Any]]) -> dict[str, Any]:
        ids = tokenizer(batch["text"], add_special_tokens=False)["input_ids"]
        return {"input_ids": [[*row, tokenizer.eos_token_id] for row in ids]}

    def conversations(batch: dict[str, list[Any]]) -> dict[str, Any]:
        found = tokenizer.apply_chat_template(
            batch["messages"],
            chat_template=TEMPLATE,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        return {name: found[name] for name in ("input_ids", "assistant_masks")}

    def run() -> int:
        rows = datasets.load_dataset("json", data_files=str(data / "rows.jsonl"), split="train")
        tokens = rows.map(
            documents if kind == "documents" else conversations,
            batched=True,
            num_proc=os.cpu_count(),
            remove_columns=rows.column_names,
        )
        strategy = "wrapped" if kind == "documents" else "bfd"
        packed = pack_dataset(tokens, SEQ_LEN[kind], strategy)
        return sum(len(chunk.values) for chunk in packed.data.column("input_ids").chunks)

    return run


CONTENDERS = {"ForgeLLM": ours, "datasets + trl": peer}


def held_bytes() -> int:
    """Of this process and its children, pages of files not counted, shared ones once."""
    pids, total = [os.getpid()], 0
    while pids:
        pid = pids.pop()
        try:
            pids += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue  # it has ended
        total += sum(int(line.split()[1]) * 1000 for line in lines if line.startswith("Pss_Anon"))
    return total


def measure(name: str, kind: str, model: Path, data: Path) -> Figures:
    with tempfile.TemporaryDirectory() as work:
        run = CONTENDERS[name](kind, model, data, Path(work))
        peak, is_done = 0, threading.Event()

        def watch() -> None:
            nonlocal peak
            while not is_done.wait(0.1):
                peak = max(peak, held_bytes())

        watcher = threading.Thread(target=watch)
        watcher.start()
        before, started = cpu_seconds(), time.perf_counter()
        num_tokens = run()
        seconds, cpu = time.perf_counter() - started, cpu_seconds() - before
        is_done.set()
        watcher.join()
    return {
        "rate": num_tokens / seconds,
        "cpu_rate": num_tokens / cpu,
        "peak_mb": peak / 1e6,
        "tokens": num_tokens,
    }


COLUMNS = [
    Column("rate", "tok/s", "{:,.0f}", spread=True, ratio="more"),
    Column("cpu_rate", "tok per CPU s", "{:,.0f}", ratio="more"),
    Column("peak_mb", "peak memory", "{:.0f} MB", ratio="less"),
    Column("tokens", "tokens", "{:,.0f}"),
]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--megabytes", type=float, default=60)
    parser.add_argument("--contender", nargs=3, metavar=("NAME", "KIND", "DATA"))
    add_rounds(parser)
    args = parser.parse_args()
    if args.contender:
        name, kind, data = args.contender
        print(json.dumps(measure(name, kind, args.model, Path(data))))
        return
    print_heading("Tokenising and packing", ["tokenizers", "transformers", "datasets", "trl"])
    with tempfile.TemporaryDirectory() as folder:
        for kind in SEQ_LEN:
            data = Path(folder) / kind
            write_text(data, kind, args.megabytes)
            found = take_turns(CONTENDERS, args.rounds, partial(run, args.model, kind, data))
            print_table(kind, COLUMNS, found)


def run(model: Path, kind: str, data: Path, name: str) -> Figures:
    python = sys.executable if name == "ForgeLLM" else peer_python()
    return run_contender([str(model), "--contender", name, kind, str(data)], python)


if __name__ == "__main__":
    main()
