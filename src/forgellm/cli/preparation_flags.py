"""The flags of `forgellm data inspect | stats | dedup | split | prepare | restore`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, get_args

from forgellm.schema.preparation import DataKind
from forgellm.schema.recipe import ColumnRole

_COLUMN_ROLES = get_args(ColumnRole)


def add_preparation(commands: argparse._SubParsersAction[Any]) -> None:
    """Adds the sub-commands of `forgellm data`."""
    for name, text in (
        ("inspect", "each file: tokens, language, and what cannot be used"),
        ("stats", "totals, lengths in tokens, languages, duplicates"),
    ):
        command = _command(commands, name, text)
        command.add_argument(
            "--model",
            help="whose tokenizer counts (default: the latest run's model, else any; without one "
            "tokens are a rough estimate)",
        )
        command.add_argument(
            "--max-seq-length",
            type=_number(int, 8, 8192),
            metavar="N",
            help="conversations and pairs beyond it are cut (default: 2048)",
        )
    command = _command(commands, "dedup", "list duplicates and near duplicates; removes nothing")
    _add_similarity(command)
    command = _command(
        commands, "split", "how a run would split it, and what both sides have in common"
    )
    _add_split(command)
    command = _command(commands, "prepare", "make a cleaned copy, NAME-prepared")
    _add_similarity(command)
    command.add_argument("--keep-duplicates", action="store_true", help="leave duplicates in")
    command.add_argument(
        "--keep-boilerplate",
        action="store_true",
        help="leave headers, footers and page numbers in",
    )
    command.add_argument(
        "--mask",
        nargs="+",
        choices=("secrets", "emails"),
        metavar="WHAT",
        help="replace secrets or emails by a placeholder; without it they are only told",
    )
    _add_split(command)
    command = commands.add_parser("restore", help="undo removals in a prepared dataset")
    command.add_argument("name", metavar="NAME", help="the prepared dataset")
    command.add_argument("removals", nargs="*", metavar="ID", help="from its preparation.json")
    command.add_argument("--all", action="store_true", help="undo every removal")
    command.add_argument("--json", action="store_true", help="machine-readable output")


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of the task's request that the user gave."""
    given = {
        name: value
        for name in ("kind", "model", "max_seq_length", "similarity", "validation_split", "seed")
        if (value := getattr(args, name, None)) is not None
    }
    lists = {
        name: list(getattr(args, name, None) or []) for name in ("against", "mask", "removals")
    }
    given |= {name: value for name, value in lists.items() if value}
    if getattr(args, "columns", None):
        given["columns"] = dict(args.columns)
    for flag, field, value in (
        ("keep_duplicates", "duplicates", False),
        ("keep_boilerplate", "boilerplate", False),
        ("all", "removals", "all"),
    ):
        if getattr(args, flag, False):
            given[field] = value
    return given


def _command(
    commands: argparse._SubParsersAction[Any], name: str, text: str
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=text)
    command.add_argument("name", metavar="NAME", help="of the dataset")
    command.add_argument(
        "--as",
        dest="kind",
        choices=get_args(DataKind),
        help="what it holds (default: found out from its first rows)",
    )
    command.add_argument(
        "--column",
        dest="columns",
        type=_column,
        action="append",
        metavar="ROLE=NAME",
        help=f"which column is {', '.join(_COLUMN_ROLES)}; can be repeated",
    )
    command.add_argument("--json", action="store_true", help="machine-readable output")
    return command


def _add_similarity(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--similarity",
        type=_number(float, 0.5, 1),
        metavar="X",
        help="from which likeness texts are near duplicates; 1 finds the same alone (default: 0.8)",
    )


def _add_split(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--validation-split",
        type=_number(float, 0, 0.5),
        metavar="X",
        help="share held out (default: 0.1)",
    )
    command.add_argument("--seed", type=_number(int, 0, 2**31 - 1), metavar="N", help="default: 42")
    command.add_argument(
        "--against",
        action="append",
        metavar="FILE",
        help="a probe or benchmark file to look for in what is trained on; can be repeated",
    )


def _number(kind: Callable[[str], Any], least: float, most: float) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        value = kind(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"must be from {least:g} to {most:g}")
        return value

    parse.__name__ = "number"
    return parse


def _column(text: str) -> tuple[str, str]:
    role, equals, name = text.partition("=")
    if role not in _COLUMN_ROLES or not equals or not name:
        raise argparse.ArgumentTypeError(
            f"must be ROLE=NAME, ROLE one of {', '.join(_COLUMN_ROLES)}"
        )
    return role, name
