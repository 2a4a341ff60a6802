"""What both engines agree on about preference losses."""

from __future__ import annotations

from collections.abc import Sequence

from forgellm.engines.base import PreferenceFigures

# An answer that is certain has infinite odds; beyond this doubt, in nats a token, they do not grow.
LEAST_DOUBT = 1e-6


def preference_figures(sums: Sequence[float], num_pairs: int) -> PreferenceFigures:
    """`sums` over the pairs, in the order of the fields."""
    accuracy, margin, chosen = (value / max(1, num_pairs) for value in sums)
    return PreferenceFigures(accuracy, margin, chosen)
