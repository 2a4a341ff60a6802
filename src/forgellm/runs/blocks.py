"""Neighbouring lines of a curve summed up, so that what is to be known of a million lines can be
told from thousands of blocks.

    K  blocks
    N  lines of each
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

HALF_WINDOW = 5
_NUM_EDGE = 2 * HALF_WINDOW
_WEIGHTS = np.full(2 * HALF_WINDOW + 1, 1 / (2 * HALF_WINDOW + 1))

BLOCK = np.dtype(
    [
        ("num_lines", "<i8"),
        ("end", "<i8"),  # in the log, of its last line
        ("first_iteration", "<i8"),
        ("last_iteration", "<i8"),
        ("rises", "<i8"),  # each line is of a later iteration than the one before
        # Training losses. Where none is known, both places are 0 and all figures NaN.
        ("lowest", "<f8"),
        ("lowest_at", "<i8"),  # the first of equals
        ("highest", "<f8"),
        ("highest_at", "<i8"),  # the last of equals
        ("last_loss", "<f8"),
        # What is finite of them: all of up to 20, else the first and last 10. `squares` is the sum
        # over those whose window lies in the block, see `curve_figures.training_stability`.
        ("num_finite", "<i8"),
        ("sum_absolute", "<f8"),
        ("head", "<f8", _NUM_EDGE),
        ("tail", "<f8", _NUM_EDGE),
        ("squares", "<f8"),
        # Validations
        ("num_validated", "<i8"),
        ("validated_at", "<i8"),  # the first
        ("best_validation", "<f8"),
        ("best_iteration", "<i8"),  # the lowest of equals
        # Lines that have a speed: `seconds` is without the first one's, which depends on what was
        # trained before the block.
        ("num_speeds", "<i8"),
        ("first_speed", "<f8"),
        ("first_trained", "<i8"),
        ("most_trained", "<i8"),
        ("seconds", "<f8"),
        ("peak_memory", "<f8"),
    ]
)


def sum_up(records: NDArray[Any]) -> NDArray[Any]:
    """[K] of BLOCK, from records [K, N]."""
    blocks = np.zeros(len(records), BLOCK)
    if not len(records):
        return blocks
    blocks["num_lines"] = records.shape[1]
    blocks["end"] = records["end"][:, -1]
    iteration = _column(records, "iteration")
    blocks["first_iteration"], blocks["last_iteration"] = iteration[:, 0], iteration[:, -1]
    blocks["rises"] = (iteration[:, 1:] > iteration[:, :-1]).all(1)
    losses = _column(records, "training_loss")
    _find_extremes(blocks, losses)
    _sum_finite(blocks, losses)
    _find_validations(blocks, _column(records, "validation_loss"), iteration)
    _sum_speeds(blocks, _column(records, "tokens_per_second"), _column(records, "trained_tokens"))
    blocks["peak_memory"] = np.fmax.reduce(_column(records, "memory_usage_gb"), axis=1, initial=0)
    return blocks


def moving_residuals(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of all but the first and last 5: how far each is from the mean of 11 around it."""
    if len(values) <= 2 * HALF_WINDOW:
        return np.empty(0)
    return values[HALF_WINDOW:-HALF_WINDOW] - np.convolve(values, _WEIGHTS, "valid")


def seconds_of(before: int, speed: NDArray[Any], trained: NDArray[Any]) -> float:
    """What the tokens beyond `before` took, of lines that have a speed."""
    new = np.diff(trained, prepend=before)
    if new.min(initial=0) < 0:  # what was counted before does not count again
        highest = np.maximum.accumulate(np.append(before, trained))
        new = np.maximum(trained - highest[:-1], 0)
    return float((new / speed).sum())


def has_speed(speed: NDArray[Any]) -> NDArray[np.bool_]:
    known: NDArray[np.bool_] = ~np.isnan(speed) & (speed != 0)
    return known


