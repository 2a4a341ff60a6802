"""Starts, watches, stops and resumes trainers. Each is a process of its own that outlives its starter.

Nothing is kept in memory: whoever asks reads the run folders, so a restarted web server finds the
run it had started before, and two servers in one workspace cannot start two runs.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from forgellm.atomic import file_lock
from forgellm.engines.pinned_base import require_same_base_to_resume
from forgellm.errors import (
    CheckpointNotFound,
    NoActiveTraining,
    RunBusy,
    RunNotFound,
    TrainingAlreadyRunning,
    WorkerDied,
)
from forgellm.paths import Workspace, iso_utc
from forgellm.runs.checkpoints import list_checkpoints, newest_verified
from forgellm.runs.last_words import cause_of_death
from forgellm.runs.lineage import waits_for, with_base_run
from forgellm.runs.lock import LOCK_FD_VARIABLE, RunLock, holder
from forgellm.runs.store import Run, active_run, create_run, unfinished_runs
from forgellm.schema.recipe import Recipe
from forgellm.schema.run import ACTIVE_PHASES, RunState

# -P: a file in the workspace must not pass for a module. The run's folder is appended.
TRAINER: tuple[str, ...] = (sys.executable, "-P", "-m", "forgellm.training")

_OUT_OF_MEMORY_SCORE = "500"
_REST_PER_WORK = 25
_log = logging.getLogger(__name__)


def start_training(
    workspace: Workspace,
    recipe: Recipe,
    *,
    max_seq_length: int,
    command: Sequence[str] = TRAINER,
) -> Run:
    """Create a run and start its trainer; with `recipe.queue`, let it wait its turn.

    Raises TrainingAlreadyRunning, ConfigError, DiskFull, and for a base run RunNotFound and
    CheckpointNotFound.
    """
    with _start_lock(workspace):
        recipe = with_base_run(recipe, workspace, may_wait=recipe.queue)
        if recipe.queue:
            run = create_run(workspace, recipe, max_seq_length, phase="queued")
            _start_next(unfinished_runs(workspace), command)
        else:
            _refuse_second(workspace)
            run = create_run(workspace, recipe, max_seq_length, phase="queued")
            launch(run, command=command)
    return run


def resume_training(
    workspace: Workspace,
    run: Run,
    *,
    allow_changed_base: bool = False,
    command: Sequence[str] = TRAINER,
) -> None:
    """Start a trainer that continues `run` from its newest intact checkpoint.

    With `allow_changed_base` also on another model than it began with, which the run then records.
    Raises TrainingAlreadyRunning, ModelChanged, RunEdited, and CheckpointNotFound if no checkpoint is intact.
    """
    _require_checkpoint(run)
    with _start_lock(workspace):
        _refuse_second(workspace)
        require_same_base_to_resume(run, allow_changed=allow_changed_base)
        launch(run, resume=True, command=command)


def claim_new_run(
    workspace: Workspace, recipe: Recipe, *, max_seq_length: int
) -> tuple[Run, RunLock]:
    """A new run and its lock, for training in this very process.

    Raises TrainingAlreadyRunning, and for a base run RunNotFound, CheckpointNotFound, ConfigError.
    """
    with _start_lock(workspace):
        _refuse_second(workspace)
        recipe = with_base_run(recipe, workspace, may_wait=False)
        run = create_run(workspace, recipe, max_seq_length)
        return run, RunLock(run.folder).acquire()


def claim_resume(workspace: Workspace, run: Run, *, allow_changed_base: bool = False) -> RunLock:
    """The lock of a run to be continued in this very process; `allow_changed_base` as above.

    Raises TrainingAlreadyRunning, ModelChanged, RunEdited, CheckpointNotFound.
    """
    _require_checkpoint(run)
    with _start_lock(workspace):
        _refuse_second(workspace)
        require_same_base_to_resume(run, allow_changed=allow_changed_base)
        run.clear_stop_request()
        return RunLock(run.folder).acquire()


def claim_again(workspace: Workspace, run: Run) -> tuple[RunLock, bool]:
    """The lock of a run to be gone on with in this very process, and whether that is a resume: one
    that has no checkpoint, and perhaps only waits in the queue, begins at its beginning.

    Raises TrainingAlreadyRunning, and CheckpointNotFound if all its checkpoints are damaged.
    """
    can_resume = _has_checkpoint(run)
    with _start_lock(workspace):
        _refuse_second(workspace)
        run.clear_stop_request()
        return RunLock(run.folder).acquire(), can_resume


def queue_again(workspace: Workspace, run: Run, *, command: Sequence[str] = TRAINER) -> None:
    """Let a run that has ended wait for its turn to go on, from its beginning without a checkpoint.

    Raises RunBusy if it trains, and CheckpointNotFound if all its checkpoints are damaged.
    """
    _has_checkpoint(run)
    with _start_lock(workspace):
        with RunLock(run.folder).acquire():
            run.clear_stop_request()
            update = {"phase": "queued", "error": None, "eta_minutes": None}
            run.write_state(run.written_state().model_copy(update=update))
        _start_next(unfinished_runs(workspace), command)


def launch(run: Run, *, resume: bool = False, command: Sequence[str] = TRAINER) -> None:
    """Start the trainer of `run`, detached, already holding the run's lock. Raises RunBusy.

    Its output goes to the run's log. Nothing ties it to this process.
    """
    with RunLock(run.folder).acquire() as lock:
        run.clear_stop_request()
        state = run.written_state().model_copy(update={"phase": "preparing", "error": None})
        run.write_state(state)
        try:
            process = _spawn(
                run, [*command, str(run.folder), *(["--resume"] if resume else [])], lock
            )
        except OSError as problem:
            error = WorkerDied(f"The trainer could not be started: {problem.strerror}")
            run.write_state(state.model_copy(update={"phase": "failed", "error": error.to_dict()}))
            raise error from problem
        lock.write_holder(process.pid)
    # The kernel should end the trainer rather than a server when memory runs out.
    with suppress(OSError):
        Path(f"/proc/{process.pid}/oom_score_adj").write_text(_OUT_OF_MEMORY_SCORE)
    threading.Thread(target=process.wait, name=f"reap {process.pid}", daemon=True).start()


def stop_training(workspace: Workspace, run: Run | None = None, grace_seconds: float = 60.0) -> Run:
    """Ask `run`, or the one that is training, to stop, and return it without waiting.

    A queued run is taken off the queue. Raises NoActiveTraining.
    """
    with _start_lock(workspace):
        run = run or active_run(workspace)
        if run is not None and run.is_alive():
            run.request_stop(grace_seconds)
            return run
        if run is not None and run.written_state().phase == "queued":
            run.write_state(RunState(phase="stopped", heartbeat=iso_utc()))
            return run
    raise NoActiveTraining("No training is running")


def enforce_stop(run: Run) -> bool:
    """End a trainer that is still alive after the grace period of its stop request.

    True if it was signalled, which needs proof that it is the process named in the lock file.
    """
    deadline = run.stop_deadline()
    if deadline is None or time.time() < deadline or not run.is_alive():
        return False
    trainer = holder(run.folder)
    return trainer is not None and trainer.kill()


class Supervisor:
    """Looks after a workspace's runs from a background thread of the web server."""

    def __init__(
        self,
        workspace: Workspace,
        *,
        command: Sequence[str] = TRAINER,
        interval_seconds: float = 1.0,
    ) -> None:
        self._workspace = workspace
        self._command = command
        self._interval_seconds = interval_seconds
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._last_problem = ""

    def tick(self) -> None:
        """End what does not stop, note which trainers died, start the next queued run."""
        with _start_lock(self._workspace):
            runs = unfinished_runs(self._workspace)
            for run in runs:
                if not run.is_alive():
                    _note_death(run)
                elif enforce_stop(run):
                    _log.warning("%s did not stop within its grace period and was ended", run.name)
            _start_next(runs, self._command)

    def start(self) -> None:
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop watching. Trainers go on."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        pause = self._interval_seconds
        while not self._closing.wait(pause):
            started = time.monotonic()
            try:
                self.tick()
                self._last_problem = ""
            except Exception as problem:  # whatever it is, the next round may work
                if str(problem) != self._last_problem:  # a full disk is reported once
                    _log.exception("The supervisor could not do its round")
                self._last_problem = str(problem)
            # Where there are thousands of runs to look at, less often.
            took = time.monotonic() - started
            pause = max(self._interval_seconds, _REST_PER_WORK * took)


