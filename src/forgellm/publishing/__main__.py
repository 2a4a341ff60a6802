"""The publishing process: `python -m forgellm.publishing RUN_FOLDER ITERATION`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from forgellm.child import OnProgress, serve
from forgellm.paths import find_workspace
from forgellm.publishing.build import build_published
from forgellm.runs.checkpoints import find_checkpoint
from forgellm.runs.store import open_run


def main() -> int:
    return serve(_publish)


def _publish(on_progress: OnProgress) -> dict[str, Any]:
    """Raises ForgeError."""
    run = open_run(find_workspace(), Path(sys.argv[1]))
    checkpoint = find_checkpoint(run.folder, int(sys.argv[2]))
    return asdict(build_published(run, checkpoint, on_progress))


if __name__ == "__main__":
    sys.exit(main())
