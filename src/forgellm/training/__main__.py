"""The trainer process: `python -m forgellm.training RUN_FOLDER [--resume]`.

Its output goes to the run's log, a JSON object a line. It holds the run's lock for its whole life,
and trains by itself or, where the recipe asks for several processes, starts them. They are started as
the same command, and know by their environment what they are. Another machine that takes part has a
trainer without a run: `python -m forgellm.training --join HOST:PORT ...`.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from pathlib import Path

from forgellm.engines.machines import meeting_at
from forgellm.engines.process_group import is_led
from forgellm.errors import ForgeError
from forgellm.paths import find_workspace
from forgellm.runs.lock import take_lock
from forgellm.runs.store import Run, open_run
from forgellm.schema.run import RunState
from forgellm.training.processes import join, lead
from forgellm.training.session import Session
from forgellm.training.trainer_log import JsonLines
from forgellm.training.worker import work

log = logging.getLogger("forgellm.training")


def main() -> int:
    args = _arguments()
    _log_to_output()
    if is_led():
        return work(args.run_folder, find_workspace(), resume=args.resume)
    try:
        if args.join:
            numbers = (args.nproc_per_node, args.nnodes, args.max_restarts)
            meeting = meeting_at(args.join, *numbers, is_first=False)
            join(args.engine, meeting, find_workspace())
            return 0
        return _train_run(args.run_folder, args.resume)
    except ForgeError as error:
        log.error("%s: %s %s", error.code, error.message, error.suggestion)
        return error.exit_code


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m forgellm.training")
    parser.add_argument("run_folder", type=Path, nargs="?")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--join", metavar="HOST:PORT")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--nproc-per-node", type=int, default=1)
    parser.add_argument("--nnodes", type=int, default=1)
    parser.add_argument("--max-restarts", type=int, default=0)
    return parser.parse_args()


def _train_run(folder: Path, resume: bool) -> int:
    run = open_run(find_workspace(), folder)
    with take_lock(run.folder):
        log.info("trainer %d started on %s", os.getpid(), run.name)
        state = _train(run, resume)
    log.info("%s at iteration %d", state.phase, state.iteration)
    return 0


def _train(run: Run, resume: bool) -> RunState:
    if run.record().recipe.num_processes > 1:
        return lead(run, resume=resume)
    session = Session(progress=log.info)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: setattr(session, "stop", True))
    return session.train(run, resume=resume)


def _log_to_output() -> None:
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # else it logs a webhook's whole address


if __name__ == "__main__":
    sys.exit(main())
