"""The trainer process: `python -m forgellm.training RUN_FOLDER [--resume]`.

Its output goes to the run's log, a JSON object a line. It holds the run's lock for its whole life.
Of several that `mlx.launch` starts, the first does; the others only compute.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from pathlib import Path

from forgellm.engines.process_group import launched_rank
from forgellm.errors import ForgeError
from forgellm.paths import find_workspace
from forgellm.runs.lock import take_lock
from forgellm.runs.store import open_run
from forgellm.training.session import Session
from forgellm.training.trainer_log import JsonLines


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m forgellm.training")
    parser.add_argument("run_folder", type=Path)
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # else it logs a webhook's whole address
    log = logging.getLogger("forgellm.training")
    run = open_run(find_workspace(), args.run_folder)
    session = Session(progress=log.info)

    def stop(signum: int, frame: object) -> None:
        session.stop = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    try:
        if launched_rank() > 0:
            session.follow(run.record().recipe, run.workspace, run if args.resume else None)
            return 0
        with take_lock(run.folder):
            log.info("trainer %d started on %s", os.getpid(), run.name)
            state = session.train(run, resume=args.resume)
    except ForgeError as error:
        log.error("%s: %s %s", error.code, error.message, error.suggestion)
        return error.exit_code
    log.info("%s at iteration %d", state.phase, state.iteration)
    return 0


if __name__ == "__main__":
    sys.exit(main())
