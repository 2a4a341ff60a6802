"""The weights of the known architectures: their names, shapes and layouts, in Hugging Face models and
in GGUF files. Import and export read the same table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forgellm.catalog.gguf_config import Architecture


@dataclass(frozen=True)
class TensorPair:
    """A weight in both worlds.

    Attributes:
        num_heads: in the file, the rows of each of so many heads are in another order: rotary
            pairs side by side instead of half a head apart. 0 where rows are the same.
        norm_offset: what the file's numbers are larger by.
    """

    name: str
    gguf_name: str
    shape: tuple[int, ...]
    num_heads: int = 0
    norm_offset: float = 0.0

    def rows_of_file(self) -> NDArray[np.intp] | None:
        """Which of the file's rows each row of the model is; None where they are the same."""
        if not self.num_heads:
            return None
        rows = np.arange(self.shape[0], dtype=np.intp)
        return rows.reshape(self.num_heads, -1, 2).swapaxes(1, 2).reshape(-1)

    def rows_of_model(self) -> NDArray[np.intp] | None:
        """Which of the model's rows each row of the file is: the inverse."""
        rows = self.rows_of_file()
        return None if rows is None else np.argsort(rows)


def tensor_pairs(architecture: Architecture, config: dict[str, Any]) -> Iterator[TensorPair]:
    """Every weight of the model, in order. `config` is as `gguf_config.build_config` makes it."""
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    yield TensorPair("model.embed_tokens.weight", "token_embd.weight", (vocab, hidden))
    for layer in range(config["num_hidden_layers"]):
        for ours, theirs, shape in _block(architecture, config):
            yield TensorPair(
                f"model.layers.{layer}.{ours}",
                f"blk.{layer}.{theirs}",
                shape,
                _reordered_heads(theirs, architecture, config),
                architecture.norm_offset if "norm" in theirs else 0.0,
            )
    yield TensorPair(
        "model.norm.weight", "output_norm.weight", (hidden,), norm_offset=architecture.norm_offset
    )
    if not config["tie_word_embeddings"]:
        yield TensorPair("lm_head.weight", "output.weight", (vocab, hidden))


def _reordered_heads(gguf_name: str, architecture: Architecture, config: dict[str, Any]) -> int:
    if not architecture.pairs_rotated:
        return 0
    heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
    key = heads.get(gguf_name.partition(".")[0])
    return int(config[key]) if key else 0


def _block(
    architecture: Architecture, config: dict[str, Any]
) -> list[tuple[str, str, tuple[int, ...]]]:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head_dim = config["head_dim"]
    queries = config["num_attention_heads"] * head_dim
    keys = config["num_key_value_heads"] * head_dim
    linear = {
        "self_attn.q_proj": ("attn_q", queries, hidden),
        "self_attn.k_proj": ("attn_k", keys, hidden),
        "self_attn.v_proj": ("attn_v", keys, hidden),
        "self_attn.o_proj": ("attn_output", hidden, queries),
        "mlp.gate_proj": ("ffn_gate", inner, hidden),
        "mlp.up_proj": ("ffn_up", inner, hidden),
        "mlp.down_proj": ("ffn_down", hidden, inner),
    }
    norms = {"input_layernorm": ("attn_norm", hidden), architecture.mlp_norm: ("ffn_norm", hidden)}
    if architecture.post_norms:
        norms["post_attention_layernorm"] = ("post_attention_norm", hidden)
        norms["post_feedforward_layernorm"] = ("post_ffw_norm", hidden)
    if architecture.qk_norm:
        norms["self_attn.q_norm"] = ("attn_q_norm", head_dim)
        norms["self_attn.k_norm"] = ("attn_k_norm", head_dim)
    weights: list[tuple[str, str, tuple[int, ...]]] = []
    for ours, (theirs, rows, columns) in linear.items():
        weights.append((f"{ours}.weight", f"{theirs}.weight", (rows, columns)))
        if _has_bias(ours, architecture, config):
            weights.append((f"{ours}.bias", f"{theirs}.bias", (rows,)))
    weights += [(f"{ours}.weight", f"{theirs}.weight", (n,)) for ours, (theirs, n) in norms.items()]
    return weights


def _has_bias(name: str, architecture: Architecture, config: dict[str, Any]) -> bool:
    if name.startswith("mlp"):
        return bool(config.get("mlp_bias"))
    if architecture.qkv_bias:
        return not name.endswith("o_proj")
    return bool(config.get("attention_bias"))
