"""What a recipe will take of memory and disk, from the model's shape alone. No engine needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from forgellm.catalog.facts import ModelFacts
from forgellm.errors import DoesNotFit
from forgellm.hardware import GB
from forgellm.schema.recipe import Recipe

DEFAULT_SEQ_LENGTH = 3072

# Calibrated on what `rehearse` measured, see benchmarks/README.md.
_PROCESS_BYTES = 0.45 * GB
_LOSS_BYTES = 0.15 * GB
_HIDDEN_COPIES = 7
_HEAD_COPIES = 3
_MLP_COPIES = 4
_MARGIN = 1.05


@dataclass(frozen=True)
class MemoryEstimate:
    """Peak bytes, by what takes them."""

    weights: int
    optimizer: int
    activations: int
    process: int

    @property
    def total(self) -> int:
        return int((self.weights + self.optimizer + self.activations) * _MARGIN + self.process)

    def to_dict(self) -> dict[str, float]:
        parts = {"weights": self.weights, "optimizer": self.optimizer}
        parts |= {"activations": self.activations, "process": self.process, "total": self.total}
        return {f"{name}_gb": round(size / GB, 3) for name, size in parts.items()}


def resolve_seq_length(recipe: Recipe, context_length: int | None) -> int:
    """Tokens per sequence: what was asked for, or 3072, within the model's context."""
    wanted = recipe.max_seq_length or DEFAULT_SEQ_LENGTH
    return min(wanted, context_length) if context_length else wanted


def trainable_parameters(facts: ModelFacts, recipe: Recipe) -> int:
    """Parameters that the optimiser moves, from the sizes in `facts`."""
    if recipe.fine_tune_type == "full":
        return facts.num_parameters
    hidden, heads, kv_heads, mlp, layers = _shape(facts)
    layers = min(layers, recipe.num_layers or layers)
    rank = recipe.lora_rank
    attention = rank * (4 * hidden + 2 * heads + 2 * kv_heads)
    per_layer = attention
    if recipe.lora_target != "attention":
        per_layer += rank * 3 * (hidden + mlp)
    return per_layer * layers


def estimate_memory(facts: ModelFacts, recipe: Recipe, seq_len: int, dtype: str) -> MemoryEstimate:
    """Peak memory of a step. Activations are those that the backward pass needs, per token:
    copies of the hidden state, of the heads and of the MLP's inner state in each layer, or with
    `grad_checkpoint` one hidden state a layer and one layer's worth of the rest."""
    compute_bytes = 2 if dtype == "bfloat16" else 4
    trainable = trainable_parameters(facts, recipe)
    full = recipe.fine_tune_type == "full"
    weights = facts.num_parameters * (4 if full else compute_bytes)
    if facts.quantization:
        weights = facts.size_bytes  # they stay as they are
    if full and compute_bytes == 2:
        weights += facts.num_parameters * 2  # the cast copies that autocast keeps
    optimizer = trainable * (12 if full else 16)  # gradient and two moments; adapters' own values
    hidden, heads, kv_heads, mlp, layers = _shape(facts)
    per_layer = _HIDDEN_COPIES * hidden + _HEAD_COPIES * (heads + kv_heads) + _MLP_COPIES * mlp
    kept = layers * hidden + per_layer if recipe.grad_checkpoint else layers * per_layer
    if recipe.num_layers and not recipe.grad_checkpoint:
        kept = min(recipe.num_layers, layers) * per_layer
    activations = recipe.batch_size * seq_len * kept * compute_bytes
    return MemoryEstimate(weights, optimizer, activations, int(_PROCESS_BYTES + _LOSS_BYTES))


def checkpoint_bytes(facts: ModelFacts, recipe: Recipe) -> int:
    """Weights and two moments of one checkpoint, all float32."""
    return 12 * trainable_parameters(facts, recipe)


def require_fit(
    facts: ModelFacts, recipe: Recipe, seq_len: int, dtype: str, available: int
) -> MemoryEstimate:
    """Raises DoesNotFit, with the change that would make it fit, if the estimate exceeds memory."""
    estimate = estimate_memory(facts, recipe, seq_len, dtype)
    if estimate.total > available:
        suggestion, change = suggest_fitting(facts, recipe, seq_len, dtype, available)
        raise DoesNotFit(
            f"The run needs about {estimate.total / GB:.1f} GB and {available / GB:.1f} GB are free",
            suggestion=suggestion,
            details={
                "estimate": estimate.to_dict(),
                "available_gb": round(available / GB, 3),
                "fitting": change,
            },
        )
    return estimate


def suggest_fitting(
    facts: ModelFacts, recipe: Recipe, seq_len: int, dtype: str, available: int
) -> tuple[str, dict[str, Any] | None]:
    """The smallest change to batch size, sequence length and checkpointing that fits: in words, and
    as recipe fields; None where none does."""
    change = _fitting_change(facts, recipe, seq_len, dtype, available)
    return _in_words(change, recipe), change


def _fitting_change(
    facts: ModelFacts, recipe: Recipe, seq_len: int, dtype: str, available: int
) -> dict[str, Any] | None:
    options = [(recipe.batch_size, seq_len, recipe.grad_checkpoint)]
    options += [(recipe.batch_size, seq_len, True)]
    batch, length = recipe.batch_size, seq_len
    while batch > 1 or length > 256:
        batch, length = (batch // 2, length) if batch > 1 else (1, length // 2)
        options += [(batch, length, recipe.grad_checkpoint), (batch, length, True)]
    for batch_size, tokens, checkpointing in options:
        change = {"batch_size": batch_size, "grad_checkpoint": checkpointing}
        tried = recipe.model_copy(update=change)
        if estimate_memory(facts, tried, tokens, dtype).total <= available:
            return {**change, "max_seq_length": tokens}
    return None


def _in_words(change: dict[str, Any] | None, recipe: Recipe) -> str:
    if change is not None:
        return (
            f"This would fit: batch_size {change['batch_size']}, "
            f"max_seq_length {change['max_seq_length']}, "
            f"grad_checkpoint {str(change['grad_checkpoint']).lower()}."
        )
    if recipe.fine_tune_type == "full":
        return "No batch is small enough; train an adapter: fine_tune_type lora."
    return "No batch is small enough; use a smaller model."


def _shape(facts: ModelFacts) -> tuple[int, int, int, int, int]:
    """Hidden size, width of all heads, of all key-value heads, of the MLP, and layers."""
    hidden = facts.hidden_size or 2048
    head_dim = facts.head_dim or 64
    heads = (facts.num_heads or hidden // head_dim) * head_dim
    kv_heads = (facts.num_kv_heads or facts.num_heads or hidden // head_dim) * head_dim
    return hidden, heads, kv_heads, facts.intermediate_size or 4 * hidden, facts.num_layers or 24