def _find_extremes(blocks: NDArray[Any], losses: NDArray[np.float64]) -> None:
    num_lines, number = losses.shape[1], np.arange(len(blocks))
    is_known = ~np.isnan(losses)
    low, high = (
        (losses, losses)
        if is_known.all()
        else (np.where(is_known, losses, np.inf), np.where(is_known, losses, -np.inf))
    )
    lowest_at = low.argmin(1)
    highest_at = num_lines - 1 - high[:, ::-1].argmax(1)
    last_at = num_lines - 1 - is_known[:, ::-1].argmax(1)
    any_known = is_known.any(1)
    blocks["lowest_at"] = np.where(any_known, lowest_at, 0)
    blocks["highest_at"] = np.where(any_known, highest_at, 0)
    for name, places in (("lowest", lowest_at), ("highest", highest_at), ("last_loss", last_at)):
        blocks[name] = np.where(any_known, losses[number, places], np.nan)


def _sum_finite(blocks: NDArray[Any], losses: NDArray[np.float64]) -> None:
    is_finite = np.isfinite(losses)
    blocks["num_finite"] = is_finite.sum(1)
    blocks["head"] = blocks["tail"] = np.nan
    if is_finite.all() and losses.shape[1] > 2 * _NUM_EDGE:
        blocks["sum_absolute"] = np.abs(losses).sum(1)
        blocks["head"], blocks["tail"] = losses[:, :_NUM_EDGE], losses[:, -_NUM_EDGE:]
        around = np.convolve(losses.ravel(), _WEIGHTS, "same").reshape(losses.shape)
        residuals = (losses - around)[:, HALF_WINDOW:-HALF_WINDOW]
        blocks["squares"] = (residuals * residuals).sum(1)
        return
    for block, values, which in zip(blocks, losses, is_finite, strict=True):
        finite = values[which]
        rest = finite[_NUM_EDGE:][-_NUM_EDGE:]
        block["sum_absolute"] = np.abs(finite).sum()
        block["head"][: len(finite)] = finite[:_NUM_EDGE]
        block["tail"][: len(rest)] = rest
        if len(finite) > 2 * _NUM_EDGE:
            residuals = moving_residuals(finite)
            block["squares"] = residuals @ residuals


def _find_validations(
    blocks: NDArray[Any], losses: NDArray[np.float64], iteration: NDArray[np.int64]
) -> None:
    blocks["best_validation"] = np.inf
    is_one = ~np.isnan(losses)
    if not is_one.any():
        return
    blocks["num_validated"] = is_one.sum(1)
    blocks["validated_at"] = is_one.argmax(1)
    best = np.where(is_one, losses, np.inf).min(1)
    never = np.iinfo(np.int64).max
    blocks["best_validation"] = best
    blocks["best_iteration"] = np.where(losses == best[:, None], iteration, never).min(1)


def _sum_speeds(
    blocks: NDArray[Any], speed: NDArray[np.float64], trained: NDArray[np.int64]
) -> None:
    known = has_speed(speed)
    blocks["num_speeds"] = known.sum(1)
    new = trained[:, 1:] - trained[:, :-1]
    if known.all() and new.min(initial=0) >= 0:
        blocks["first_speed"], blocks["first_trained"] = speed[:, 0], trained[:, 0]
        blocks["most_trained"] = trained[:, -1]
        blocks["seconds"] = (new / speed[:, 1:]).sum(1)
        return
    for block, one_speed, one_trained, which in zip(blocks, speed, trained, known, strict=True):
        if which.any():
            speeds, tokens = one_speed[which], one_trained[which]
            block["first_speed"], block["first_trained"] = speeds[0], tokens[0]
            block["most_trained"] = tokens.max()
            block["seconds"] = seconds_of(int(tokens[0]), speeds[1:], tokens[1:])


def _column(records: NDArray[Any], name: str) -> NDArray[Any]:
    """Without gaps between its numbers, which calculating is faster with."""
    return np.ascontiguousarray(records[name])
