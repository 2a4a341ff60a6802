"""`forgellm cli ...`: what talks to a model in this terminal, without a server."""

from __future__ import annotations

import argparse
from typing import Any

from forgellm.cli.generate import add_parser as add_generate
from forgellm.cli.info import add_parser as add_info


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser("cli", help="generate text, chat, and look at a model")
    commands = parser.add_subparsers(dest="cli_command", required=True, metavar="COMMAND")
    add_generate(commands)
    add_info(commands)
