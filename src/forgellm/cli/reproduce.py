"""`forgellm reproduce`: the same run again, and whether it came out the same."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from forgellm.paths import find_workspace

if TYPE_CHECKING:
    from forgellm.runs.reproduction import Likeness


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser(
        "reproduce",
        help="train a run again as its run.json says, and compare",
        description="Start a new run with the recipe, engine, type of numbers and seed of an "
        "earlier one, in this terminal, and compare the two loss curves.",
    )
    parser.add_argument("--workspace", help="folder that holds models/ and dataset/")
    parser.add_argument("run_name", metavar="RUN", help="its name, id or folder")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Raises ForgeError."""
    from forgellm.cli.foreground import make_console, train_here
    from forgellm.cli.summary import print_summary
    from forgellm.cli.train import new_run
    from forgellm.runs.reproduction import likeness, recipe_again
    from forgellm.runs.store import find_run

    workspace = find_workspace(args.workspace)
    first = find_run(workspace, args.run_name)
    console = make_console()
    second, lock = new_run(workspace, recipe_again(first))
    console.print(f"Run {second.output_dir}, again as {first.output_dir}")
    state = train_here(second, lock, resume=False, console=console)
    print_summary(second, state, console)
    found = likeness(first, second)
    for line in found.changed:
        print(f"Not as before: {line}")
    print(_verdict(found))
    return 0


def _verdict(found: Likeness) -> str:
    if not found.compared:
        return "There is no loss that both runs reported."
    if found.first_difference is None:
        return f"All {found.compared} losses that both runs reported are equal, bit for bit."
    return (
        f"The losses differ from iteration {found.first_difference} on, by up to "
        f"{found.largest_difference:.2g} nats ({found.compared} compared)."
    )
