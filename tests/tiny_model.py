"""Tiny models, built on the spot: random weights in the real layout of real architectures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from forgellm.data.batches import Batch

COMMON = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": None,
}
ARCHITECTURES: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "llama": (transformers.LlamaConfig, {"tie_word_embeddings": True}),
    "mistral": (transformers.MistralConfig, {"sliding_window": 7}),
    "qwen2": (transformers.Qwen2Config, {}),
    "qwen3": (transformers.Qwen3Config, {}),
    "gemma2": (transformers.Gemma2Config, {"sliding_window": 6, "query_pre_attn_scalar": 8}),
    "gemma3": (transformers.Gemma3TextConfig, {"sliding_window": 6, "query_pre_attn_scalar": 8}),
}


def build_tiny_model(
    folder: Path, architecture: str = "llama", vocab_size: int = 97, seed: int = 0, **changes: Any
) -> Path:
    """Save a random model (float32 safetensors and config, no tokenizer) into `folder`."""
    kind, special = ARCHITECTURES[architecture]
    config = kind(**{**COMMON, "vocab_size": vocab_size, **special, **changes})
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():  # larger than the usual 0.02, so that errors show
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return folder


def random_batch(
    lengths: list[list[int]], vocab_size: int = 97, seed: int = 0, padding: int = 0
) -> Batch:
    """Packed rows: `lengths[b]` are the documents of row b; `padding` closes each row."""
    rng = np.random.default_rng(seed)
    width = sum(lengths[0]) + padding
    tokens = rng.integers(0, vocab_size, (len(lengths), width), dtype=np.int32)
    segment_ids = np.full_like(tokens, -1)
    loss_mask = np.zeros(tokens.shape, dtype=np.float32)
    for row, documents in enumerate(lengths):
        start = 0
        for index, length in enumerate(documents):
            segment_ids[row, start : start + length] = index
            loss_mask[row, start : start + length - 1] = 1
            start += length
    targets = np.zeros_like(tokens)
    targets[:, :-1] = tokens[:, 1:]
    return Batch(tokens, targets * (loss_mask > 0), loss_mask, segment_ids)


def documents_of(batch: Batch) -> list[np.ndarray]:
    """Token ids [n] of each document in a batch, padding left out."""
    found = []
    for tokens, segments in zip(batch.tokens, batch.segment_ids, strict=True):
        for segment in range(segments.max() + 1):
            found.append(tokens[segments == segment])
    return found


def build_quantised_model(
    folder: Path,
    bits: int,
    dequantised: Path | None = None,
    architecture: str = "llama",
    **changes: Any,
) -> Path:
    """A tiny model as mlx-lm quantises it, `<folder>-plain` it was made from, and on request the
    plain model with just the weights that the quantised one stands for."""
    from mlx_lm.utils import dequantize_model, load_model, quantize_model, save_config, save_model

    # Whole groups of 32 in every matrix, which quantising asks for.
    plain = folder.with_name(f"{folder.name}-plain")
    build_tiny_model(plain, architecture, num_key_value_heads=4, **changes)
    model, config = load_model(plain)
    model, config = quantize_model(model, config, 32, bits)
    folder.mkdir()
    save_model(folder, model)
    save_config(dict(config), folder / "config.json")
    if dequantised is not None:
        dequantised.mkdir()
        save_model(dequantised, dequantize_model(model))
        (dequantised / "config.json").write_text((plain / "config.json").read_text())
    return folder
