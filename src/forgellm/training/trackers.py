"""Experiment trackers: trackio, wandb, TensorBoard and MLflow, imported only where asked for.

Each works in a thread of its own, so that one that fails, hangs or is slow costs the run nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from forgellm.errors import ConfigError
from forgellm.runs.store import Run
from forgellm.schema.recipe import TrackerName
from forgellm.schema.run import MetricsLine, Phase
from forgellm.training.side_thread import SideThread

PROJECT = "forgellm"
_MODULES: Mapping[TrackerName, str] = {
    "trackio": "trackio",
    "wandb": "wandb",
    "tensorboard": "tensorboardX",
    "mlflow": "mlflow",
}
_FIGURES = (
    "training_loss", "validation_loss", "learning_rate", "tokens_per_second",
    "memory_usage_gb", "grad_norm", "trained_tokens",
    "reward_accuracy", "reward_margin", "chosen_log_prob",
)  # fmt: skip


class Tracker(Protocol):
    """One run, as a tracker keeps it. Called from one thread; may raise anything."""

    def log(self, figures: dict[str, float], iteration: int) -> None: ...

    def close(self, phase: Phase) -> None: ...


def require_trackers(names: Sequence[TrackerName]) -> None:
    """Raises ConfigError naming the extra of each tracker that is not installed. Imports nothing."""
    missing = [name for name in names if importlib.util.find_spec(_MODULES[name]) is None]
    if missing:
        raise ConfigError(
            [{"field": "report_to", "message": f"{name} is not installed"} for name in missing],
            suggestion=f"pip install 'forgellm[{','.join(missing)}]', or leave it out.",
        )


class Reporting:
    """Passes a run's figures on to its trackers. None of its methods waits or raises."""

    def __init__(self, run: Run, names: Sequence[TrackerName]) -> None:
        self._open = [_Reported(name, run) for name in dict.fromkeys(names)]

    def report(self, line: MetricsLine) -> None:
        figures = {
            name: float(value) for name in _FIGURES if (value := getattr(line, name)) is not None
        }
        for reported in self._open:
            reported.log(figures, line.iteration)

    def close(self, phase: Phase) -> None:
        for reported in self._open:
            reported.close(phase)

    def join(self, seconds: float) -> bool:
        """Whether all trackers are done, waiting up to `seconds` for each."""
        return all(reported.thread.join(seconds) for reported in self._open)


class _Reported:
    """A tracker behind its thread. It is opened there too: some ask their server at once."""

    def __init__(self, name: TrackerName, run: Run) -> None:
        self._tracker: Tracker | None = None
        self.thread = SideThread(name)
        self.thread.do(lambda: self._begin(name, run))

    def log(self, figures: dict[str, float], iteration: int) -> None:
        self.thread.do(lambda: self._ask(lambda tracker: tracker.log(figures, iteration)))

    def close(self, phase: Phase) -> None:
        self.thread.end_with(lambda: self._ask(lambda tracker: tracker.close(phase)))

    def _ask(self, call: Callable[[Tracker], None]) -> None:
        if self._tracker is not None:  # else it could not be opened
            call(self._tracker)

    def _begin(self, name: TrackerName, run: Run) -> None:
        self._tracker = open_tracker(name, run)


def open_tracker(name: TrackerName, run: Run) -> Tracker:
    """Raises whatever the tracker's library raises."""
    return _OPENERS[name](importlib.import_module(_MODULES[name]), run)


def _settings(run: Run) -> dict[str, Any]:
    """The recipe as a tracker shows it. A webhook's address may hold a secret."""
    return run.record().recipe.model_dump(mode="json", exclude_none=True, exclude={"webhook_url"})


@dataclass
class _Trackio:
    module: Any
    run: Run
    _run: Any = field(init=False)

    def __post_init__(self) -> None:
        self._run = self.module.init(
            project=PROJECT,
            name=self.run.record().training_id,
            config=_settings(self.run),
            resume="allow",
            embed=False,
        )

    def log(self, figures: dict[str, float], iteration: int) -> None:
        self._run.log(figures, step=iteration)

    def close(self, phase: Phase) -> None:
        self._run.finish()


@dataclass
class _Wandb:
    module: Any
    run: Run
    _run: Any = field(init=False)

    def __post_init__(self) -> None:
        record = self.run.record()
        self._run = self.module.init(
            project=PROJECT,
            name=record.name,
            id=record.training_id,
            config=_settings(self.run),
            dir=str(self.run.folder),
            resume="allow",
        )

    def log(self, figures: dict[str, float], iteration: int) -> None:
        self._run.log(figures, step=iteration)

    def close(self, phase: Phase) -> None:
        self._run.finish(exit_code=1 if phase == "failed" else 0)


@dataclass
class _TensorBoard:
    """Event files in the run's folder, for `tensorboard --logdir models/cpt`."""

    module: Any
    run: Run
    _writer: Any = field(init=False)

    def __post_init__(self) -> None:
        self._writer = self.module.SummaryWriter(logdir=str(self.run.folder / "tensorboard"))

    def log(self, figures: dict[str, float], iteration: int) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, iteration)

    def close(self, phase: Phase) -> None:
        self._writer.close()


@dataclass
class _MLflow:
    """The client alone: its run does not become the current one of this process."""

    module: Any
    run: Run
    _client: Any = field(init=False)
    _run_id: str = field(init=False)

    def __post_init__(self) -> None:
        record = self.run.record()
        # Without a server of the user's, a database in the workspace: `mlflow ui` finds it there.
        database = self.run.workspace.root / "mlflow.db"
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{database}"
        self._client = self.module.MlflowClient(tracking_uri=uri)
        found = self._client.get_experiment_by_name(PROJECT)
        experiment = found.experiment_id if found else self._client.create_experiment(PROJECT)
        tag = f"tags.training_id = '{record.training_id}'"
        earlier = self._client.search_runs([experiment], tag, max_results=1)
        if earlier:  # a resumed run goes on where it was
            self._run_id = earlier[0].info.run_id
            self._client.update_run(self._run_id, status="RUNNING")
            return
        tags = {"training_id": record.training_id}
        self._run_id = self._client.create_run(
            experiment, run_name=record.name, tags=tags
        ).info.run_id
        for key, value in _settings(self.run).items():
            self._client.log_param(self._run_id, key, value)

    def log(self, figures: dict[str, float], iteration: int) -> None:
        for name, value in figures.items():
            self._client.log_metric(self._run_id, name, value, step=iteration)

    def close(self, phase: Phase) -> None:
        status = {"completed": "FINISHED", "failed": "FAILED"}.get(phase, "KILLED")
        self._client.set_terminated(self._run_id, status)


_OPENERS: Mapping[TrackerName, Callable[[Any, Run], Tracker]] = {
    "trackio": _Trackio,
    "wandb": _Wandb,
    "tensorboard": _TensorBoard,
    "mlflow": _MLflow,
}
