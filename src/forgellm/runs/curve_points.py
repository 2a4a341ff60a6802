"""Which lines of a curve to draw.

The same as `metrics.downsample` says of a list of lines, for a million of them at once.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from forgellm.runs.curve import Curve, Integers, effective, read_curve
from forgellm.runs.records import IndexIsWrong, Places
from forgellm.schema.run import MetricsLine

Numbers = NDArray[np.float64]


def drawn(folder: Path) -> tuple[list[MetricsLine], Curve]:
    """What counts of the curve, and the lines of it to draw, at most 2,000."""
    for trust_index in (True, False):
        with suppress(IndexIsWrong, OSError):
            curve = effective(read_curve(folder, trust_index=trust_index))
            return curve.select(downsample(curve)).lines(), curve
    curve = read_curve(folder, trust_index=False)
    return [], curve.select(np.array([], np.intp))  # the log was replaced in this moment


def downsample(curve: Curve, max_points: int = 2000) -> Places:
    """Places of the lines that `metrics.downsample` keeps; `max_points` is 2 or more."""
    total = len(curve)
    if total <= max_points:
        return np.arange(total)
    num_validated, room = int(curve.blocks["num_validated"].sum()), max_points // 2 - 1
    ranks = np.arange(num_validated)
    if num_validated > room:
        ranks = (np.arange(room) + 1) * num_validated // room - 1
    chosen = {0, total - 1, *validated(curve, ranks).tolist()}
    num_buckets = max(0, max_points - len(chosen)) // 2
    edges = np.arange(num_buckets + 1) * total // max(1, num_buckets)
    places, losses = _candidates(curve, edges)
    for first, last in _pairs(places.searchsorted(edges)):
        chosen |= {int(places[first + found]) for found in _extremes(losses[first:last])}
    return np.array(sorted(chosen), np.intp)


def validated(curve: Curve, ranks: Integers) -> Places:
    """Places of those of the lines with a validation loss that have these numbers, from 0 on."""
    blocks, starts = curve.blocks, curve.starts
    before = np.append(0, blocks["num_validated"].cumsum())
    which = before.searchsorted(ranks, "right") - 1
    places: Places = starts[which] + blocks["validated_at"][which]
    is_many = blocks["num_validated"][which] > 1
    many = np.unique(which[is_many])
    rows = _rows(starts, many)
    (losses,) = curve.select(rows).columns("validation_loss")
    found = rows[~np.isnan(losses)]
    # `found` has all of these blocks, in which a line's number is one within its block.
    sizes = np.append(0, blocks["num_validated"][many].cumsum())
    of_many = which[is_many]
    within = sizes[many.searchsorted(of_many)] + ranks[is_many] - before[of_many]
    places[is_many] = found[within]
    return places


def _candidates(curve: Curve, edges: Integers) -> tuple[Places, Numbers]:
    """Lines among which are the extremes of each bucket, of which these are the edges: all lines of
    a block that an edge cuts, and of the others the lowest and the highest."""
    blocks, starts = curve.blocks, curve.starts
    cut = np.unique(starts.searchsorted(edges[1:-1], "right") - 1)
    rows = _rows(starts, cut)
    (losses,) = curve.select(rows).columns("training_loss")
    whole = np.ones(len(blocks), bool)
    whole[cut] = False
    found, values = [rows], [losses]
    for name in ("lowest", "highest"):
        found.append((starts[:-1] + blocks[f"{name}_at"])[whole])
        values.append(blocks[name][whole])
    places = np.concatenate(found)
    order = places.argsort(kind="stable")
    return places[order], np.concatenate(values)[order]


def _rows(starts: Integers, blocks: Places) -> Places:
    """Places of all lines of these blocks, which rise."""
    found = [np.arange(starts[block], starts[block + 1]) for block in blocks.tolist()]
    return np.concatenate([np.empty(0, np.intp), *found])


def _pairs(edges: Places) -> list[tuple[int, int]]:
    listed: list[int] = edges.tolist()
    return list(zip(listed[:-1], listed[1:], strict=True))


def _extremes(losses: Numbers) -> set[int]:
    """Where the lowest and the highest are; where none is known, the first."""
    if not len(losses):
        return set()
    lowest = int(losses.argmin())  # or a NaN
    if np.isnan(losses[lowest]):
        known = np.flatnonzero(~np.isnan(losses))
        return {int(known[place]) for place in _extremes(losses[known])} if len(known) else {0}
    # Of equals the first of the lowest and the last of the highest, as for a list of lines.
    return {lowest, len(losses) - 1 - int(losses[::-1].argmax())}
