"""`forgellm models`: import, export, combine, list, pull and remove."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forgellm.cli import combine, export, push, quantise
from forgellm.paths import Workspace, find_workspace

if TYPE_CHECKING:
    from forgellm.catalog import ListedModel


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds the command and its sub-commands."""
    parser = subparsers.add_parser(
        "models", help="import, export, combine, list, pull and remove models"
    )
    parser.add_argument("--workspace", help="folder that holds models/ and dataset/")
    commands = parser.add_subparsers(dest="models_command", required=True, metavar="COMMAND")

    command = commands.add_parser("import", help="turn a GGUF file into models/base/NAME")
    command.add_argument("file", type=Path, metavar="FILE.gguf")
    command.add_argument("--name", help="name of the folder (default: from the file's name)")
    command.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        default="bfloat16",
        help="how to store the weights; float32 is exact and takes twice the space",
    )
    export.add_parser(commands)
    quantise.add_parser(commands)
    command = commands.add_parser("list", help="models and trained runs on this machine")
    command.add_argument("--json", action="store_true", help="machine-readable output")
    command = commands.add_parser("tree", help="what was made from what")
    command.add_argument("--json", action="store_true", help="machine-readable output")
    command = commands.add_parser("pull", help="download a model from the Hugging Face hub")
    command.add_argument("repo", metavar="REPO", help="its id, e.g. Qwen/Qwen3-0.6B")
    command.add_argument("--revision", default="main", help="branch, tag or commit")
    push.add_parser(commands)
    command = commands.add_parser(
        "remove", help="delete a pulled, imported or published model, or an export"
    )
    command.add_argument("name", metavar="NAME")
    command.add_argument("--yes", action="store_true", help="do not ask")
    combine.add_parser(commands)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the sub-command; raises ForgeError."""
    commands: dict[str, Callable[[argparse.Namespace, Workspace], int]] = {
        "import": _import,
        "export": export.run,
        "combine": combine.run,
        "quantize": quantise.run,
        "list": _list,
        "tree": _tree,
        "pull": _pull,
        "push": push.run,
        "remove": _remove,
    }
    return commands[args.models_command](args, find_workspace(args.workspace))


def _tree(args: argparse.Namespace, workspace: Workspace) -> int:
    from forgellm.cli.tree import print_tree

    return print_tree(args, workspace)


def _import(args: argparse.Namespace, workspace: Workspace) -> int:
    from forgellm.catalog.gguf_import import import_gguf

    with _progress_bar("Importing") as on_progress:
        folder = import_gguf(args.file, workspace, args.name, on_progress, dtype=args.dtype)
    print(f"Imported as base/{folder.name} into {workspace.relative(folder)}/")
    return 0


def _list(args: argparse.Namespace, workspace: Workspace) -> int:
    from forgellm.catalog import list_models

    models = list_models(workspace)
    if args.json:
        import json

        print(json.dumps([_as_json(model) for model in models], indent=2))
    elif not models:
        print("No models yet. Get one with: forgellm models pull HuggingFaceTB/SmolLM2-135M")
    else:
        _print_table(models)
    return 0


def _as_json(model: ListedModel) -> dict[str, Any]:
    return {
        "kind": model.kind,
        "name": model.name,
        "path": model.path,
        "type": model.type,
        "size_gb": model.size_gb,
        "created_at": model.created_at,
    }


def _print_table(models: list[ListedModel]) -> None:
    from forgellm.cli.tables import print_table

    rows = [
        (
            model.path or model.name,
            model.kind,
            model.type or "",
            f"{model.size_gb:.2f} GB",
            model.created_at[:16],
        )
        for model in models
    ]
    print_table(("NAME", "KIND", "TYPE", "SIZE", "CREATED"), rows, right=("SIZE",))


def _pull(args: argparse.Namespace, workspace: Workspace) -> int:
    from forgellm.catalog.hub import pull

    with _progress_bar("Downloading") as on_progress:
        pull(args.repo, args.revision, on_progress)
    print(f"{args.repo} is ready.")
    return 0


def _remove(args: argparse.Namespace, workspace: Workspace) -> int:
    from forgellm.catalog.remove import remove_model
    from forgellm.cli.confirm import confirmed
    from forgellm.publishing.exports import remove_export
    from forgellm.runs.lineage import models_in_use

    if not args.yes and not confirmed(f"Delete {args.name} from this machine?"):
        print("Nothing was deleted.")
        return 1
    folder, _, name = args.name.partition("/")
    if folder == workspace.exported_models.name:
        freed_bytes = remove_export(name, workspace)
    else:
        freed_bytes = remove_model(args.name, workspace, models_in_use(workspace))
    print(f"Removed {args.name}: {freed_bytes / 1e9:.2f} GB freed.")
    return 0


@contextmanager
def _progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, in bytes; nothing is drawn where stderr is not a terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True)
    columns = (TextColumn(title), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(
        *columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