def _start_lock(workspace: Workspace) -> AbstractContextManager[None]:
    """Held while a run is begun, so that no two begin at once."""
    return file_lock(workspace.models / ".start.lock")


def _refuse_second(workspace: Workspace) -> None:
    running = active_run(workspace)
    if running is not None:
        raise TrainingAlreadyRunning(
            "Training is already running",
            details={
                "training_id": running.record().training_id,
                "output_dir": running.output_dir,
            },
        )


def _require_checkpoint(run: Run) -> None:
    """One that is intact, of a run that is as it was written."""
    run.require_as_written()
    run.require_own_files()
    checkpoint, problems = newest_verified(run.folder)
    if checkpoint is None:
        raise CheckpointNotFound(
            "This run has no intact checkpoint to continue from",
            suggestion="Start a new run with the same settings.",
            details={"run": run.name, "damaged": problems},
        )


def _has_checkpoint(run: Run) -> bool:
    """Raises RunEdited, and CheckpointNotFound if there are some, but none is intact."""
    run.require_as_written()
    checkpoint, problems = newest_verified(run.folder)
    if problems and checkpoint is None:
        _require_checkpoint(run)
    return checkpoint is not None


def _start_next(unfinished: list[Run], command: Sequence[str]) -> None:
    """Launch the longest-waiting queued run if none is training. The start lock must be held.

    One that starts from a run which is not complete stays in the queue: that may be continued.
    """
    queued = []
    for run in unfinished:
        if run.is_alive():
            return
        if run.written_state().phase == "queued":
            with suppress(RunNotFound):
                if waits_for(run) is not None:
                    continue
                queued.append((run.record().created_at, run.name, run))
    if queued:
        run = min(queued)[2]
        launch(run, resume=bool(list_checkpoints(run.folder)), command=command)


def _note_death(run: Run) -> None:
    """Write down that a run ended without its trainer saying so."""
    if run.written_state().phase not in ACTIVE_PHASES:
        return
    with suppress(RunBusy), RunLock(run.folder).acquire():
        state = run.written_state()
        if state.phase not in ACTIVE_PHASES:
            return
        reason, suggestion = cause_of_death(run)
        error = WorkerDied(
            reason,
            suggestion=suggestion,
            details={"phase": state.phase, "iteration": state.iteration, "log": "trainer.log"},
        )
        run.write_state(
            state.model_copy(
                update={
                    "phase": "stopped" if run.stop_requested() else "interrupted",
                    "error": error.to_dict(),
                    "eta_minutes": None,
                }
            )
        )


def _spawn(run: Run, arguments: list[str], lock: RunLock) -> subprocess.Popen[bytes]:
    root = run.workspace.root
    environment = os.environ | {
        "FORGELLM_WORKSPACE": str(root),
        LOCK_FD_VARIABLE: str(lock.fileno()),
    }
    with open(run.log_file, "ab") as log:
        return subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=root,
            env=environment,
            pass_fds=(lock.fileno(),),
            start_new_session=True,
        )
