"""`forgellm runs`: list, show, resume, accept, stop and delete."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from forgellm.cli.model_choice import add_changed_base_flag
from forgellm.paths import Workspace, find_workspace

if TYPE_CHECKING:
    from forgellm.schema.manage import RunItem, RunReply

_POLL_SECONDS = 0.1


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds the command and its sub-commands."""
    parser = subparsers.add_parser("runs", help="list, show, resume, accept, stop and delete runs")
    parser.add_argument("--workspace", help="folder that holds models/ and dataset/")
    commands = parser.add_subparsers(dest="runs_command", required=True, metavar="COMMAND")
    which = {"metavar": "RUN", "help": "its name, training_id or folder"}

    command = commands.add_parser("list", help="all runs, newest first")
    command.add_argument("--json", action="store_true", help="machine-readable output")
    command = commands.add_parser("show", help="one run: where it is, figures, checkpoints")
    command.add_argument("name", nargs="?", default=None, **_optional(which, "the newest"))
    command.add_argument("--json", action="store_true", help="machine-readable output")
    command = commands.add_parser("resume", help="continue a run in the background")
    command.add_argument("name", **which)
    add_changed_base_flag(command)
    command = commands.add_parser("accept", help="take a run as it stands, edited by hand")
    command.add_argument("name", **which)
    command = commands.add_parser("stop", help="stop a run after its current step")
    command.add_argument("name", nargs="?", default=None, **_optional(which, "the one that trains"))
    command = commands.add_parser("delete", help="move a run to the trash")
    command.add_argument("name", **which)
    command.add_argument("--yes", action="store_true", help="do not ask")
    for command in commands.choices.values():  # after the sub-command it is just as good
        command.add_argument("--workspace", default=argparse.SUPPRESS, help="as before COMMAND")
    parser.set_defaults(run=run)


def _optional(which: dict[str, Any], default: str) -> dict[str, Any]:
    return which | {"help": f"{which['help']} (default: {default})"}


def run(args: argparse.Namespace) -> int:
    """Runs the sub-command; raises ForgeError."""
    commands: dict[str, Callable[[argparse.Namespace, Workspace], int]] = {
        "list": _list,
        "show": _show,
        "resume": _resume,
        "accept": _accept,
        "stop": _stop,
        "delete": _delete,
    }
    return commands[args.runs_command](args, find_workspace(args.workspace))


def _list(args: argparse.Namespace, workspace: Workspace) -> int:
    from forgellm.runs.store import list_runs
    from forgellm.web.run_figures import run_items

    items = run_items(list_runs(workspace))
    if args.json:
        print(json.dumps([item.model_dump() for item in items], indent=2))
    elif not items:
        print("No runs yet. Start one with: forgellm train --model NAME --dataset NAME")
    else:
        _print_table(items)
    return 0


def _print_table(items: list[RunItem]) -> None:
    from forgellm.cli.tables import print_table

    rows = [
        (
            item.name,
            item.phase,
            f"{item.current_iteration}/{item.max_iterations}",
            _figure(item.best_validation_loss),
            item.dataset,
        )
        for item in items
    ]
    titles = ("NAME", "PHASE", "ITERATION", "BEST LOSS", "DATASET")
    print_table(titles, rows, right=("ITERATION", "BEST LOSS"))


def _show(args: argparse.Namespace, workspace: Workspace) -> int:
    from forgellm.errors import RunNotFound
    from forgellm.runs.store import find_run, latest_run
    from forgellm.web.run_figures import run_reply

    run = find_run(workspace, args.name) if args.name else latest_run(workspace)
    if run is None:
        raise RunNotFound("There is no run yet", suggestion="Start one with: forgellm train")
    reply = run_reply(run)
    if args.json:
        print(reply.model_dump_json(indent=2))
    else:
        from forgellm.cli.terminal_text import clean

        print(clean(_as_text(reply)))
    return 0


def _as_text(reply: RunReply) -> str:
    run, state, figures = reply.run, reply.state, reply.performance
    lines = [
        f"Run:             {run.output_dir}",
        f"Training id:     {run.training_id}",
        f"Model:           {run.model_name}",
        f"Dataset:         {run.dataset}",
        f"Phase:           {run.phase}, iteration {run.current_iteration} of {run.max_iterations}",
        f"Loss:            {_figure(figures.final_loss)}, validation {_figure(figures.best_validation_loss)}",
        f"Speed:           {_figure(figures.avg_tokens_per_second, 0)} tok/s",
        f"Peak memory:     {_figure(figures.peak_memory_gb, 2)} GB",
    ]
    if run.eta_minutes is not None and run.is_training:
        lines.append(f"Time left:       {run.eta_minutes:.1f} min")
    if state.overfitting:
        lines.append(f"Overfitting:     since iteration {state.overfitting_iteration}")
    lines += [f"Warning:         {text}" for text in reply.record.warnings]
    if state.error:
        lines.append(f"Error:           {state.error.get('error')}")
    lines += [
        f"{f'Process {item.rank}:':<17}{item.host}, {item.memory_usage_gb:.2f} GB,"
        f" {item.tokens_per_second:.0f} tok/s"
        for item in state.processes
    ]
    lines += [
        f"Checkpoint {item.rank}:    {item.path}, validation loss {_figure(item.validation_loss)}"
        for item in reply.checkpoints
    ]
    return "\n".join(lines)


def _figure(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _resume(args: argparse.Namespace, workspace: Workspace) -> int:
    from forgellm.cli.summary import command
    from forgellm.runs.store import find_run
    from forgellm.supervisor import resume_training

    run = find_run(workspace, args.name)
    resume_training(workspace, run, allow_changed_base=args.allow_changed_base)
    print(f"{run.name} goes on in the background.")
    print(f"Watch it: {command(workspace, 'runs show', run.name)}")
    return 0


def _accept(args: argparse.Namespace, workspace: Workspace) -> int:
    from forgellm.runs.manage import accept_record
    from forgellm.runs.store import find_run

    run = find_run(workspace, args.name)
    fields = accept_record(run)
    what = f"accepted as it stands: {', '.join(fields)}" if fields else "as it was written"
    print(f"{run.name} is {what}.")
    return 0


def _stop(args: argparse.Namespace, workspace: Workspace) -> int:
    from forgellm.runs.store import find_run
    from forgellm.supervisor import enforce_stop, stop_training

    run = stop_training(workspace, find_run(workspace, args.name) if args.name else None)
    while run.is_alive():
        enforce_stop(run)
        time.sleep(_POLL_SECONDS)
    print(f"{run.name} stopped at iteration {run.state().iteration}.")
    return 0


def _delete(args: argparse.Namespace, workspace: Workspace) -> int:
    from forgellm.cli.confirm import confirmed
    from forgellm.runs.store import find_run
    from forgellm.runs.trash import trash_run

    run = find_run(workspace, args.name)
    if not args.yes and not confirmed(f"Move {run.name} to the trash?"):
        print("Nothing was deleted.")
        return 1
    print(f"Moved to models/.trash/{trash_run(run)}")
    return 0
