"""What the memory estimate says against what a rehearsed step takes, on SmolLM2-135M's shape.

python benchmarks/memory_estimate.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from train_step import build_model

SETTINGS: list[dict[str, object]] = [
    {"batch_size": 1},
    {"batch_size": 4},
    {"batch_size": 4, "grad_checkpoint": True},
    {"batch_size": 2, "max_seq_length": 2048},
    {"batch_size": 2, "fine_tune_type": "full"},
    {"batch_size": 4, "dtype": "bfloat16"},
    {"batch_size": 4, "num_layers": 8},
]
_CHILD = """
import json, sys, numpy as np
from pathlib import Path
from forgellm.catalog.facts import read_facts
from forgellm.data.batches import Batch
from forgellm.engines.torch.train import TorchTrainEngine
from forgellm.schema.recipe import Recipe
from forgellm.training.estimate import estimate_memory
folder, fields = Path(sys.argv[1]), json.loads(sys.argv[2])
fields = {"model_name": "m", "dataset": "d", "dtype": "float32", "max_seq_length": 512, **fields}
recipe = Recipe(**fields).resolved()
facts = read_facts(folder, json.loads((folder / "config.json").read_text()))
estimate = estimate_memory(facts, recipe, recipe.max_seq_length, recipe.dtype).total
tokens = np.random.default_rng(0).integers(0, 49152, (recipe.batch_size, recipe.max_seq_length))
tokens = tokens.astype(np.int32)
batch = Batch(tokens, tokens, np.ones(tokens.shape, np.float32), np.zeros_like(tokens))
measured = TorchTrainEngine(recipe, folder).rehearse(batch)
print(f"{estimate / 1e9:6.2f} GB estimated {measured / 1e9:6.2f} GB measured "
      f"{100 * (estimate / measured - 1):+5.0f} %  {sys.argv[2]}")
"""


def main() -> None:
    import json

    with tempfile.TemporaryDirectory() as folder:
        build_model(Path(folder))
        for fields in SETTINGS:
            command = [sys.executable, "-c", _CHILD, folder, json.dumps(fields)]
            print(
                subprocess.run(command, check=True, capture_output=True, text=True).stdout, end=""
            )


if __name__ == "__main__":
    main()
