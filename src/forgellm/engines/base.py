"""The engine seam: what training and generation ask of a library.

Batches cross it as numpy, so that every engine sees the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from forgellm.data.batches import Batch
from forgellm.engines.process_group import ProcessGroup
from forgellm.schema.generation import Sampling


@dataclass(frozen=True)
class PreferenceFigures:
    """Means over the pairs since the last read. An answer's reward is beta times its
    log-probability: for dpo in relation to the start model, for orpo per token.

    Attributes:
        reward_accuracy: share of the pairs whose chosen answer has the greater reward, 0 to 1.
        reward_margin: reward of the chosen answer minus that of the rejected one.
        chosen_log_prob: log-probability per token of the chosen answer, in nats.
    """

    reward_accuracy: float
    reward_margin: float
    chosen_log_prob: float


@dataclass(frozen=True)
class ProcessMetrics:
    """What one of several processes that train together has done since the last read.

    Attributes:
        num_tokens: tokens of its share that counted in the loss.
        peak_memory_bytes: peak of the process, or of its device, so far.
        host: the machine's name.
    """

    num_tokens: int
    peak_memory_bytes: int
    host: str = ""


@dataclass(frozen=True)
class StepMetrics:
    """Figures since the last read.

    Attributes:
        training_loss: mean cross-entropy in nats over the counted tokens, or mean preference loss
            over the pairs.
        grad_norm: global norm of the last update's gradient, before clipping.
        num_tokens: tokens that counted in the loss.
        peak_memory_bytes: peak of this process (CPU) or of the device, so far.
        preference: None unless pairs were trained on.
        processes: of each process, by its number.
    """

    training_loss: float
    grad_norm: float
    num_tokens: int
    peak_memory_bytes: int
    preference: PreferenceFigures | None = None
    processes: tuple[ProcessMetrics, ...] = ()


@dataclass(frozen=True)
class EngineInfo:
    """What an engine decided, for the run's record."""

    engine: str
    device: str
    dtype: str
    dtype_reason: str
    num_parameters: int
    num_trainable: int
    context_length: int
    versions: dict[str, str | None]


@dataclass(frozen=True)
class Agreement:
    """How alike two models predict the next token, over all positions of some prompts.

    Attributes:
        top1: share of positions at which both find the same token most likely, from 0 to 1.
        mean_kl: mean divergence of the second model's distribution from the first's, in nats.
    """

    top1: float
    mean_kl: float
    num_positions: int
    dtype: str


@dataclass(frozen=True)
class ScoredToken:
    """A token and how likely the model's own distribution made it, before any sampling setting.

    Attributes:
        log_prob: in nats.
        top: the likeliest tokens in its place with their log-probabilities, likeliest first.
    """

    token_id: int
    log_prob: float
    top: tuple[tuple[int, float], ...] = ()


