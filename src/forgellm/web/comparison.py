"""Several runs side by side."""

from __future__ import annotations

from typing import Any

from forgellm.runs.metrics import downsample
from forgellm.runs.store import Run
from forgellm.schema.figures import ComparedRun, CompareReply, Curve
from forgellm.schema.run import MetricsLine
from forgellm.web.run_figures import curve_of, summed_up

_MAX_POINTS = 2000


def compare(runs: list[Run]) -> CompareReply:
    """At most 2,000 iterations; each is one that some run has figures of."""
    lines = [curve_of(run) for run in runs]
    kept = [downsample(curve, _MAX_POINTS // len(runs)) for curve in lines]
    iterations = sorted({line.iteration for curve in kept for line in curve})
    return CompareReply(
        iterations=iterations,
        runs=[_compared(run, curve, iterations) for run, curve in zip(runs, lines, strict=True)],
        differences=_differences(
            [run.record().recipe.without_secrets().model_dump() for run in runs]
        ),
    )


def _compared(run: Run, lines: list[MetricsLine], iterations: list[int]) -> ComparedRun:
    return ComparedRun(
        name=run.name,
        training_id=run.record().training_id,
        phase=run.state().phase,
        performance=summed_up(run)[1],
        curve=Curve(
            training_loss=_at(iterations, lines, "training_loss"),
            validation_loss=_at(iterations, lines, "validation_loss"),
        ),
    )


def _at(iterations: list[int], lines: list[MetricsLine], figure: str) -> list[float | None]:
    values = {
        line.iteration: value for line in lines if (value := getattr(line, figure)) is not None
    }
    return [values.get(iteration) for iteration in iterations]


def _differences(recipes: list[dict[str, Any]]) -> dict[str, list[Any]]:
    found = {name: [recipe[name] for recipe in recipes] for name in recipes[0]}
    return {name: values for name, values in found.items() if any(v != values[0] for v in values)}
