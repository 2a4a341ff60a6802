"""A run in the terminal, trained by its own process or by others: progress, and Ctrl-C."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

from forgellm.child import error_of
from forgellm.cli.terminal_text import clean
from forgellm.data.progress import Tokenised
from forgellm.errors import WorkerDied
from forgellm.runs.lock import RunLock
from forgellm.runs.metrics import offset_of_end, read_lines
from forgellm.runs.store import Run
from forgellm.schema.run import MetricsLine, RunState
from forgellm.supervisor import enforce_stop, launch
from forgellm.training.session import Session
from forgellm.training.trainer_log import logging_to

_PLAIN_SECONDS = 10.0
_WATCH_SECONDS = 0.2


def train_here(run: Run, lock: RunLock, *, resume: bool, console: Console) -> RunState:
    """Train with a progress bar (or plain lines where there is no terminal), or where the recipe asks
    for several processes let a trainer start them, as from the web page, and watch.

    Ctrl-C and SIGTERM stop the run gracefully, a second one at once. Raises ForgeError.
    """
    recipe = run.record().recipe
    if recipe.num_processes > 1:
        lock.release()
        launch(run, resume=resume)
        return watch(run, console)
    session = Session()

    def stop() -> None:
        session.stop = True

    with lock, logging_to(run.log_file), _graceful_stop(stop, console):
        with _view(console, recipe.max_iterations) as view:
            session.observer, session.progress = view.report, view.stage
            session.on_tokenised, session.on_warnings = view.tokenised, partial(_warn, view)
            return session.train(run, resume=resume)


def watch(run: Run, console: Console) -> RunState:
    """Show how `run`, which a trainer of its own trains, goes on to its end.

    Ctrl-C and SIGTERM stop it gracefully, a second one at once. Raises ForgeError: why it failed.
    """
    offset = offset_of_end(run.folder)
    view = _view(console, run.record().recipe.max_iterations)
    with _graceful_stop(run.request_stop, console), view:
        is_alive, is_warned = True, False
        while is_alive:
            is_alive, state = run.is_alive(), run.written_state()
            if not is_warned and state.phase not in ("queued", "preparing"):
                is_warned = True
                _warn(view, run.record().warnings)
            lines, offset = read_lines(run.folder, offset)
            for line in lines:
                view.report(line, state)
            enforce_stop(run)
            time.sleep(_WATCH_SECONDS)
    state = run.state()
    if state.phase not in ("completed", "stopped"):
        raise (
            error_of(state.error) if state.error else WorkerDied("The run ended without finishing")
        )
    return state


@contextmanager
def _graceful_stop(stop: Callable[[], None], console: Console) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM calls `stop`."""
    is_asked = False

    def on_signal(signum: int, frame: FrameType | None) -> None:
        nonlocal is_asked
        if is_asked:
            raise KeyboardInterrupt
        is_asked = True
        stop()
        console.print("Stopping after this step; the checkpoint is being kept. Again: at once.")

    before = {
        number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _warn(view: _Bar | _Lines, warnings: list[str]) -> None:
    for text in warnings:
        # Names from a dataset must not give orders to the terminal.
        view.console.print(f"  Warning: {clean(text)}", markup=False)


def _view(console: Console, max_iterations: int) -> _Bar | _Lines:
    return _Bar(console, max_iterations) if console.is_terminal else _Lines(console)


class _Lines:
    """A line every few seconds, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._last = 0.0

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def stage(self, text: str) -> None:
        self.console.print(f"  {text}")

    def tokenised(self, figure: Tokenised) -> None:
        if figure.num_tokens and time.monotonic() - self._last >= _PLAIN_SECONDS:
            self._last = time.monotonic()
            self.console.print(
                f"  {figure.done_bytes / 1e6:.0f} of {figure.total_bytes / 1e6:.0f} MB, "
                + _tokens(figure)
            )

    def report(self, line: MetricsLine, state: RunState) -> None:
        if line.validation_loss is None and time.monotonic() - self._last < _PLAIN_SECONDS:
            return
        self._last = time.monotonic()
        self.console.print(f"  iteration {line.iteration}: {_figures(line, state)}")


class _Bar:
    """One line that moves."""

    def __init__(self, console: Console, max_iterations: int) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            console=console,
        )
        self.console = console
        self._max_iterations = max_iterations
        self._task = self._progress.add_task("preparing", total=max_iterations, figures="")
        self._validation: float | None = None

    def __enter__(self) -> _Bar:
        self._progress.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.__exit__(None, None, None)

    def stage(self, text: str) -> None:
        total = self._max_iterations
        self._progress.update(self._task, description=text, total=total, completed=0, figures="")

    def tokenised(self, figure: Tokenised) -> None:
        if figure.num_tokens:
            done, total = figure.done_bytes // 1_000_000, figure.total_bytes // 1_000_000
            figures = f"MB, {_tokens(figure)}"
            self._progress.update(self._task, total=total, completed=done, figures=figures)

    def report(self, line: MetricsLine, state: RunState) -> None:
        self._validation = line.validation_loss or self._validation
        shown = line.model_copy(update={"validation_loss": self._validation})
        self._progress.update(self._task, completed=line.iteration, figures=_figures(shown, state))


def _tokens(figure: Tokenised) -> str:
    return f"{figure.num_tokens / 1e6:.1f} million tokens"


def _figures(line: MetricsLine, state: RunState) -> str:
    parts = [f"loss {line.training_loss:.3f}" if line.training_loss is not None else "loss -"]
    if line.validation_loss is not None:
        parts.append(f"validation {line.validation_loss:.3f}")
    if line.reward_accuracy is not None:
        parts.append(f"reward accuracy {line.reward_accuracy:.0%}")
    if line.tokens_per_second:
        parts.append(f"{line.tokens_per_second:.0f} tok/s")
    if state.eta_minutes is not None:
        parts.append(f"ETA {_duration(state.eta_minutes * 60)}")
    if state.overfitting:
        parts.append(f"overfitting since {state.overfitting_iteration}")
    return ", ".join(parts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def make_console() -> Console:
    """For progress and messages; standard output stays free for results."""
    return Console(file=sys.stderr, highlight=False, soft_wrap=True)