class TrainEngine(Protocol):
    """A model with an optimiser. One update may take several `step` calls (accumulation).

    Where several processes train together, each gives its share of the rows to the same calls, and
    weights and figures come out the same in all.
    """

    info: EngineInfo
    group: ProcessGroup
    warnings: list[str]
    """Sentences about what of the model is not trained as one might expect."""

    def step(self, batch: Batch, learning_rate: float, update: bool) -> None:
        """Add the gradient of `batch`; with `update`, divide by the tokens (or pairs) counted since the
        last update, clip, and let the optimiser move the weights. Does not wait for the device."""

    def read_metrics(self) -> StepMetrics:
        """Figures since the last read. Waits for the device. Losses may be NaN or infinite."""

    def validation_loss(self, batches: Iterable[Batch], should_stop: Callable[[], bool]) -> float:
        """Mean cross-entropy in nats over all counted tokens of `batches`, or mean preference loss
        over all their pairs."""

    def evaluating(self) -> AbstractContextManager[GenerateEngine]:
        """The model with the weights that it has now, without dropout, for as long as the context
        lasts. Measuring through it changes neither weights nor random state."""

    def rehearse(self, batch: Batch) -> int:
        """Run one step forward and backward without changing anything; peak bytes it took."""

    def available_bytes(self) -> int | None:
        """Free memory of the device, or None where the machine's own memory is meant."""

    def save_weights(self, folder: Path | None, stem: str) -> list[str]:
        """Write the trained weights into `folder`; returns the names written. Of several processes
        the first names the folder; the others take part with None.

        Adapters: `<stem>_adapters.safetensors` in mlx-lm's layout.
        Full fine-tuning: a folder `<stem>_model/` in Hugging Face layout.
        """

    def save_optimizer(self, folder: Path | None) -> list[str]:
        """Write optimiser moments and random state into `folder`, as `save_weights` does; returns the
        names written."""

    def load_weights(self, weights: Path) -> None:
        """Begin with what another run's `save_weights` wrote, and a fresh optimiser.

        Raises UnsupportedModel, CheckpointCorrupt.
        """

    def restore(self, weights: Path, optimizer_folder: Path) -> None:
        """Continue from what `save_weights` and `save_optimizer` wrote."""

    def adapter_config(self) -> dict[str, Any] | None:
        """Contents of `adapter_config.json` (mlx-lm's and PEFT's keys), or None for full runs."""


class GenerateEngine(Protocol):
    """A loaded model that answers.

    Attributes:
        max_concurrent: how many answers it makes at once; more than that must not be asked for
            where it is 1.
    """

    info: EngineInfo
    max_concurrent: int

    def generate(
        self, prompt_ids: list[int], sampling: Sampling, stop_ids: frozenset[int]
    ) -> Iterator[int]:
        """Yield token ids until a stop id (not yielded), `max_tokens` or the context's end.
        Closing the iterator stops the work."""

    def generate_scored(
        self, prompt_ids: list[int], sampling: Sampling, stop_ids: frozenset[int], num_top: int
    ) -> Iterator[ScoredToken]:
        """As `generate`, each token scored with the `num_top` likeliest; a stop id comes last."""

    def score(self, ids: list[int], num_top: int) -> list[ScoredToken]:
        """Each id after the first, scored in the light of those before it."""

    def token_log_probs(self, batch: Batch) -> NDArray[np.float32]:
        """[B, T] log-probability of each target, in nats; 0 where `loss_mask` is 0."""

    def memory_bytes(self) -> int:
        """Bytes the model's weights and caches take."""


class WeightChange(Protocol):
    """What is to become of some of a model's weights."""

    @property
    def names(self) -> frozenset[str]:
        """The stored tensors it changes."""

    def __call__(self, name: str, weight: NDArray[np.float32]) -> NDArray[np.float32]:
        """The new weight, of the same shape. Raises UnsupportedModel."""


class FuseEngine(Protocol):
    """Makes one plain model of a base and what a checkpoint holds."""

    def fuse(
        self,
        model_path: Path,
        weights: Path,
        out: Path,
        on_progress: Callable[[float], None],
        dtype: str | None = None,
    ) -> None:
        """Write weights and `config.json` into the folder `out`, stored as the base stores its own,
        or all of them in `dtype`.

        `weights` is an adapters file, or a full checkpoint's folder. `on_progress` gets 0 to 1.
        Raises UnsupportedModel, CheckpointCorrupt.
        """

    def rewrite(
        self,
        model_path: Path,
        change: WeightChange,
        out: Path,
        on_progress: Callable[[float], None],
    ) -> None:
        """Write the base's weights and `config.json` into `out`, some of them changed in float32.

        At most one file of the base is in memory at a time. Raises UnsupportedModel,
        CheckpointCorrupt.
        """

    def agreement(
        self, model_path: Path, weights: Path, fused: Path, prompts: list[list[int]]
    ) -> Agreement:
        """Compare `fused` with the base and its checkpoint, both loaded afresh, on token ids."""
