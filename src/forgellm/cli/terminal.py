"""`forgellm cli ...`: what talks to a model in this terminal, without a server."""

from __future__ import annotations

import argparse
from typing import Any

from forgellm.cli import generate


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser("cli", help="generate text, or chat, in this terminal")
    generate.add_parser(parser.add_subparsers(dest="cli_command", required=True, metavar="COMMAND"))
