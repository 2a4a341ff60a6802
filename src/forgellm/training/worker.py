"""One of several processes that train together, as `processes` starts them.

The first writes the run, which its trainer holds for it. The others learn from it what to do, and so
need nothing of their own but the model and the dataset.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from forgellm.engines.process_group import LEADER_VARIABLE, mlx_rank
from forgellm.engines.registry import join_group
from forgellm.engines.stop_requests import ASKED_TO_STOP
from forgellm.errors import ForgeError, PeerLost
from forgellm.paths import Workspace
from forgellm.runs.checkpoints import list_checkpoints
from forgellm.runs.store import open_run
from forgellm.schema.recipe import parse_recipe
from forgellm.training.run_copy import hand_over, received
from forgellm.training.session import Session, Stopped

_POLL_SECONDS = 0.2
_RESTARTS_VARIABLE = "TORCHELASTIC_RESTART_COUNT"
log = logging.getLogger(__name__)


def work(run_folder: Path | None, workspace: Workspace, *, resume: bool) -> int:
    """Train along to the end; the exit code. `run_folder` is known on the run's own machine.

    What fails is told to the others and kept in the run's state, and so ends well: only what a new
    start may mend ends otherwise.
    """
    session = Session()
    signal.signal(ASKED_TO_STOP, lambda *_: setattr(session, "stop", True))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C comes as a request to stop
    threading.Thread(target=_end_with_leader, name="leader", daemon=True).start()
    if mlx_rank() is not None:
        return _work_with_mlx(session, run_folder, workspace, resume)
    group: Any = join_group("torch")
    try:
        _train(session, group, run_folder, workspace, resume)
    except PeerLost as error:
        log.error("%s %s", error.message, error.suggestion)
        logging.shutdown()
        os._exit(error.exit_code)  # a library may wait for the lost process even now
    except ForgeError as error:
        group.say_goodbye(error)
        log.error("%s: %s %s", error.code, error.message, error.suggestion)
    return 0


def _train(
    session: Session, group: Any, run_folder: Path | None, workspace: Workspace, resume: bool
) -> None:
    if group.rank == 0:
        assert run_folder is not None
        run = open_run(workspace, run_folder)
        if os.environ.get(_RESTARTS_VARIABLE, "0") != "0":
            resume = bool(list_checkpoints(run.folder))
        session.progress = log.info
        log.info("%d processes train together: %s", group.size, ", ".join(group.hosts))
        orders = {"recipe": run.record().recipe.model_dump(mode="json"), "resume": resume}
        group.share(orders | {"run": run.output_dir, "training_id": run.record().training_id})
        if resume:
            hand_over(run, group)
        if session.train(run, resume=resume).phase == "stopped":
            group.say_goodbye(Stopped())  # to those who prepare even now
        return
    orders = group.share(None)
    recipe = parse_recipe(orders["recipe"])
    if not orders["resume"]:
        session.follow(recipe, workspace)
        return
    with received(orders, workspace, group) as resumed:
        session.follow(recipe, workspace, resumed)


def _work_with_mlx(
    session: Session, run_folder: Path | None, workspace: Workspace, resume: bool
) -> int:
    """All processes are on the run's own machine and read what they need to know there."""
    assert run_folder is not None
    run = open_run(workspace, run_folder)
    try:
        if mlx_rank() == 0:
            session.progress = log.info
            session.train(run, resume=resume)
        else:
            session.follow(run.record().recipe, workspace, run if resume else None)
    except ForgeError as error:
        log.error("%s: %s %s", error.code, error.message, error.suggestion)
        return error.exit_code
    return 0


def _end_with_leader() -> None:
    """Nobody may write a run whose lock is gone."""
    try:
        leader = psutil.Process(int(os.environ[LEADER_VARIABLE]))
        while leader.is_running() and leader.status() != psutil.STATUS_ZOMBIE:
            time.sleep(_POLL_SECONDS)
    except psutil.Error:
        pass
    os._exit(PeerLost.exit_code)
