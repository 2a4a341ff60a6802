"""Training on a GPU, ours against Unsloth and against TRL with Liger's kernels, on random weights.

    python benchmarks/gpu_training.py TOKENIZER_FOLDER [--shape 0.6B 4B 8B] [--work lora full]
        [--seq-len 2048] [--batch-size 4] [--steps 12] [--rounds 3] [--unsloth-python PATH]

TOKENIZER_FOLDER is any model; its tokenizer's files go beside weights drawn at random in Qwen3's
shapes. All train on the same rows of random tokens, bfloat16, LoRA of rank 16 on all linear layers or
all weights, each in a process of its own, in turn. The first three steps warm up. Memory is what torch
has reserved of the GPU at most. Utilisation counts 6 operations for each parameter and token, 4 with
frozen weights, and those of causal attention, against `--peak-tflops` (989: H100 and H200, dense
bfloat16). Liger needs `pip install liger-kernel` in the peers' environment; Unsloth brings versions of
its own, so it runs in the environment of `--unsloth-python`.

`--shape tiny` tries the script out, on a processor, too.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rounds import (
    Column,
    Figures,
    add_rounds,
    peer_python,
    print_heading,
    print_table,
    run_contender,
    take_turns,
)
from steps import StepLog, callback_of, whole_rows

RANK, ALPHA, WARM_UP = 16, 16, 3
VOCAB_SIZE = 151_936
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16},
    "0.6B": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
             "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128},
    "4B": {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
           "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128},
    "8B": {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
           "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
           "tie_word_embeddings": False},
}  # fmt: skip
COLUMNS = [
    Column("rate", "tok/s", "{:,.0f}", spread=True, ratio="more"),
    Column("utilisation", "utilisation", "{:.0f} %"),
    Column("peak_gb", "peak of the GPU", "{:.2f} GB", ratio="less"),
    Column("last_loss", "last loss", "{:.4f}"),
]


@dataclass(frozen=True)
class Work:
    model: str
    is_full: bool
    seq_len: int
    batch_size: int
    steps: int
    grad_checkpoint: bool

    def rows(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """[steps * batch_size, seq_len] tokens."""
        size = (self.steps * self.batch_size, self.seq_len)
        return np.random.default_rng(0).integers(0, 40_000, size)


def write_model(shape: str, tokenizer: Path, folder: Path) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        **{"tie_word_embeddings": True} | SHAPES[shape], vocab_size=VOCAB_SIZE
    )
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    for file in tokenizer.glob("*token*.json"):
        shutil.copy(file, folder)


def operations_per_token(folder: Path, work: Work) -> float:
    """Products alone: those of weights, and of causal attention, which sees half of the row."""
    config = json.loads((folder / "config.json").read_text())
    hidden, heads = config["hidden_size"], config["num_attention_heads"] * config["head_dim"]
    kv_heads = config["num_key_value_heads"] * config["head_dim"]
    layer = hidden * (2 * heads + 2 * kv_heads + 3 * config["intermediate_size"])
    weights = config["num_hidden_layers"] * layer + hidden * config["vocab_size"]
    attention = config["num_hidden_layers"] * heads * work.seq_len * 6
    return float((6 if work.is_full else 4) * weights + attention)


class Log(StepLog):
    def end(self) -> None:
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        super().end()

    def figures(self, work: Work) -> Figures:
        import torch

        num_tokens = work.batch_size * work.seq_len * len(self.seconds[WARM_UP:])
        rate = num_tokens / sum(self.seconds[WARM_UP:])
        found = {
            "rate": rate,
            "operations": rate * operations_per_token(Path(work.model), work),
            "last_loss": self.losses[-1],
        }
        if torch.cuda.is_available():
            found["peak_gb"] = torch.cuda.max_memory_reserved() / 1e9
        return found


def ours(work: Work) -> Figures:
    from forgellm.engines.torch.train import TorchTrainEngine
    from forgellm.schema.recipe import Recipe

    kind: dict[str, Any] = {"fine_tune_type": "full"} if work.is_full else {}
    recipe = Recipe(
        model_name="m", dataset="d", lora_rank=RANK, lora_alpha=ALPHA, weight_decay=0.0,
        dtype="bfloat16", grad_checkpoint=work.grad_checkpoint, **kind,
    )  # fmt: skip
    engine = TorchTrainEngine(recipe.resolved(), Path(work.model))
    log = Log()
    for batch in map(whole_rows, np.split(work.rows(), work.steps)):
        log.begin()
        engine.step(batch, 1e-5, update=True)
        log.end()
        log.losses.append(engine.read_metrics().training_loss)
    return log.figures(work)


def trl_liger(work: Work) -> Figures:
    import peft
    import torch

    lora = peft.LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    return _sft(
        work,
        work.model,
        None if work.is_full else lora,
        {
            "use_liger_kernel": torch.cuda.is_available(),
            "gradient_checkpointing": work.grad_checkpoint,
            "model_init_kwargs": {"dtype": "bfloat16"},
        },
    )


def unsloth(work: Work) -> Figures:
    from unsloth import FastLanguageModel  # before transformers, which it changes

    model, _ = FastLanguageModel.from_pretrained(
        work.model, max_seq_length=work.seq_len, load_in_4bit=False, full_finetuning=work.is_full
    )
    if not work.is_full:
        checkpointing = "unsloth" if work.grad_checkpoint else False
        model = FastLanguageModel.get_peft_model(
            model, r=RANK, lora_alpha=ALPHA, use_gradient_checkpointing=checkpointing
        )
    return _sft(work, model, None, {})


def _sft(work: Work, model: Any, lora: Any, settings: dict[str, Any]) -> Figures:
    import datasets
    import torch
    import transformers
    from trl import SFTConfig, SFTTrainer

    log = Log()

    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                output_dir=folder, per_device_train_batch_size=work.batch_size, learning_rate=1e-5,
                lr_scheduler_type="constant", weight_decay=0.0, max_steps=work.steps,
                logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True,
                max_length=work.seq_len, packing=False, bf16=True,
                use_cpu=not torch.cuda.is_available(), **settings,
            ),
            train_dataset=datasets.Dataset.from_dict({"input_ids": work.rows().tolist()}),
            processing_class=transformers.AutoTokenizer.from_pretrained(work.model),
            peft_config=lora,
            callbacks=[callback_of(log)],
        )  # fmt: skip
        trainer.train()
    return log.figures(work)


CONTENDERS: dict[str, Callable[[Work], Figures]] = {
    "ForgeLLM": ours,
    "TRL, Liger": trl_liger,
    "Unsloth": unsloth,
}


def measure(name: str, work: Work, args: argparse.Namespace) -> Figures:
    python = {"ForgeLLM": None, "Unsloth": args.unsloth_python}.get(name, peer_python())
    arguments = [str(args.tokenizer), "--contender", name, json.dumps(asdict(work))]
    found = run_contender(arguments, **({"python": python} if python else {}))
    found["utilisation"] = 100 * found.pop("operations") / (1e12 * args.peak_tflops)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["0.6B", "4B", "8B"])
    parser.add_argument("--work", nargs="+", choices=["lora", "full"], default=["lora", "full"])
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--no-grad-checkpoint", action="store_true")
    parser.add_argument("--peak-tflops", type=float, default=989.0)
    parser.add_argument("--unsloth-python", help="of the environment that has Unsloth")
    parser.add_argument("--contender", nargs=2, help=argparse.SUPPRESS)
    add_rounds(parser)
    args = parser.parse_args()
    if args.contender:
        name, work = args.contender
        print("\n" + json.dumps(CONTENDERS[name](Work(**json.loads(work)))))
        return
    print_heading("Training on a GPU", ["torch", "transformers", "trl", "peft"])
    names = [name for name in CONTENDERS if name != "Unsloth" or args.unsloth_python]
    for shape in args.shape:
        with tempfile.TemporaryDirectory() as folder:
            write_model(shape, args.tokenizer, Path(folder))
            for kind in args.work:
                sizes = (args.seq_len, args.batch_size, args.steps, not args.no_grad_checkpoint)
                work = Work(folder, kind == "full", *sizes)
                found = take_turns(
                    names, args.rounds, lambda name, work=work: measure(name, work, args)
                )
                title = f"{shape}, {kind}, {args.batch_size} x {args.seq_len:,} tokens"
                print_table(title, COLUMNS, found)


if __name__ == "__main__":
    main()
