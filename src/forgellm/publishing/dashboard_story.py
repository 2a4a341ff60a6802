"""What the training dashboard tells about a run: its curves as arrays, its figures as words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forgellm.runs.checkpoints import NUM_BEST, list_checkpoints, rank
from forgellm.runs.curve import Table, table_of
from forgellm.runs.metrics import effective, read_lines
from forgellm.runs.store import Run
from forgellm.runs.summary import (
    average_tokens_per_second,
    best_validation,
    generalisation_gaps,
    peak_memory_gb,
)
from forgellm.schema.recipe import Recipe
from forgellm.schema.run import MetricsLine, RunRecord, RunState

Floats = NDArray[np.float64]
# A run with fewer reports than this is drawn as it is.
_REPORTS_PER_HALF_WINDOW = 30
_METHODS = {
    "cpt": "Continued pre-training",
    "ift": "Instruction fine-tuning",
    "dpo": "Preferences (DPO)",
    "orpo": "Preferences (ORPO)",
}


@dataclass(frozen=True)
class Curves:
    """Arrays over reports [R] and validations [V]; NaN where nothing could be measured.

    Attributes:
        iteration: of each report [R], as are the figures below it.
        non_finite: iterations whose loss or gradient was NaN or infinite.
        validated_at: iteration of each validation [V].
        gap: of each validation [V], see `summary.generalisation_gaps`.
    """

    iteration: Floats
    training_loss: Floats
    smoothed_loss: Floats
    learning_rate: Floats
    tokens_per_second: Floats
    memory_usage_gb: Floats
    grad_norm: Floats
    reward_accuracy: Floats
    non_finite: Floats
    validated_at: Floats
    validation_loss: Floats
    gap: Floats


@dataclass(frozen=True)
class Headline:
    """One number of the header, e.g. ("Peak memory", "3.10 GB", "")."""

    title: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Story:
    """Everything that is drawn.

    Attributes:
        best: iteration and validation loss of the best checkpoints, best first.
    """

    record: RunRecord
    state: RunState
    curves: Curves
    headlines: list[Headline]
    best: list[tuple[int, float]]


def read_story(run: Run) -> Story:
    """Raises RunNotFound."""
    record, state = run.record(), run.state()
    lines = effective(read_lines(run.folder)[0])
    best = rank(list_checkpoints(run.folder))[:NUM_BEST]
    return Story(
        record=record,
        state=state,
        curves=curves_of(lines),
        headlines=headlines_of(lines, state),
        best=[(c.iteration, c.validation_loss) for c in best if c.validation_loss is not None],
    )


def curves_of(lines: Sequence[MetricsLine]) -> Curves:
    reports = [line for line in lines if line.learning_rate is not None]
    validations = [line for line in lines if line.validation_loss is not None]
    iteration = _column(reports, "iteration")
    training_loss = _column(reports, "training_loss")
    smoothed_loss = smoothed(training_loss)
    return Curves(
        iteration=iteration,
        training_loss=training_loss,
        smoothed_loss=smoothed_loss,
        learning_rate=_column(reports, "learning_rate"),
        tokens_per_second=_column(reports, "tokens_per_second"),
        memory_usage_gb=_column(reports, "memory_usage_gb"),
        grad_norm=_column(reports, "grad_norm"),
        reward_accuracy=_column(reports, "reward_accuracy"),
        non_finite=_column([line for line in lines if line.non_finite], "iteration"),
        validated_at=_column(validations, "iteration"),
        validation_loss=_column(validations, "validation_loss"),
        gap=generalisation_gaps(table_of(lines))[[x.validation_loss is not None for x in lines]],
    )


def smoothed(values: Floats) -> Floats:
    """A moving average, taken twice; NaN stays NaN and counts for nothing elsewhere."""
    half = len(values) // _REPORTS_PER_HALF_WINDOW
    return _moving_average(_moving_average(values, half), half) if half else values


def _moving_average(values: Floats, half: int) -> Floats:
    """Centred. At the start, where a loss falls steeply, it reaches less far forward."""
    known = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    centre = np.arange(len(values))
    reach = np.clip(centre, half // 4, half)
    start, end = np.maximum(centre - reach, 0), np.minimum(centre + reach + 1, len(values))
    average = (sums[end] - sums[start]) / np.maximum(counts[end] - counts[start], 1)
    return np.where(known, average, np.nan)


def _column(lines: Sequence[MetricsLine], name: str) -> Floats:
    return np.array([getattr(line, name) for line in lines], dtype=np.float64)


def headlines_of(lines: Sequence[MetricsLine], state: RunState) -> list[Headline]:
    """The header's numbers; a dash where there is none."""
    table = table_of(lines)
    speed, memory = average_tokens_per_second(table), peak_memory_gb(table)
    tokens = lines[-1].trained_tokens if lines else 0
    return [
        *_loss_headlines(lines, table),
        Headline("Tokens trained", compact(tokens) if tokens else "–"),
        Headline("Average speed", f"{compact(speed)} tok/s" if speed else "–"),
        Headline("Peak memory", f"{memory:.2f} GB" if memory else "–"),
        Headline("Training time", duration(state.training_seconds)),
    ]


