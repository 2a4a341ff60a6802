"""The six panels of the training dashboard. One colour means one thing in all of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from forgellm.publishing.dashboard_story import (
    Curves,
    Floats,
    Story,
    compact,
    schedule_of,
    smoothed,
)

# The first three, which meet in one panel, are of Okabe and Ito's palette: readers of every colour
# vision can tell them apart.
TRAINING = "#0072B2"
VALIDATION = "#D55E00"
BEST = "#009E73"
WARNING = "#A3366F"
RATE = "#5D4E8C"
SPEED = "#2B7A9B"
MEMORY = "#B07900"
GRADIENT = "#4F5B66"
INK = "#1F2933"
MUTED = "#6B7680"
LINE = "#D9DEE3"

_MAX_MARKERS = 60
_STEPS = [1, 2, 2.5, 5, 10]
_MAX_EXPONENT = 80.0  # a perplexity beyond e^80 is drawn as a gap
_COMPACT = FuncFormatter(lambda value, _: compact(value))
_RATES = FuncFormatter(
    lambda value, _: np.format_float_scientific(value, 2, trim="-", exp_digits=1) if value else "0"
)


def draw_loss(axes: Axes, story: Story) -> None:
    curves = story.curves
    _prepare(axes, "Loss", curves)
    axes.yaxis.set_major_locator(MaxNLocator(9, steps=_STEPS))
    _draw_training(axes, curves, lambda loss: loss)
    _draw_validation(axes, curves.validated_at, curves.validation_loss)
    _mark_best(axes, story)
    _mark_overfitting(axes, story)
    _mark_non_finite(axes, curves)
    _focus(axes, curves.training_loss, curves.smoothed_loss, curves.validation_loss)
    _say_if_empty(axes, "No loss was reported yet", curves.training_loss, curves.validation_loss)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(
            handles, labels, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=len(handles)
        )


def draw_perplexity(axes: Axes, story: Story) -> None:
    curves = story.curves
    training, validation = _perplexity(curves.training_loss), _perplexity(curves.validation_loss)
    _prepare(axes, "Perplexity", curves, note="log scale")
    if np.isfinite(training).any() or np.isfinite(validation).any():
        _log_scale(axes)
        _draw_training(axes, curves, _perplexity)
        _draw_validation(axes, curves.validated_at, validation)
        _focus(axes, training, _perplexity(curves.smoothed_loss), validation)
    _say_if_empty(axes, "No loss was reported yet", training, validation)


def draw_reward_accuracy(axes: Axes, story: Story) -> None:
    curves = story.curves
    _prepare(axes, "Reward accuracy", curves, note="of the training pairs")
    axes.set_ylim(0, 1.05)
    axes.axhline(0.5, color=MUTED, linewidth=0.9)
    _noisy_line(axes, curves.iteration, curves.reward_accuracy, TRAINING)
    _say_if_empty(axes, "Not reported", curves.reward_accuracy)


def draw_gap(axes: Axes, story: Story) -> None:
    curves = story.curves
    _prepare(axes, "Generalisation gap", curves, note="validation − training")
    if np.isfinite(curves.gap).any():
        axes.axhline(0, color=MUTED, linewidth=0.9)
        _draw_validation(axes, curves.validated_at, curves.gap)
        _mark_overfitting(axes, story)
    validated = len(curves.validated_at) > 0
    missing = "No training loss to compare with" if validated else "This run has no validation"
    _say_if_empty(axes, missing, curves.gap)


def draw_learning_rate(axes: Axes, story: Story) -> None:
    curves = story.curves
    _prepare(axes, "Learning rate", curves, note=schedule_of(story.record.recipe))
    axes.yaxis.set_major_formatter(_RATES)
    _line(axes, curves.iteration, curves.learning_rate, RATE)
    axes.set_ylim(0, _top(curves.learning_rate))
    _say_if_empty(axes, "Not reported", curves.learning_rate)


def draw_throughput(axes: Axes, story: Story) -> None:
    curves = story.curves
    _prepare(axes, "", curves)
    axes.yaxis.set_major_formatter(_COMPACT)
    memory = axes.twinx()
    memory.grid(visible=False)
    memory.spines[:].set_visible(False)
    axes.set_title("Throughput, tok/s", loc="left", color=SPEED)
    axes.set_title("Memory, GB", loc="right", color=MEMORY)
    axes.tick_params(axis="y", labelcolor=SPEED)
    memory.tick_params(axis="y", labelcolor=MEMORY)
    _line(memory, curves.iteration, curves.memory_usage_gb, MEMORY)
    _noisy_line(axes, curves.iteration, curves.tokens_per_second, SPEED)
    axes.set_ylim(0, _top(curves.tokens_per_second))
    memory.set_ylim(0, _top(curves.memory_usage_gb))
    _say_if_empty(memory, "", curves.memory_usage_gb)
    _say_if_empty(axes, "Not reported", curves.tokens_per_second)


def draw_grad_norm(axes: Axes, story: Story) -> None:
    curves, limit = story.curves, story.record.recipe.max_grad_norm
    norm = np.where(curves.grad_norm > 0, curves.grad_norm, np.nan)
    clipping = f", clipped above {limit:g}" if limit else ""
    _prepare(axes, "Gradient norm", curves, note=f"log scale{clipping}")
    if np.isfinite(norm).any():
        _log_scale(axes)
        _noisy_line(axes, curves.iteration, norm, GRADIENT)
        bottom, top = axes.get_ylim()
        if bottom < limit < top:
            axes.axhline(limit, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    _say_if_empty(axes, "Not reported", norm)


# --- what several panels share --------------------------------------------------------------


def _prepare(axes: Axes, title: str, curves: Curves, note: str = "") -> None:
    axes.set_title(title, loc="left")
    axes.set_title(note, loc="right", fontsize=9, fontweight="normal", color=MUTED)
    end = max([*curves.iteration[-1:], *curves.validated_at[-1:], 1.0])
    axes.set_xlim(-0.02 * end, 1.02 * end)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=_STEPS, integer=True))
    if end >= 10_000:
        axes.xaxis.set_major_formatter(_COMPACT)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=_STEPS))


def _log_scale(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(_COMPACT)
    axes.minorticks_off()


def _draw_training(axes: Axes, curves: Curves, scale: Callable[[Floats], Floats]) -> None:
    if np.isfinite(curves.training_loss).any():
        if curves.smoothed_loss is not curves.training_loss:
            _pale_line(axes, curves.iteration, scale(curves.training_loss), TRAINING)
        _line(axes, curves.iteration, scale(curves.smoothed_loss), TRAINING, "training")


def _draw_validation(axes: Axes, validated_at: Floats, values: Floats) -> None:
    if np.isfinite(values).any():
        _line(axes, validated_at, values, VALIDATION, "validation", dots=_MAX_MARKERS)


def _noisy_line(axes: Axes, x: Floats, y: Floats, colour: str) -> None:
    smooth = smoothed(y)
    if smooth is not y:
        _pale_line(axes, x, y, colour)
    _line(axes, x, smooth, colour)


def _pale_line(axes: Axes, x: Floats, y: Floats, colour: str) -> None:
    # Mixed with white rather than transparent: a long line is drawn in parts, which overlap.
    axes.plot(x, y, color=0.3 * np.array(to_rgb(colour)) + 0.7, linewidth=0.8)


def _line(axes: Axes, x: Floats, y: Floats, colour: str, label: str = "", dots: int = 12) -> None:
    """With a dot at each value where these are few: a single one would else not be seen."""
    marker = "o" if np.isfinite(y).sum() <= dots else ""
    axes.plot(x, y, color=colour, linewidth=1.8, marker=marker, markersize=4.5, label=label or None)


def _mark_best(axes: Axes, story: Story) -> None:
    for number, (at, loss) in enumerate(story.best):
        axes.plot(
            [at],
            [loss],
            linestyle="",
            marker="D",
            markersize=9,
            markeredgewidth=1.8,
            color=BEST,
            markerfacecolor="white" if number else BEST,
            label=None if number else "best checkpoints",
            zorder=5,
        )
    for at, loss in story.best[:1]:
        end = axes.get_xlim()[1]
        axes.annotate(
            f"{loss:.3f} at {at:,}",
            (at, loss),
            xytext=(0, 24),
            textcoords="offset points",
            ha="left" if at < 0.1 * end else "right" if at > 0.9 * end else "center",
            color=BEST,
            fontweight="bold",
            bbox={"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": "none"},
            arrowprops={"arrowstyle": "-", "color": BEST, "linewidth": 1, "shrinkB": 6},
            zorder=6,
        )


def _mark_overfitting(axes: Axes, story: Story) -> None:
    at = story.state.overfitting_iteration
    if at is not None:
        label = f"overfitting since {at:,}"
        axes.axvline(at, color=WARNING, linewidth=1.4, linestyle=(0, (4, 3)), label=label)


def _mark_non_finite(axes: Axes, curves: Curves) -> None:
    if len(curves.non_finite) == 0:
        return
    axes.plot(
        curves.non_finite,
        np.full(len(curves.non_finite), 0.025),
        linestyle="",
        marker="x",
        markersize=7,
        markeredgewidth=1.8,
        color=WARNING,
        transform=axes.get_xaxis_transform(),
        label="not finite",
    )


def _focus(axes: Axes, noisy: Floats, *calm: Floats) -> None:
    """Leave single spikes of the noisy curve out of the picture, and nothing else."""
    noise = noisy[np.isfinite(noisy)]
    bounds = [values[np.isfinite(values)] for values in calm]
    values = np.concatenate([np.percentile(noise, [0.5, 99.5]) if len(noise) else noise, *bounds])
    if len(values) == 0:
        return
    logarithmic = axes.get_yscale() == "log"
    low, high = (np.log(values) if logarithmic else values)[[values.argmin(), values.argmax()]]
    margin = 0.07 * (high - low) or 0.1 * abs(high) or 0.1
    low, high = low - margin, high + 2 * margin
    axes.set_ylim(*(np.exp([low, high]) if logarithmic else (low, high)))


def _top(values: Floats) -> float:
    known = values[np.isfinite(values)]
    return 1.15 * float(known.max(initial=0.0)) or 1.0


def _perplexity(loss: Floats) -> Floats:
    return np.exp(np.where(loss < _MAX_EXPONENT, loss, np.nan))


def _say_if_empty(axes: Axes, text: str, *series: Floats) -> None:
    if not any(np.isfinite(values).any() for values in series):
        axes.set_yticks([])
        axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=MUTED)
