"""What a finished run leaves, and the commands that use it."""

from __future__ import annotations

import shlex
from pathlib import Path

from rich.console import Console

from forgellm.paths import Workspace
from forgellm.runs import checkpoints
from forgellm.runs.store import Run
from forgellm.schema.run import RunState


def print_summary(run: Run, state: RunState, console: Console) -> None:
    found = checkpoints.list_checkpoints(run.folder)
    console.print(f"{state.phase.capitalize()} at iteration {state.iteration}")
    if state.stopped_early:
        console.print("Stopped early: validation no longer improved")
    if warnings := len(run.record().warnings):
        what = "1 warning" if warnings == 1 else f"{warnings} warnings"
        told = command(run.workspace, "runs show", run.name)
        console.print(f"It began with {what}: {told}", markup=False)
    if not found:
        return
    best = checkpoints.rank(found)[0]
    loss = "" if best.validation_loss is None else f", validation loss {best.validation_loss:.3f}"
    console.print(f"Best checkpoint: {run.workspace.relative(best.weights)}{loss}")
    if state.phase == "stopped":
        console.print(f"Continue: {command(run.workspace, 'train', '--resume', run.name)}")
    console.print(f"Chat: {chat_command(run)}")


def chat_command(run: Run) -> str:
    model = run.record().recipe.model_name
    return command(
        run.workspace, "cli generate", "--model", model, "--adapter-path", run.output_dir
    )


def command(workspace: Workspace, name: str, *arguments: str) -> str:
    """A command line for the reader to copy; names the workspace where it is not the current one."""
    where = [] if workspace.root == Path.cwd() else ["--workspace", str(workspace.root)]
    return f"forgellm {name} {shlex.join([*arguments, *where])}".rstrip()
