"""The process that makes models and files of models: `python -m forgellm.publishing TASK REQUEST`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import orjson

from forgellm.child import OnProgress, serve
from forgellm.paths import Workspace, find_workspace

# A task takes the request that `artefact.make` was given, and returns what becomes of it as JSON.
Task = Callable[[dict[str, Any], Workspace, OnProgress], dict[str, Any]]


def main() -> int:
    task, request = task_named(sys.argv[1]), orjson.loads(sys.argv[2])
    return serve(lambda on_progress: task(request, find_workspace(), on_progress))


def task_named(name: str) -> Task:
    """Each task imports only what it needs. Raises ValueError for a name that is none."""
    match name:
        case "publish":
            from forgellm.publishing.build import publish_task

            return publish_task
        case "push":
            from forgellm.publishing.push import push_task

            return push_task
        case "export":
            from forgellm.publishing.export import export_task

            return export_task
        case "combine":
            from forgellm.publishing.build_combined import combine_task

            return combine_task
        case "quantise":
            from forgellm.publishing.build_quantised import quantise_task

            return quantise_task
    raise ValueError(name)


if __name__ == "__main__":
    sys.exit(main())
