"""Peak memory of merging, of quantising and of the comparison, as a model grows by files of one size.

python benchmarks/publish_memory.py

The comparison reads both models' weights where they lie, in their files: pages that the system takes
back when it needs them count in the peak, but not in what the process holds itself ("own").
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rounds import Column, Figures, peak_bytes, print_heading, print_table, run_contender

NUM_FILES = (1, 2, 4, 8, 16)
WIDTH, INNER, RANK = 2048, 5632, 16
_LINEAR = {
    "self_attn.q_proj": (WIDTH, WIDTH), "self_attn.k_proj": (WIDTH, WIDTH),
    "self_attn.v_proj": (WIDTH, WIDTH), "self_attn.o_proj": (WIDTH, WIDTH),
    "mlp.gate_proj": (INNER, WIDTH), "mlp.up_proj": (INNER, WIDTH), "mlp.down_proj": (WIDTH, INNER),
}  # fmt: skip
_LAYERS_PER_FILE = 2
_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH,
    "intermediate_size": INNER, "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 1000,
    "tie_word_embeddings": True, "torch_dtype": "bfloat16",
}  # fmt: skip
COLUMNS = [
    Column("size_gb", "model", "{:.2f} GB"),
    Column("before_mb", "before", "{:.0f} MB"),
    Column("peak_mb", "peak", "{:.0f} MB"),
    Column("own_mb", "own", "{:.0f} MB"),
]


def measure(task: str, folder: Path, out: Path) -> Figures:
    """What memory a task takes: quantise, or merge or compare with the engine named after it."""
    from forgellm.engines.registry import load_fuse_engine

    adapter = folder / "adapter" / "adapters.safetensors"
    if task == "quantise":
        from forgellm.engines.quantising import plan_quantising, write_quantised

        plan = plan_quantising(folder, {}, 4, 64)
        return _memory_of(lambda: write_quantised(plan, folder, out, lambda share: None))
    if task == "compare":
        from forgellm import hardware

        hardware.training_memory_bytes = lambda: 0  # a machine without room for float32
        engine = load_fuse_engine("torch")
        prompts = [list(range(40)), list(range(50, 100))]
        return _memory_of(lambda: engine.agreement(folder, adapter, out.parent / "torch", prompts))
    engine = load_fuse_engine(task)
    return _memory_of(lambda: engine.fuse(folder, adapter, out, lambda share: None))


def _memory_of(work: Callable[[], object]) -> Figures:
    before, own, is_over = peak_bytes(), [0], threading.Event()

    def watch() -> None:
        while not is_over.is_set():
            own.append(_own_bytes())
            time.sleep(0.01)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        is_over.set()
        watcher.join()
    return {"before_mb": before / 1e6, "peak_mb": peak_bytes() / 1e6, "own_mb": max(own) / 1e6}


def _own_bytes() -> int:
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(found[1]) if found else 0


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
        tensors = _ends() if number == 0 else {}
        for layer in range(number * _LAYERS_PER_FILE, (number + 1) * _LAYERS_PER_FILE):
            for norm in ("input_layernorm", "post_attention_layernorm"):
                tensors[f"model.layers.{layer}.{norm}.weight"] = torch.ones(WIDTH).bfloat16()
            for linear, (rows, columns) in _LINEAR.items():
                stem = f"model.layers.{layer}.{linear}"
                tensors[f"{stem}.weight"] = (torch.randn(rows, columns) * 0.02).bfloat16()
                adapter[f"{stem}.lora_a"] = torch.randn(columns, RANK)
                adapter[f"{stem}.lora_b"] = torch.randn(RANK, rows)
        save_file(tensors, folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, name)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = _CONFIG | {"num_hidden_layers": num_files * _LAYERS_PER_FILE}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "adapter").mkdir()
    save_file(adapter, folder / "adapter" / "adapters.safetensors")
    settings = {"fine_tune_type": "lora", "lora_parameters": {"rank": RANK, "scale": 2.0}}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    return sum((folder / name).stat().st_size for name in names)


def _ends() -> dict[str, Any]:
    """What stands before and behind the blocks."""
    import torch

    embeddings = (torch.randn(_CONFIG["vocab_size"], WIDTH) * 0.02).bfloat16()
    return {
        "model.embed_tokens.weight": embeddings,
        "model.norm.weight": torch.ones(WIDTH).bfloat16(),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--contender", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contender:
        task, folder, out = args.contender
        print(json.dumps(measure(task, Path(folder), Path(out))))
        return
    print_heading("Merging, comparing, quantising", ["torch", "mlx"], sys.executable)
    found = {}
    for num_files in NUM_FILES:
        with tempfile.TemporaryDirectory() as root:
            model = Path(root) / "model"
            model.mkdir()
            size = {"size_gb": build(model, num_files) / 1e9}
            for task in ("quantise", "mlx", "torch", "compare"):
                out = Path(root) / task
                out.mkdir()
                name = f"merge, {task}" if task in ("torch", "mlx") else task
                figures = run_contender(["--contender", task, str(model), str(out)])
                found[f"{name}, {num_files} files"] = [size | figures]
    print_table("work", COLUMNS, found)


if __name__ == "__main__":
    main()
