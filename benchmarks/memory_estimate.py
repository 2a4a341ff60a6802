"""What the memory estimate says against what a rehearsed step takes.

python benchmarks/memory_estimate.py MODEL_FOLDER
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rounds import Column, Figures, print_heading, print_table, run_contender

SETTINGS: list[dict[str, object]] = [
    {"batch_size": 1},
    {"batch_size": 4},
    {"batch_size": 4, "grad_checkpoint": True},
    {"batch_size": 2, "max_seq_length": 2048},
    {"batch_size": 2, "fine_tune_type": "full"},
    {"batch_size": 2, "fine_tune_type": "full", "dtype": "bfloat16"},
    {"batch_size": 2, "fine_tune_type": "full", "grad_checkpoint": True},
    {"batch_size": 2, "fine_tune_type": "dora"},
    {"batch_size": 4, "fine_tune_type": "dora", "dtype": "bfloat16"},
    {"batch_size": 4, "dtype": "bfloat16"},
    {"batch_size": 8, "dtype": "bfloat16"},
    {"batch_size": 8, "dtype": "bfloat16", "grad_checkpoint": True},
    {"batch_size": 4, "num_layers": 8},
]
COLUMNS = [
    Column("estimated_gb", "estimated", "{:.2f} GB"),
    Column("measured_gb", "measured", "{:.2f} GB"),
    Column("error_percent", "error", "{:+.0f} %"),
]


def measure(folder: Path, fields: dict[str, Any]) -> Figures:
    import numpy as np

    from forgellm.catalog.facts import read_facts
    from forgellm.data.batches import Batch
    from forgellm.engines.torch.train import TorchTrainEngine
    from forgellm.schema.recipe import Recipe
    from forgellm.training.estimate import Device, estimate_memory

    always = {"model_name": "m", "dataset": "d", "dtype": "float32", "max_seq_length": 512}
    recipe = Recipe(**always | fields).resolved()
    assert recipe.max_seq_length is not None
    facts = read_facts(folder, json.loads((folder / "config.json").read_text()))
    device = Device("torch", "cpu", recipe.dtype)
    estimated = estimate_memory(facts, recipe, recipe.max_seq_length, device).total
    shape = (recipe.batch_size, recipe.max_seq_length)
    tokens = np.random.default_rng(0).integers(0, 49152, shape, dtype=np.int32)
    batch = Batch(tokens, tokens, np.ones(shape, np.float32), np.zeros_like(tokens))
    measured = TorchTrainEngine(recipe, folder).rehearse(batch)
    return {
        "estimated_gb": estimated / 1e9,
        "measured_gb": measured / 1e9,
        "error_percent": 100 * (estimated / measured - 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contender:
        print(json.dumps(measure(args.model, json.loads(args.contender))))
        return
    print_heading("The memory estimate", ["torch", "transformers"], sys.executable)
    found = {}
    for fields in SETTINGS:
        name = ", ".join(f"{field}: {value}" for field, value in fields.items())
        found[name] = [run_contender([str(args.model), "--contender", json.dumps(fields)])]
    print_table("setting", COLUMNS, found)


if __name__ == "__main__":
    main()
