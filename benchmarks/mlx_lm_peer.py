"""LoRA training and decoding on MLX, ours against mlx-lm's own, on one model and one text.

    python benchmarks/mlx_lm_peer.py MODEL [--seq-len 2048] [--batch-size 2] [--steps 10] [--rounds 3]

MODEL is a folder in Hugging Face or mlx-lm layout. Training: LoRA rank 8 on all linear layers, the
same rows of tokens for both, `mlx_lm.tuner.trainer.train` as `mlx_lm.lora` calls it. Decoding: one
prompt, greedy, as `mlx_lm.generate` does it, and not a prompt that was read before. mlx-lm computes
in the type of the file, mostly bfloat16; ours in bfloat16, and in float32 for comparison. Each
contender runs in a process of its own, in turn; figures are medians over the rounds with their
spread, and the highest peak that MLX reports. On a processor, where MLX takes seconds for a step of
few tokens, the defaults are smaller.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from rounds import (
    Column,
    Figures,
    add_rounds,
    print_heading,
    print_table,
    run_contender,
    take_turns,
)

RANK, ALPHA, LEARNING_RATE = 8, 16, 1e-5


@dataclass(frozen=True)
class Work:
    model: str
    seq_len: int
    batch_size: int
    steps: int
    prompt_tokens: int
    max_tokens: int
    grad_checkpoint: bool


def token_rows(work: Work, num_rows: int, length: int) -> list[list[int]]:
    """Rows of the shipped handbook's tokens, repeated where it is too short."""
    from forgellm.data.tokenizer import Tokenizer

    folder = resources.files("forgellm") / "assets" / "handbook"
    texts = [file.read_text("utf-8") for file in sorted(folder.iterdir(), key=lambda f: f.name)]
    ids = Tokenizer.load(Path(work.model)).encode("\n\n".join(texts))
    ids *= -(-num_rows * length // len(ids))
    return [ids[n * length : (n + 1) * length] for n in range(num_rows)]


def train_ours(dtype: str, work: Work) -> dict[str, float]:
    import numpy as np

    from forgellm.data.batches import Batch
    from forgellm.engines.mlx.train import MlxTrainEngine
    from forgellm.schema.recipe import Recipe

    recipe = Recipe(
        model_name="m",
        dataset="d",
        lora_rank=RANK,
        lora_alpha=ALPHA,
        batch_size=work.batch_size,
        grad_checkpoint=work.grad_checkpoint,
        dtype=dtype,
    )
    engine = MlxTrainEngine(recipe.resolved(), Path(work.model))
    rows = np.array(token_rows(work, work.batch_size * work.steps, work.seq_len + 1), np.int32)
    seconds = []
    for step in range(-2, work.steps):  # two to warm up
        part = rows[(step % work.steps) * work.batch_size :][: work.batch_size]
        tokens, targets = np.ascontiguousarray(part[:, :-1]), np.ascontiguousarray(part[:, 1:])
        batch = Batch(tokens, targets, np.ones(tokens.shape, np.float32), np.zeros_like(tokens))
        started = time.perf_counter()
        engine.step(batch, LEARNING_RATE, update=True)
        metrics = engine.read_metrics()  # waits for the device
        if step >= 0:
            seconds.append(time.perf_counter() - started)
    per_step = work.batch_size * work.seq_len
    return _figures([per_step / s for s in seconds], metrics.peak_memory_bytes)


def train_mlx_lm(work: Work) -> dict[str, float]:
    import mlx.core as mx
    import mlx.optimizers as optim
    from mlx_lm.tuner.callbacks import TrainingCallback
    from mlx_lm.tuner.trainer import TrainingArgs, train
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import load_model

    model, _ = load_model(Path(work.model))
    model.freeze()
    settings = {"rank": RANK, "scale": ALPHA / RANK, "dropout": 0.0}
    linear_to_lora_layers(model, len(model.layers), settings)
    rows = [(row, 0) for row in token_rows(work, work.batch_size * work.steps, work.seq_len + 1)]
    reports: list[dict[str, Any]] = []

    class Reports(TrainingCallback):  # type: ignore[misc]
        def on_train_loss_report(self, info: dict[str, Any]) -> None:
            reports.append(info)

    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArgs(
            batch_size=work.batch_size,
            iters=work.steps + 2,
            steps_per_report=1,
            steps_per_save=10**9,
            max_seq_length=work.seq_len + 1,
            adapter_file=str(Path(folder) / "adapters.safetensors"),
            grad_checkpoint=work.grad_checkpoint,
        )
        optimizer = optim.AdamW(learning_rate=LEARNING_RATE)
        train(model, optimizer, rows, args=args, training_callback=Reports())
    rates = [report["tokens_per_second"] for report in reports[2:]]
    return _figures(rates, mx.get_peak_memory())


def decode_ours(dtype: str, work: Work) -> dict[str, float]:
    from forgellm.engines.mlx.generate import MlxGenerateEngine
    from forgellm.schema.generation import Sampling

    engine = MlxGenerateEngine(Path(work.model), None, dtype=dtype)
    sampling = Sampling(temperature=0, repetition_penalty=1, max_tokens=work.max_tokens)
    return _decoding(work, lambda prompt: engine.generate(prompt, sampling, frozenset()))


def decode_mlx_lm(work: Work) -> dict[str, float]:
    import mlx.core as mx
    from mlx_lm.generate import generate_step, wired_limit
    from mlx_lm.utils import load_model

    model, _ = load_model(Path(work.model))

    def answer(prompt: list[int]) -> Any:
        return generate_step(mx.array(prompt), model, max_tokens=work.max_tokens)

    with wired_limit(model):
        return _decoding(work, answer)


def _decoding(work: Work, answer: Callable[[list[int]], Any]) -> dict[str, float]:
    """Tokens per second after the first token, and the seconds to that one, of a second answer."""
    import mlx.core as mx

    # Two prompts, since ours keeps what it has read of the first.
    for prompt in token_rows(work, 2, work.prompt_tokens):
        started = time.perf_counter()
        count, first = 0, started
        for _token in answer(prompt):
            count += 1
            first = time.perf_counter() if count == 1 else first
        ended = time.perf_counter()
    rate = (count - 1) / (ended - first)
    return _figures([rate], mx.get_peak_memory()) | {"first_token_seconds": first - started}


def _figures(rates: list[float], peak_bytes: int) -> dict[str, float]:
    return {"rate": statistics.median(rates), "peak_gb": peak_bytes / 1e9}


COLUMNS = [
    Column("rate", "tok/s", spread=True, ratio="more"),
    Column("peak_gb", "peak of MLX", "{:.2f} GB", ratio="less"),
    Column("first_token_seconds", "first token", "{:.2f} s"),
]
ON_A_GPU = sys.platform == "darwin"  # elsewhere MLX computes on the processor, slowly
CONTENDERS = {
    "training": {
        "ForgeLLM, bfloat16": partial(train_ours, "bfloat16"),
        "ForgeLLM, float32": partial(train_ours, "float32"),
        "mlx_lm.lora": train_mlx_lm,
    },
    "decoding": {
        "ForgeLLM, bfloat16": partial(decode_ours, "bfloat16"),
        "ForgeLLM, float32": partial(decode_ours, "float32"),
        "mlx_lm.generate": decode_mlx_lm,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--seq-len", type=int, default=2048 if ON_A_GPU else 128)
    parser.add_argument("--batch-size", type=int, default=2 if ON_A_GPU else 1)
    parser.add_argument("--steps", type=int, default=10 if ON_A_GPU else 2)
    parser.add_argument("--prompt-tokens", type=int, default=512 if ON_A_GPU else 64)
    parser.add_argument("--max-tokens", type=int, default=256 if ON_A_GPU else 16)
    parser.add_argument("--grad-checkpoint", action="store_true")
    add_rounds(parser)
    parser.add_argument("--contender", nargs=2, metavar=("WORK", "NAME"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    work = Work(**{name: getattr(args, name) for name in Work.__dataclass_fields__})
    if args.contender:
        kind, name = args.contender
        print("\n" + json.dumps(CONTENDERS[kind][name](work)))
        return
    fields = ", ".join(f"{name} {value}" for name, value in asdict(work).items() if name != "model")
    print_heading(f"MLX, {Path(work.model).name}", ["mlx", "mlx-lm"], sys.executable)
    print(f"\n{fields}")
    for kind, contenders in CONTENDERS.items():
        print_table(kind, COLUMNS, take_turns(contenders, args.rounds, partial(run, kind)))


def run(kind: str, name: str) -> Figures:
    return run_contender([*sys.argv[1:], "--contender", kind, name])


if __name__ == "__main__":
    main()
