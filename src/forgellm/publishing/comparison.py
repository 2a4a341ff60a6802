"""How alike two models are on general text that comes with the package."""

from __future__ import annotations

import math
from importlib import resources
from pathlib import Path
from time import perf_counter
from typing import Any

from forgellm.data.tokenizer import Tokenizer
from forgellm.engines.base import Agreement, FuseEngine, GenerateEngine
from forgellm.engines.merging import comparison_dtype
from forgellm.engines.registry import load_generate_engine
from forgellm.errors import ForgeError
from forgellm.evaluation.scoring import likelihoods, mean_loss, windows
from forgellm.schema.generation import Sampling

_PROMPTS, _PROMPT_TOKENS = 6, 64
_SCORED_TEXTS = 6
_SPEED_TOKENS = 33


def general_texts() -> list[str]:
    folder = resources.files("forgellm") / "assets" / "general" / "heldout"
    files = sorted(folder.iterdir(), key=lambda file: file.name)
    return [file.read_text("utf-8") for file in files]


def general_prompts(tokenizer: Tokenizer) -> list[list[int]]:
    """The beginnings of a few of the texts, as ids."""
    start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    ids = [start + tokenizer.encode(text) for text in general_texts()[:_PROMPTS]]
    return [prompt[:_PROMPT_TOKENS] for prompt in ids]


def perplexity(folder: Path) -> float:
    """Of a model in Hugging Face layout on a few of the texts, by its own tokenizer."""
    engine = load_generate_engine(folder, None, dtype=comparison_dtype(folder))
    return perplexity_of(engine, Tokenizer.load(folder))


def perplexity_of(engine: GenerateEngine, tokenizer: Tokenizer) -> float:
    texts = general_texts()[:_SCORED_TEXTS]
    passages = [passage for text in texts for passage in windows(tokenizer, text)]
    return math.exp(mean_loss(likelihoods(engine, passages)))


def decode_speed(engine: GenerateEngine, tokenizer: Tokenizer) -> float:
    """Tokens per second of one answer, after its first token."""
    prompt = general_prompts(tokenizer)[0]
    ids = engine.generate(prompt, Sampling.greedy(_SPEED_TOKENS), frozenset())
    next(ids)
    started = perf_counter()
    num_tokens = sum(1 for _ in ids)
    return num_tokens / (perf_counter() - started)


def agreement_of(engine: FuseEngine, base: Path, weights: Path, out: Path) -> Agreement:
    """How the model `out` predicts beside `base` with `weights`; see `FuseEngine.agreement`."""
    return engine.agreement(base, weights, out, general_prompts(Tokenizer.load(base)))


def require_alike(
    agreement: Agreement, top1: float, kl: float, message: str, suggestion: str
) -> None:
    """Raises ForgeError with the figures, unless at least `top1` of positions have the same
    likeliest token and the mean divergence is at most `kl` nats."""
    # A comparison with NaN is false, so it is refused too.
    if agreement.top1 >= top1 and agreement.mean_kl <= kl:
        return
    details = {
        "top1_agreement": agreement.top1,
        "mean_kl": finite(agreement.mean_kl),
        "positions": agreement.num_positions,
    }
    raise ForgeError(message, suggestion=suggestion, details=details)


def finite(value: float) -> float | None:
    """For JSON, which has no NaN."""
    return round(value, 6) if math.isfinite(value) else None


def figures_of(agreement: Agreement) -> dict[str, Any]:
    return {
        "top1_agreement": round(agreement.top1, 6),
        "mean_kl": round(agreement.mean_kl, 8),
        "positions": agreement.num_positions,
        "dtype": agreement.dtype,
    }
