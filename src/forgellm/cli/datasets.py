"""`forgellm data`: the datasets of the workspace, measured, cleaned and divided."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from forgellm.cli import probes, questions
from forgellm.cli.preparation_flags import add_preparation
from forgellm.paths import Workspace, find_workspace

if TYPE_CHECKING:
    from forgellm.schema.files import DatasetInfo


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds the command and its sub-commands."""
    parser = subparsers.add_parser("data", help="list, inspect, clean and split datasets")
    parser.add_argument("--workspace", help="folder that holds models/ and dataset/")
    commands = parser.add_subparsers(dest="data_command", required=True, metavar="COMMAND")
    command = commands.add_parser("list", help="datasets with their size, tokens estimated")
    command.add_argument("--json", action="store_true", help="machine-readable output")
    questions.add_parser(commands)
    probes.add_parser(commands)
    add_preparation(commands)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Raises ForgeError."""
    if args.data_command == "probes":
        return probes.run(args, find_workspace(args.workspace))
    if args.data_command == "questions":
        return questions.run(args, find_workspace(args.workspace))
    if args.data_command != "list":
        from forgellm.cli.preparation import run_task

        return run_task(args)
    datasets = _datasets(find_workspace(args.workspace))
    if args.json:
        print(json.dumps([dataset.model_dump() for dataset in datasets], indent=2))
    elif not datasets:
        print("No datasets yet. Make a folder below dataset/ and put your documents into it.")
    else:
        _print_table(datasets)
    return 0


def _datasets(workspace: Workspace) -> list[DatasetInfo]:
    from forgellm.data.datasets import find_dataset, list_datasets
    from forgellm.data.documents import dataset_files
    from forgellm.errors import DatasetNotFound
    from forgellm.schema.files import DatasetInfo
    from forgellm.web.measuring import TokenCounts, usual_model

    model, counts = usual_model(workspace), TokenCounts(workspace)
    found = []
    for name in list_datasets(workspace):
        try:
            files = dataset_files(find_dataset(workspace, name)).files
        except DatasetNotFound:  # a link that leads outside
            continue
        found.append(
            DatasetInfo(
                name=name,
                path=f"dataset/{name}",
                file_count=len(files),
                total_size_mb=round(sum(file.size_bytes for file in files) / 1e6, 3),
                estimated_tokens=counts.estimate(name, files, model) if model else None,
            )
        )
    return found


def _print_table(datasets: list[DatasetInfo]) -> None:
    from forgellm.cli.tables import print_table

    rows = [
        (
            dataset.name,
            f"{dataset.file_count:,}",
            f"{dataset.total_size_mb:.2f} MB",
            "-" if dataset.estimated_tokens is None else f"~{dataset.estimated_tokens:,}",
        )
        for dataset in datasets
    ]
    titles = ("NAME", "FILES", "SIZE", "TOKENS")
    print_table(titles, rows, right=titles[1:])
