"""The three figures of the demo, measured the same way before and after."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from forgellm.data.batches import Batch
from forgellm.data.tokenizer import Tokenizer
from forgellm.engines.base import GenerateEngine
from forgellm.evaluation.probe_files import read_probes
from forgellm.evaluation.probes import score_probes
from forgellm.evaluation.scoring import likelihoods, mean_loss, windows
from forgellm.evaluation.suite import SHIPPED_GENERAL as GENERAL_HELD_OUT

ASSETS = Path(__file__).parents[1] / "assets"
HANDBOOK = ASSETS / "handbook"
PROBES = ASSETS / "handbook_probes.json"


@dataclass(frozen=True)
class Measurement:
    """Losses in nats per token; probe figures from 0 to 1."""

    handbook_loss: float
    general_loss: float
    probe_accuracy: float
    probe_error: float
    probe_confidence: float
    num_probes: int


def measure(engine: GenerateEngine, tokenizer: Tokenizer, handbook: Iterable[Batch]) -> Measurement:
    """`handbook` are the batches of the documents that the run holds out."""
    log_probs, num_tokens = 0.0, 0
    for batch in handbook:
        log_probs += float(engine.token_log_probs(batch).sum(dtype="float64"))
        num_tokens += batch.num_targets
    texts = [file.read_text("utf-8") for file in sorted(GENERAL_HELD_OUT.glob("*.md"))]
    passages = [passage for text in texts for passage in windows(tokenizer, text)]
    probes = score_probes(engine, tokenizer, read_probes(PROBES))
    return Measurement(
        handbook_loss=-log_probs / num_tokens,
        general_loss=mean_loss(likelihoods(engine, passages)),
        probe_accuracy=probes.accuracy,
        probe_error=probes.standard_error,
        probe_confidence=probes.confidence,
        num_probes=len(probes.right),
    )
