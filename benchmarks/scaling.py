"""What several processes gain: one and two of them with one thread each, on the same work.

    python benchmarks/scaling.py MODEL_FOLDER [--kind lora full] [--rounds 3]

Two rows of 512 tokens by one process and by two (strong scaling), and one row by one process (against
two with a row each: weak scaling). An efficiency of 100 % is twice the tokens per second in two
processes. Each runs in the type that this machine is fast in, one step to warm up and two that count.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
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

NUM_TOKENS = 512
NUM_STEPS = 2
ONE_ROW = "1 process, 1 x 512"
# Processes, rows of the whole batch, parallelism.
SETTINGS: dict[str, tuple[int, int, str]] = {
    "1 process, 2 x 512": (1, 2, "ddp"),
    ONE_ROW: (1, 1, "ddp"),
    "2 processes, ddp": (2, 2, "ddp"),
    "2 processes, fsdp": (2, 2, "fsdp"),
}
COLUMNS = [
    Column("rate", "tok/s", "{:.0f}", spread=True),
    Column("strong", "strong scaling", "{:.0f} %"),
    Column("weak", "weak scaling", "{:.0f} %"),
    Column("peak_gb", "peak a process", "{:.2f} GB"),
    Column("estimated_gb", "estimated", "{:.2f} GB"),
]


def start(folder: Path, kind: str, setting: str) -> Figures:
    """What the first of the setting's processes writes down."""
    from forgellm.engines.machines import meeting_here
    from forgellm.engines.process_group import LEADER_VARIABLE
    from forgellm.engines.torch.launch import launch

    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ[LEADER_VARIABLE] = str(os.getpid())
    here = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join([here, *os.environ.get("PYTHONPATH", "").split(":")])
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "figures.json"
        arguments = [str(folder), "--work", kind, setting, str(out)]
        meeting = meeting_here(Path(scratch) / "store", SETTINGS[setting][0], 0)
        launch(["scaling", *arguments], meeting)
        return dict(json.loads(out.read_text()))


def work(folder: Path, kind: str, setting: str, out: Path) -> None:
    """One process's share of the steps."""
    import numpy as np
    import torch

    from forgellm.data.batches import Batch
    from forgellm.engines.torch import memory
    from forgellm.engines.torch.train import TorchTrainEngine
    from forgellm.schema.recipe import Recipe

    num_processes, num_rows, parallelism = SETTINGS[setting]
    recipe = Recipe(
        model_name="m",
        dataset="d",
        fine_tune_type=kind,
        batch_size=num_rows,
        max_seq_length=NUM_TOKENS,
        nproc_per_node=num_processes,
        parallelism=parallelism,
    ).resolved()
    engine = TorchTrainEngine(recipe, folder)
    shape = (num_rows, NUM_TOKENS)
    tokens = np.random.default_rng(0).integers(0, 49152, shape, dtype=np.int32)
    whole = Batch(tokens, tokens, np.ones(shape, np.float32), np.zeros_like(tokens))
    batch = whole.rows(engine.group.rank, engine.group.size)
    memory.reset_peak(torch.device("cpu"))
    engine.step(batch, 1e-4, update=True)
    started = time.perf_counter()
    for _ in range(NUM_STEPS):
        engine.step(batch, 1e-4, update=True)
    seconds = time.perf_counter() - started
    peak = engine.read_metrics().peak_memory_bytes
    if engine.group.rank == 0:
        figures = {
            "rate": NUM_STEPS * num_rows * NUM_TOKENS / seconds,
            "peak_gb": peak / 1e9,
            "estimated_gb": _estimated(folder, recipe, engine.info.dtype) / 1e9,
        }
        out.write_text(json.dumps(figures))


def _estimated(folder: Path, recipe: Any, dtype: str) -> int:
    from forgellm.catalog.facts import read_facts
    from forgellm.training.estimate import Device, estimate_memory

    facts = read_facts(folder, json.loads((folder / "config.json").read_text()))
    return estimate_memory(facts, recipe, NUM_TOKENS, Device("torch", "cpu", dtype)).total


def add_efficiencies(found: dict[str, list[Figures]]) -> None:
    """Of two processes, from the medians: 100 % is twice what one does."""
    names = list(SETTINGS)
    rates = {name: statistics.median(f["rate"] for f in found[name]) for name in names}
    for name in names:
        if SETTINGS[name][0] > 1:
            for figures in found[name]:
                figures["strong"] = 100 * rates[name] / (2 * rates[names[0]])
                figures["weak"] = 100 * rates[name] / (2 * rates[ONE_ROW])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--kind", nargs="+", default=["lora", "full"])
    parser.add_argument("--contender", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    add_rounds(parser)
    args = parser.parse_args()
    if args.work:
        kind, setting, out = args.work
        work(args.model, kind, setting, Path(out))
        return
    if args.contender:
        print(json.dumps(start(args.model, *args.contender)))
        return
    print_heading("One and two processes", ["torch", "transformers"], sys.executable)
    for kind in args.kind:

        def measure(setting: str, kind: str = kind) -> Figures:
            return run_contender([str(args.model), "--contender", kind, setting])

        found = take_turns(SETTINGS, args.rounds, measure)
        add_efficiencies(found)
        print_table(f"{kind}, one thread a process", COLUMNS, found)


if __name__ == "__main__":
    main()