def _loss_headlines(lines: Sequence[MetricsLine], table: Table) -> list[Headline]:
    validations = [(x.validation_loss, x.iteration) for x in lines if x.validation_loss is not None]
    best = best_validation(table)
    if best is None:
        losses = [line.training_loss for line in lines if line.training_loss is not None]
        value = f"{losses[-1]:.3f}" if losses else "–"
        return [Headline("Final training loss", value, "no validation")]
    (first, _), (final, at), (lowest, best_at) = validations[0], validations[-1], best
    change = (
        f"{100 * (lowest / first - 1):+.1f} % at ".replace("-", "−") if best_at and first else ""
    )
    return [
        Headline("Best validation loss", f"{lowest:.3f}", f"{change}iteration {best_at:,}"),
        Headline("Final validation loss", f"{final:.3f}", f"iteration {at:,}"),
    ]


def status_of(story: Story) -> str:
    done, planned = story.state.iteration, story.record.recipe.max_iterations
    how = " early" if story.state.stopped_early else ""
    return f"{story.state.phase}{how} · {done:,} of {planned:,} iterations"


def method_of(record: RunRecord) -> str:
    """What was trained and how, in a line."""
    recipe = record.recipe
    batch = f"batch {recipe.batch_size} × {recipe.max_seq_length or 0:,} tokens"
    if recipe.grad_accum_steps > 1:
        batch += f" × {recipe.grad_accum_steps} accumulated"
    kind = _METHODS[recipe.training_type]
    where = " on ".join(part for part in (record.dtype, record.device) if part)
    return " · ".join(part for part in (kind, _trained_part(recipe), batch, where) if part)


def _trained_part(recipe: Recipe) -> str:
    last = f", last {recipe.num_layers} layers" if recipe.num_layers else ""
    if recipe.fine_tune_type == "full":
        return f"full fine-tuning{last}"
    target = recipe.lora_target
    layers = f"{target} linear layers" if isinstance(target, str) else ", ".join(target)
    name = {"lora": "LoRA", "dora": "DoRA"}[recipe.fine_tune_type]
    return f"{name} rank {recipe.lora_rank}, alpha {recipe.lora_alpha:g}, {layers}{last}"


def schedule_of(recipe: Recipe) -> str:
    warmup = f", {recipe.warmup_steps:,} warm-up" if recipe.warmup_steps else ""
    return f"{recipe.lr_schedule}{warmup}"


def error_of(state: RunState) -> str:
    error: dict[str, Any] = state.error or {}
    return str(error.get("error", ""))


def compact(value: float) -> str:
    """Three digits or so: 8.25, 512, 1.2k, 34M."""
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit * 0.9995:
            return f"{value / limit:.3g}{letter}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    if seconds <= 0:
        return "–"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if minutes < 99.5:
        return f"{minutes:.0f} min"
    return f"{hours:.1f} h" if hours < 99.5 else f"{hours / 24:.1f} days"
