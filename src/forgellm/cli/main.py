"""The command `forgellm`. Only the chosen command's module is imported, so that help is quick."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from forgellm import __version__
from forgellm.errors import ForgeError

_COMMANDS = {
    "demo": ("forgellm.cli.demo", "teach the shipped model the shipped handbook, and measure"),
    "train": ("forgellm.cli.train", "train a model on the documents of a dataset"),
    "cli": ("forgellm.cli.terminal", "generate text, or chat, in this terminal"),
    "models": ("forgellm.cli.models", "import, list, pull and remove models"),
    "start": ("forgellm.cli.serve", "start the model server and the web server"),
    "web": ("forgellm.cli.serve", "start the web server alone"),
    "server": ("forgellm.cli.serve", "start the model server alone"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 1 for a failure, 2 for a wrong request, 3 for a taken port,
    130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parser(arguments).parse_args(arguments)
    try:
        return int(args.run(args))
    except ForgeError as error:
        print(f"forgellm: {error.code}: {error.message}", file=sys.stderr)
        if error.suggestion:
            print(f"  {error.suggestion}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("forgellm: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """Knows every command by name, and the options of the one that `arguments` choose."""
    parser = argparse.ArgumentParser(
        prog="forgellm",
        description="Teach a language model your own documents, on your own machine.",
    )
    parser.add_argument("--version", action="version", version=f"forgellm {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    chosen = next((word for word in arguments if word in _COMMANDS), None)
    if chosen is None:
        for name, (_, text) in _COMMANDS.items():
            subparsers.add_parser(name, help=text, add_help=False)
    else:
        importlib.import_module(_COMMANDS[chosen][0]).add_parser(subparsers)
    return parser
