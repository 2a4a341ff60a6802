"""Training, ours against TRL with PEFT and against a bare HF Trainer, on one model and one text.

    python benchmarks/training.py MODEL_FOLDER [--work lora lora-2048 full ift] [--rounds 3]

MODEL_FOLDER is a model in Hugging Face layout. Every contender trains on the same tokens in the same
order, in a process of its own, in turn: LoRA rank 8 on all linear layers, or all weights. The first
two steps warm up, since in the second memory still grows. Rates count real tokens, not padding. Memory is the process's resident peak. "First
step" is the time from the start of the process to the end of the first update. "Loss" is the greatest
difference of any step's loss from ours; for conversations, which share steps in different ways,
of the mean over all learned tokens.

TRL runs with its defaults (bfloat16, gradient checkpointing) and, for conversations, with packing; HF
Trainer in bfloat16. Where the processor has no AMX, a step in bfloat16 may take minutes: there TRL's
default runs once and for three steps only, and the peers run in float32 as well, TRL with and without
checkpointing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rounds import (
    Column,
    Figures,
    add_rounds,
    cpu_seconds,
    peak_bytes,
    peer_python,
    print_heading,
    print_table,
    run_contender,
    seconds_since_start,
    take_turns,
)
from steps import StepLog, callback_of, whole_rows
from training_work import ALPHA, RANK, WORKS, Work, conversations_of, read_work, write_work

OURS = "ForgeLLM"
WARM_UP = 2
COLUMNS = [
    Column("rate", "tok/s", "{:.0f}", spread=True, ratio="more"),
    Column("cpu_rate", "tok per CPU s", "{:.0f}"),
    Column("peak_gb", "peak memory", "{:.2f} GB", ratio="less"),
    Column("first_step_seconds", "first step", "{:.1f} s"),
    Column("loss_percent", "loss", "{:.2f} %"),
]


class Log(StepLog):
    """With the steps' tokens and the processor's time."""

    def __init__(self) -> None:
        self.cpu_seconds: list[float] = []
        self.tokens: list[int] = []
        self.learned: list[int] = []
        self.first_step_seconds = 0.0
        super().__init__()

    def begin(self) -> None:
        super().begin()
        self._cpu_started = cpu_seconds()

    def end(self) -> None:
        super().end()
        self.cpu_seconds.append(cpu_seconds() - self._cpu_started)
        self.first_step_seconds = self.first_step_seconds or seconds_since_start()

    def figures(self) -> Figures:
        tokens = sum(self.tokens[WARM_UP:])
        return {
            "rate": tokens / sum(self.seconds[WARM_UP:]),
            "cpu_rate": tokens / sum(self.cpu_seconds[WARM_UP:]),
            "peak_gb": peak_bytes() / 1e9,
            "first_step_seconds": self.first_step_seconds,
            "losses": self.losses,
            "learned": self.learned,
        }


def ours(model: Path, work: Work, arrays: dict[str, Any], steps: int) -> Figures:
    from forgellm.engines.torch.train import TorchTrainEngine
    from forgellm.schema.recipe import Recipe

    kind: dict[str, Any] = {"fine_tune_type": "full"} if work.is_full else {}
    recipe = Recipe(
        model_name="m", dataset="d", lora_rank=RANK, lora_alpha=ALPHA, weight_decay=0.0, **kind
    )
    engine = TorchTrainEngine(recipe.resolved(), model)
    log = Log()
    for batch in _batches(work, arrays)[:steps]:
        log.begin()
        engine.step(batch, work.learning_rate, update=True)
        metrics = engine.read_metrics()
        log.end()
        log.tokens.append(int((batch.segment_ids >= 0).sum()))
        log.learned.append(batch.num_targets)
        log.losses.append(metrics.training_loss)
    return log.figures()


def _batches(work: Work, arrays: dict[str, Any]) -> list[Any]:
    import numpy as np

    from forgellm.data.batches import Batch

    if work.in_conversations:
        fields = ("tokens", "targets", "loss_mask", "segment_ids")
        return [
            Batch(*(arrays[f"packed_{name}"][row : row + work.batch_size] for name in fields))
            for row in range(0, len(arrays["packed_tokens"]), work.batch_size)
        ]
    tokens = arrays["tokens"]
    return [whole_rows(rows) for rows in np.split(tokens, len(tokens) // work.batch_size)]


def trl(
    model: Path,
    work: Work,
    arrays: dict[str, Any],
    steps: int,
    is_packing: bool = False,
    **settings: Any,
) -> Figures:
    import datasets
    import transformers
    from trl import SFTConfig, SFTTrainer

    if work.in_conversations:
        rows = conversations_of(arrays)
        settings["per_device_train_batch_size"] = work.batch_size if is_packing else 8
    else:
        rows = {"input_ids": arrays["tokens"].tolist()}
    with tempfile.TemporaryDirectory() as folder:
        trainer = _logging(SFTTrainer)(
            model=str(model),
            args=SFTConfig(
                **_common(folder, work, steps) | settings,
                max_length=work.seq_len,
                packing=is_packing,
            ),
            train_dataset=datasets.Dataset.from_dict(rows),
            processing_class=transformers.AutoTokenizer.from_pretrained(model),
            peft_config=None if work.is_full else _lora(),
        )
        return _trained(trainer)


def hf_trainer(
    model: Path, work: Work, arrays: dict[str, Any], steps: int, dtype: str = "bfloat16"
) -> Figures:
    import datasets
    import peft
    import transformers

    loaded = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
    if not work.is_full:
        loaded = peft.get_peft_model(loaded, _lora())
    rows = arrays["tokens"].tolist()
    with tempfile.TemporaryDirectory() as folder:
        trainer = _logging(transformers.Trainer)(
            model=loaded,
            args=transformers.TrainingArguments(**_common(folder, work, steps)),
            train_dataset=datasets.Dataset.from_dict({"input_ids": rows, "labels": rows}),
        )
        return _trained(trainer)


def _common(folder: str, work: Work, steps: int) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "per_device_train_batch_size": work.batch_size,
        "learning_rate": work.learning_rate,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "max_steps": steps,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "train_sampling_strategy": "sequential",
        "disable_tqdm": True,
        "use_cpu": True,
    }


def _lora() -> Any:
    import peft

    return peft.LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"
    )


def _logging(trainer: Any) -> Any:
    """A trainer of that kind which counts the tokens that it is given."""

    class Logging(trainer):  # type: ignore[misc]
        step_log = Log()

        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            mask = inputs.get("attention_mask")
            count = inputs["input_ids"].numel() if mask is None else int(mask.sum())
            self.step_log.tokens.append(count)
            self.step_log.learned.append(int((inputs["labels"][:, 1:] != -100).sum()))
            return super().training_step(model, inputs, *args, **kwargs)

    return Logging


def _trained(trainer: Any) -> Figures:
    log: Log = trainer.step_log
    trainer.add_callback(callback_of(log))
    trainer.train()
    return log.figures()


Contender = Callable[[Path, Work, dict[str, Any], int], Figures]
FLOAT32 = {"bf16": False, "model_init_kwargs": {"dtype": "float32"}}
CONTENDERS: dict[str, tuple[Contender, dict[str, Any]]] = {
    OURS: (ours, {}),
    "TRL": (trl, {}),
    "TRL, packing": (trl, {"is_packing": True}),
    "HF Trainer": (hf_trainer, {}),
    "TRL, float32": (trl, FLOAT32),
    "TRL, float32, no checkpointing": (trl, FLOAT32 | {"gradient_checkpointing": False}),
    "TRL, float32, packing": (trl, FLOAT32 | {"is_packing": True}),
    "HF Trainer, float32": (hf_trainer, {"dtype": "float32"}),
}
SLOW_WITHOUT_AMX = "TRL"


def contenders_for(work: Work, wanted: list[str] | None) -> list[str]:
    """Ours and those wanted, or those that suit the work and this processor."""

    def suits(name: str) -> bool:
        is_for_conversations = "packing" in name
        is_for_text = name.startswith("HF Trainer")
        if is_for_text if work.in_conversations else is_for_conversations:
            return False
        return name == SLOW_WITHOUT_AMX or ("float32" in name) != _has_amx()

    def is_wanted(name: str) -> bool:
        return name in wanted if wanted else suits(name)

    return [name for name in CONTENDERS if name == OURS or is_wanted(name)]


def measure(model: Path, work_name: str, contenders: list[str], rounds: int, steps: int) -> None:
    work = WORKS[work_name]
    quick = [name for name in contenders if _is_slow(name)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "work.npz"
        write_work(model, work, steps, file)

        def run(name: str) -> Figures:
            count = WARM_UP + 1 if name in quick else steps
            arguments = [str(model), "--contender", work_name, name, str(file), str(count)]
            own = {} if name == OURS else {"python": peer_python()}
            return run_contender(arguments, **own)

        found = take_turns([name for name in contenders if name not in quick], rounds, run)
        found |= take_turns(quick, 1, run)
    for name in contenders:
        for figures in found[name]:
            figures["loss_percent"] = _loss_percent(work, figures, found[OURS][0])
    print_table(work.title, COLUMNS, {name: found[name] for name in contenders})


def _is_slow(name: str) -> bool:
    return name == SLOW_WITHOUT_AMX and not _has_amx()


def _has_amx() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and "amx_bf16" in cpuinfo.read_text()


def _loss_percent(work: Work, figures: Figures, own: Figures) -> float:
    if not work.in_conversations:
        pairs = zip(figures["losses"], own["losses"], strict=False)
        return max(100 * abs(theirs / ours - 1) for theirs, ours in pairs)
    theirs, ours = (
        statistics.fmean(run["losses"], weights=run["learned"]) for run in (figures, own)
    )
    return 100 * abs(theirs / ours - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--work", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, help="these peers, beside ours")
    parser.add_argument("--steps", type=int, default=5, help=f"the first {WARM_UP} warm up")
    parser.add_argument("--contender", nargs=4, help=argparse.SUPPRESS)
    add_rounds(parser)
    args = parser.parse_args()
    if args.contender:
        work_name, name, file, steps = args.contender
        run, settings = CONTENDERS[name]
        arrays = read_work(Path(file))
        print("\n" + json.dumps(run(args.model, WORKS[work_name], arrays, int(steps), **settings)))
        return
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    print_heading(f"Training {args.model.name}", ["torch", "transformers", "trl", "peft"])
    for name in args.work:
        names = contenders_for(WORKS[name], args.only)
        measure(args.model, name, names, args.rounds, args.steps)


if __name__ == "__main__":
    main()
