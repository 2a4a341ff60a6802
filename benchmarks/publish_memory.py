"""Peak memory of merging and of quantising, as a model grows by files of the same size.

python benchmarks/publish_memory.py
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

NUM_FILES = (1, 2, 4, 8)
WIDTH, INNER, RANK = 2048, 5632, 16
_LINEAR = {
    "self_attn.q_proj": (WIDTH, WIDTH), "self_attn.k_proj": (WIDTH, WIDTH),
    "self_attn.v_proj": (WIDTH, WIDTH), "self_attn.o_proj": (WIDTH, WIDTH),
    "mlp.gate_proj": (INNER, WIDTH), "mlp.up_proj": (INNER, WIDTH), "mlp.down_proj": (WIDTH, INNER),
}  # fmt: skip
_LAYERS_PER_FILE = 2
_CHILD = """
import json, re, sys
from pathlib import Path
task, folder, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
if task == "quantise":
    from forgellm.engines.quantising import plan_quantising, write_quantised
    plan = plan_quantising(folder, {}, 4, 64)
    start = peak()
    write_quantised(plan, folder, out, lambda done: None)
else:
    from forgellm.engines.registry import load_fuse_engine
    engine = load_fuse_engine(task)
    start = peak()
    engine.fuse(folder, folder / "adapter" / "adapters.safetensors", out, lambda done: None)
print(json.dumps([start, peak()]))
"""


def build(folder: Path, num_files: int) -> int:
    """A model of `num_files` weight files with an adapter on all its matrices; its bytes."""
    names = [
        f"model-{number + 1:05d}-of-{num_files:05d}.safetensors" for number in range(num_files)
    ]
    places: dict[str, str] = {}
    adapter: dict[str, torch.Tensor] = {}
    for number, name in enumerate(names):
        tensors = {}
        for layer in range(number * _LAYERS_PER_FILE, (number + 1) * _LAYERS_PER_FILE):
            for linear, (rows, columns) in _LINEAR.items():
                stem = f"model.layers.{layer}.{linear}"
                tensors[f"{stem}.weight"] = (torch.randn(rows, columns) * 0.02).bfloat16()
                adapter[f"{stem}.lora_a"] = torch.randn(columns, RANK)
                adapter[f"{stem}.lora_b"] = torch.randn(RANK, rows)
        save_file(tensors, folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (folder / "config.json").write_text("{}")
    (folder / "adapter").mkdir()
    save_file(adapter, folder / "adapter" / "adapters.safetensors")
    settings = {"fine_tune_type": "lora", "lora_parameters": {"rank": RANK, "scale": 2.0}}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    return sum((folder / name).stat().st_size for name in names)


def main() -> None:
    print("model     | task     | before  | peak")
    for num_files in NUM_FILES:
        with tempfile.TemporaryDirectory() as root:
            model = Path(root) / "model"
            model.mkdir()
            size = build(model, num_files)
            for task in ("quantise", "torch", "mlx"):
                out = Path(root) / task
                out.mkdir()
                command = [sys.executable, "-c", _CHILD, task, str(model), str(out)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                start, peak = json.loads(done.stdout.splitlines()[-1])
                name = task if task == "quantise" else f"merge, {task}"
                print(
                    f"{size / 1e9:6.2f} GB | {name:12} | {start / 1e6:5.0f} MB | {peak / 1e6:5.0f} MB"
                )


if __name__ == "__main__":
    main()
