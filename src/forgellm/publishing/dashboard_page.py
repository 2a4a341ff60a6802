"""The page of the training dashboard: header, six panels, footer."""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.lines import Line2D

from forgellm import __version__
from forgellm.paths import utc_now
from forgellm.publishing.dashboard_panels import (
    BEST,
    INK,
    LINE,
    MUTED,
    TRAINING,
    WARNING,
    draw_gap,
    draw_grad_norm,
    draw_learning_rate,
    draw_loss,
    draw_perplexity,
    draw_reward_accuracy,
    draw_throughput,
)
from forgellm.publishing.dashboard_story import Story, error_of, method_of, status_of

_INCHES, _DPI = (12.8, 9.6), 125
_LEFT, _RIGHT = 0.045, 0.965
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so the picture is the same everywhere
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,  # names may hold dollar signs
    "axes.edgecolor": LINE,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.color": LINE,
    "ytick.labelcolor": MUTED,
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-6, 7),
    "legend.frameon": False,
    "legend.borderpad": 0,
    "legend.fontsize": 9.5,
    "legend.handlelength": 1.6,
    "legend.columnspacing": 1.4,
    "agg.path.chunksize": 20_000,  # a long noisy line overflows the rasteriser otherwise
}
_PHASE_COLOURS = {"completed": BEST, "failed": WARNING, "interrupted": WARNING}


def draw_page(story: Story, out: Path) -> None:
    """Write the PNG. Leaves matplotlib's settings as they were."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        figure = Figure(figsize=_INCHES, dpi=_DPI, facecolor="white")
        page = _Page(figure)
        page.draw_header(story)
        page.draw_headlines(story)
        page.draw_panels(story)
        page.draw_footer(story)
        figure.savefig(out, format="png", dpi=_DPI)


class _Page:
    def __init__(self, figure: Figure) -> None:
        self._figure = figure
        canvas: Any = FigureCanvasAgg(figure)
        self._renderer = canvas.get_renderer()

    def draw_header(self, story: Story) -> None:
        record, state = story.record, story.state
        status = status_of(story)
        status_width = self._width(status, 11, bold=True) + 0.02
        name_width = _RIGHT - _LEFT - status_width
        size = 18.0
        name = drawable(record.name)
        while size > 12 and self._width(name, size, bold=True) > name_width:
            size -= 1
        self._write(_LEFT, 0.958, name, size, width=name_width, weight="bold")
        colour = _PHASE_COLOURS.get(state.phase, TRAINING)
        self._write(_RIGHT, 0.958, status, 11, ha="right", weight="bold", color=colour)
        what = f"{record.recipe.model_name}  on  {record.recipe.dataset}"
        error = error_of(state)
        room = (_RIGHT - _LEFT) * (0.55 if error else 1)
        self._write(_LEFT, 0.929, what, 11.5, width=room)
        self._write(
            _RIGHT, 0.929, error, 10, width=_RIGHT - _LEFT - room, ha="right", color=WARNING
        )
        self._write(_LEFT, 0.904, method_of(record), 10, width=_RIGHT - _LEFT, color=MUTED)

    def draw_headlines(self, story: Story) -> None:
        step = (_RIGHT - _LEFT) / len(story.headlines)
        self._rule(0.888)
        for number, headline in enumerate(story.headlines):
            x = _LEFT + number * step
            self._write(x, 0.866, headline.title, 9.5, color=MUTED)
            self._write(x, 0.834, headline.value, 19, weight="bold")
            self._write(x, 0.814, headline.note, 9, width=step, color=MUTED)
        self._rule(0.802)

    def draw_panels(self, story: Story) -> None:
        grid = self._figure.add_gridspec(
            3, 3, left=_LEFT + 0.012, right=_RIGHT - 0.004, bottom=0.075, top=0.762,
            hspace=0.36, wspace=0.24,
        )  # fmt: skip
        draw_loss(self._figure.add_subplot(grid[:2, :2]), story)
        preferences = story.record.recipe.learns_preferences
        draw_second = draw_reward_accuracy if preferences else draw_perplexity
        draw_second(self._figure.add_subplot(grid[0, 2]), story)
        draw_gap(self._figure.add_subplot(grid[1, 2]), story)
        draw_learning_rate(self._figure.add_subplot(grid[2, 0]), story)
        draw_throughput(self._figure.add_subplot(grid[2, 1]), story)
        draw_grad_norm(self._figure.add_subplot(grid[2, 2]), story)
        for axes in self._figure.axes:
            axes.tick_params(length=3, labelsize=9)

    def draw_footer(self, story: Story) -> None:
        self._rule(0.036)
        started = story.record.created_at[:16].replace("T", " ")
        left = f"ForgeLLM {__version__}  ·  {story.record.training_id}  ·  run of {started} UTC"
        self._write(_LEFT, 0.014, left, 9, color=MUTED)
        right = f"loss in nats per token, over iterations  ·  drawn {utc_now():%Y-%m-%d %H:%M} UTC"
        self._write(_RIGHT, 0.014, right, 9, ha="right", color=MUTED)

    def _rule(self, y: float) -> None:
        self._figure.add_artist(Line2D([_LEFT, _RIGHT], [y, y], color=LINE, linewidth=0.8))

    def _write(
        self, x: float, y: float, text: str, size: float, *, width: float = 1, **style: Any
    ) -> None:
        """Text at a place and within a width, both as shares of the page."""
        text = self._fitted(drawable(text), width, size, bold=style.get("weight") == "bold")
        self._figure.text(x, y, text, fontsize=size, **style)

    def _fitted(self, text: str, width: float, size: float, *, bold: bool) -> str:
        if self._width(text, size, bold=bold) <= width:
            return text
        fitting = bisect_right(
            range(len(text)),
            width,
            key=lambda kept: self._width(_shortened(text, kept), size, bold=bold),
        )
        return _shortened(text, max(0, fitting - 1))

    def _width(self, text: str, size: float, *, bold: bool = False) -> float:
        font = FontProperties(size=size, weight="bold" if bold else "normal")
        width, _, _ = self._renderer.get_text_width_height_descent(text, font, False)
        return float(width / self._renderer.width)


def _shortened(text: str, kept: int) -> str:
    """The beginning and the end of `text`, `kept` characters in all."""
    return f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"


def drawable(text: str) -> str:
    """`text` in a single line, with a box for what the font has no sign for."""
    glyphs = get_font(findfont(FontProperties())).get_charmap()
    return "".join(c if ord(c) in glyphs else "□" for c in " ".join(text.split()))
