"""A run of several processes: its trainer starts them, holds the run meanwhile, and says how it ended.

    trainer (holds the run's lock) -- torchrun's agent in it -- process 0 (writes), 1, 2, ...
    trainer of another machine     -- torchrun's agent in it -- more processes

Where MLX computes, `mlx.launch` takes the agent's place. What a process does is in `worker`.
"""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

from forgellm.child import error_of
from forgellm.engines.machines import Meeting, meeting_at, meeting_here
from forgellm.engines.process_group import LEADER_VARIABLE
from forgellm.engines.registry import load_launcher
from forgellm.engines.stop_requests import StoppedWaiting, command_of
from forgellm.errors import ForgeError, WorkerDied
from forgellm.paths import Workspace
from forgellm.runs.store import Run
from forgellm.schema.recipe import Recipe
from forgellm.schema.run import ACTIVE_PHASES, RunState
from forgellm.training.other_machines import endpoint_for, training_along
from forgellm.training.record import write_end

_WORKER = "forgellm.training"


def lead(run: Run, *, resume: bool) -> RunState:
    """Train `run`, whose lock this process holds, in the processes that its recipe asks for.

    The final state is written in every case. Raises ForgeError, as it is kept in the state too.
    """
    recipe = run.record().recipe
    arguments = [_WORKER, str(run.folder), *(["--resume"] if resume else [])]
    try:
        with TemporaryDirectory(prefix="forgellm-") as folder:
            meeting = _meeting_of(run, recipe, Path(folder) / "store")
            with training_along(run, recipe, meeting, command_of(arguments)):
                _start(recipe.engine, arguments, meeting)
        _raise_failure(run.written_state())
    except StoppedWaiting:
        write_end(run, "stopped")
    except ForgeError as error:
        if run.written_state().phase in ACTIVE_PHASES:
            write_end(run, "interrupted" if isinstance(error, WorkerDied) else "failed", error)
        raise
    return run.written_state()


def join(engine: str, meeting: Meeting, workspace: Workspace) -> None:
    """Compute this machine's share of the run that the first machine at `meeting` writes.

    Raises WorkerDied, TrainingFailed.
    """
    os.environ["FORGELLM_WORKSPACE"] = str(workspace.root)
    try:
        _start(engine, [_WORKER], meeting)
    except StoppedWaiting:
        return


def _start(engine: str, module_arguments: list[str], meeting: Meeting) -> None:
    launch = load_launcher(engine)
    os.environ[LEADER_VARIABLE] = str(os.getpid())
    launch(module_arguments, meeting)


def _meeting_of(run: Run, recipe: Recipe, store: Path) -> Meeting:
    if recipe.num_machines == 1:
        return meeting_here(store, recipe.nproc_per_node, recipe.max_restarts)
    return meeting_at(
        endpoint_for(run, recipe),
        recipe.nproc_per_node,
        recipe.num_machines,
        recipe.max_restarts,
        is_first=True,
    )


def _raise_failure(state: RunState) -> None:
    """Where all processes ended well, for one of them has written down what went wrong."""
    if state.phase == "failed" and state.error:
        raise error_of(state.error)
    if state.phase in ACTIVE_PHASES:
        raise WorkerDied("The processes ended without finishing; trainer.log says more")
