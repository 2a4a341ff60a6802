"""Tokens per second and peak memory of LoRA training, ours against a plain PEFT loop.

    python benchmarks/train_step.py [--rounds 3] [--steps 4] [--dtype float32]

The model has SmolLM2-135M's shape and random weights; rows are 512 tokens, batch 2 and 4, rank 8 on
all linear layers. Each contender runs in a process of its own, in turn, and reports its median step.
The peer is what a careful user writes without us: transformers with SDPA, PEFT's LoRA, AdamW, and
the loss that transformers computes. Trainer frameworks come with the benchmark issue.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SHAPE = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
SEQ_LEN = 512


def build_model(folder: Path) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE))
    model.to(torch.bfloat16).save_pretrained(folder)


def timed(steps: int, step: Any) -> list[float]:
    seconds = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return seconds[1:]  # the first one warms up


def ours(folder: Path, batch_size: int, steps: int, dtype: str) -> dict[str, Any]:
    import numpy as np

    from forgellm.data.batches import Batch
    from forgellm.engines.torch.train import TorchTrainEngine
    from forgellm.schema.recipe import Recipe

    recipe = Recipe(model_name="m", dataset="d", dtype=dtype, lora_rank=8, lora_alpha=16)  # type: ignore[arg-type]
    engine = TorchTrainEngine(recipe.resolved(), folder)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 49152, (batch_size, SEQ_LEN), dtype=np.int32)
    mask = np.ones(tokens.shape, dtype=np.float32)
    batch = Batch(tokens, np.roll(tokens, -1, 1), mask, np.zeros_like(tokens))
    seconds = timed(steps, lambda: engine.step(batch, 1e-4, update=True))
    return {"seconds": seconds, "peak_bytes": engine.read_metrics().peak_memory_bytes}


def peft_loop(folder: Path, batch_size: int, steps: int, dtype: str) -> dict[str, Any]:
    import peft
    import torch
    import transformers

    from forgellm.engines.torch.memory import peak_bytes

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, config).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    ids = torch.randint(0, 49152, (batch_size, SEQ_LEN))

    def step() -> None:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return {"seconds": timed(steps, step), "peak_bytes": peak_bytes(torch.device("cpu"))}


CONTENDERS = {"forgellm": ours, "peft loop": peft_loop}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--contender", nargs=3, metavar=("NAME", "FOLDER", "BATCH"))
    args = parser.parse_args()
    if args.contender:
        name, folder, batch = args.contender
        print(json.dumps(CONTENDERS[name](Path(folder), int(batch), args.steps, args.dtype)))
        return
    with tempfile.TemporaryDirectory() as folder:
        build_model(Path(folder))
        for batch in (2, 4):
            rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
            for _ in range(args.rounds):
                for name in CONTENDERS:
                    rounds[name].append(measure(name, folder, batch, args))
            for name, found in rounds.items():
                print(row(name, batch, found))


def measure(name: str, folder: str, batch: int, args: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--steps", str(args.steps), "--dtype", args.dtype]
    done = subprocess.run(
        [*command, "--contender", name, folder, str(batch)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def row(name: str, batch: int, found: list[dict[str, Any]]) -> str:
    rates = [batch * SEQ_LEN / statistics.median(f["seconds"]) for f in found]
    peak = max(f["peak_bytes"] for f in found) / 1e9
    spread = f"{min(rates):.0f} to {max(rates):.0f}"
    return f"{name:10} batch {batch} x {SEQ_LEN}: {statistics.median(rates):5.0f} tok/s ({spread}), peak {peak:.2f} GB"


if __name__ == "__main__":
    main()
