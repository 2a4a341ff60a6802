"""Real processes of the publishing tasks that end themselves by SIGKILL at a chosen moment.

They come from one server process that has imported the engine, so that each takes little time.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from typing import Any

from forgellm.paths import Workspace
from forgellm.publishing.__main__ import task_named

_PRELOADED = [
    "killing",
    "forgellm.publishing.build_combined",
    "forgellm.publishing.build_quantised",
    "forgellm.engines.torch.fuse",
    "forgellm.engines.torch.generate",
]


def killed_at(moment: float, task: str, request: dict[str, Any], workspace: Workspace) -> bool:
    """Do a task until it reports to be so far; False where it ended before that."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    process = context.Process(target=_work, args=(moment, task, request, workspace))
    process.start()
    process.join(120)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def _work(moment: float, task: str, request: dict[str, Any], workspace: Workspace) -> None:
    def end_at(fraction: float, text: str) -> None:
        if fraction >= moment:
            os.kill(os.getpid(), signal.SIGKILL)

    task_named(task)(request, workspace, end_at)
