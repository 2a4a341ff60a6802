"""`training_dashboard.png`: a run's whole training in one picture, drawn in a child process.

    python -m forgellm.publishing.dashboard_png RUN_FOLDER OUT_FILE

The child keeps matplotlib, its time and its memory out of the process that asks.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from forgellm.atomic import storage_errors
from forgellm.errors import ForgeError
from forgellm.paths import find_workspace
from forgellm.runs.store import Run, open_run

DASHBOARD_NAME = "training_dashboard.png"
_TIMEOUT_SECONDS = 120.0


def write_dashboard(run: Run) -> Path:
    """Draw the run's dashboard into its folder and return the file.

    An earlier picture stays as it was unless the new one is whole.
    Raises RunNotFound, DiskFull, TrainingFailed; ForgeError if the drawing fails.
    """
    run.record()
    target = run.folder / DASHBOARD_NAME
    with (
        storage_errors(DASHBOARD_NAME),
        TemporaryDirectory(prefix=".tmp-dashboard-", dir=run.folder) as staging,
    ):
        drawn = Path(staging) / DASHBOARD_NAME
        _draw_in_child(run, drawn)
        os.replace(drawn, target)
    return target


def draw_dashboard(run: Run, out: Path) -> Path:
    """Draw the dashboard in this process, which imports matplotlib. A PNG of 1600 x 1200 pixels."""
    from forgellm.publishing.dashboard_page import draw_page
    from forgellm.publishing.dashboard_story import read_story

    draw_page(read_story(run), out)
    return out


def _draw_in_child(run: Run, out: Path) -> None:
    # MPLBACKEND may name a notebook's backend, which the child need not have.
    environment = os.environ | {
        "FORGELLM_WORKSPACE": str(run.workspace.root),
        "MPLBACKEND": "Agg",
    }
    try:
        result = subprocess.run(
            [sys.executable, "-P", "-m", __spec__.name, str(run.folder), str(out)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment,
            timeout=_TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise _failure(run, f"it took longer than {_TIMEOUT_SECONDS:.0f} seconds") from None
    if result.returncode != 0:
        lines = result.stderr.decode(errors="replace").strip().splitlines()
        raise _failure(run, lines[-1] if lines else f"exit status {result.returncode}")


def _failure(run: Run, reason: str) -> ForgeError:
    reason = reason.replace(f"{run.workspace.root}{os.sep}", "")
    return ForgeError(
        f"The training dashboard could not be drawn: {reason}",
        suggestion="The run itself is unharmed; draw the dashboard again.",
        details={"run": run.name},
    )


def main() -> None:
    run_folder, out = (Path(argument) for argument in sys.argv[1:3])
    draw_dashboard(open_run(find_workspace(), run_folder), out)


if __name__ == "__main__":
    main()
