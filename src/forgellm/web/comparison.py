"""Several runs side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from forgellm.runs.store import Run
from forgellm.schema.figures import ComparedRun, CompareReply
from forgellm.schema.figures import Curve as CurveReply
from forgellm.web.run_figures import summed_up

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from forgellm.runs.curve import Curve

_MAX_POINTS = 2000


def compare(runs: list[Run]) -> CompareReply:
    """At most 2,000 iterations; each is one that some run has figures of."""
    # Not at the top: it brings numpy, which a server without runs does without.
    from forgellm.runs.curve import downsample, effective, read_curve

    curves = [effective(read_curve(run.folder)) for run in runs]
    kept = [curve.select(downsample(curve.table, _MAX_POINTS // len(runs))) for curve in curves]
    iterations = sorted({number for curve in kept for number in curve.table["iteration"].tolist()})
    return CompareReply(
        iterations=iterations,
        runs=[_compared(run, curve, iterations) for run, curve in zip(runs, curves, strict=True)],
        differences=_differences(
            [run.record().recipe.without_secrets().model_dump() for run in runs]
        ),
    )


def _compared(run: Run, curve: Curve, iterations: list[int]) -> ComparedRun:
    table = curve.table
    return ComparedRun(
        name=run.name,
        training_id=run.record().training_id,
        phase=run.state().phase,
        performance=summed_up(run)[1],
        curve=CurveReply(
            training_loss=_at(iterations, table["iteration"], table["training_loss"]),
            validation_loss=_at(iterations, table["iteration"], table["validation_loss"]),
        ),
    )


def _at(iterations: list[int], places: NDArray[Any], values: NDArray[Any]) -> list[float | None]:
    """`values` belong to the iterations `places`, in rising order."""
    known = values == values
    values, places = values[known], places[known]
    after = places.searchsorted(iterations, "right")
    return [
        float(values[end - 1]) if end and places[end - 1] == iteration else None
        for end, iteration in zip(after.tolist(), iterations, strict=True)
    ]


def _differences(recipes: list[dict[str, Any]]) -> dict[str, list[Any]]:
    found = {name: [recipe[name] for recipe in recipes] for name in recipes[0]}
    return {name: values for name, values in found.items() if any(v != values[0] for v in values)}
