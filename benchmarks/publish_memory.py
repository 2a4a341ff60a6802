"""Peak memory of merging and of quantising, as a model grows by files of the same size.

python benchmarks/publish_memory.py
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from rounds import Column, Figures, peak_bytes, print_heading, print_table, run_contender

NUM_FILES = (1, 2, 4, 8)
WIDTH, INNER, RANK = 2048, 5632, 16
_LINEAR = {
    "self_attn.q_proj": (WIDTH, WIDTH), "self_attn.k_proj": (WIDTH, WIDTH),
    "self_attn.v_proj": (WIDTH, WIDTH), "self_attn.o_proj": (WIDTH, WIDTH),
    "mlp.gate_proj": (INNER, WIDTH), "mlp.up_proj": (INNER, WIDTH), "mlp.down_proj": (WIDTH, INNER),
}  # fmt: skip
_LAYERS_PER_FILE = 2
COLUMNS = [
    Column("size_gb", "model", "{:.2f} GB"),
    Column("before_mb", "before", "{:.0f} MB"),
    Column("peak_mb", "peak", "{:.0f} MB"),
]


def measure(task: str, folder: Path, out: Path) -> Figures:
    """Quantise, or merge with the engine that `task` names, and what memory that took."""
    if task == "quantise":
        from forgellm.engines.quantising import plan_quantising, write_quantised

        plan = plan_quantising(folder, {}, 4, 64)
        before = peak_bytes()
        write_quantised(plan, folder, out, lambda share: None)
    else:
        from forgellm.engines.registry import load_fuse_engine

        engine = load_fuse_engine(task)
        before = peak_bytes()
        engine.fuse(folder, folder / "adapter" / "adapters.safetensors", out, lambda share: None)
    return {"before_mb": before / 1e6, "peak_mb": peak_bytes() / 1e6}


def build(folder: Path, num_files: int) -> int:
    """A model of `num_files` weight files with an adapter on all its matrices; its bytes."""
    import torch
    from safetensors.torch import save_file

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
    parser = argparse.ArgumentParser()
    parser.add_argument("--contender", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contender:
        task, folder, out = args.contender
        print(json.dumps(measure(task, Path(folder), Path(out))))
        return
    print_heading("Merging and quantising", ["torch", "mlx"], sys.executable)
    found = {}
    for num_files in NUM_FILES:
        with tempfile.TemporaryDirectory() as root:
            model = Path(root) / "model"
            model.mkdir()
            size = {"size_gb": build(model, num_files) / 1e9}
            for task in ("quantise", "torch", "mlx"):
                out = Path(root) / task
                out.mkdir()
                name = task if task == "quantise" else f"merge, {task}"
                figures = run_contender(["--contender", task, str(model), str(out)])
                found[f"{name}, {num_files} files"] = [size | figures]
    print_table("work", COLUMNS, found)


if __name__ == "__main__":
    main()
