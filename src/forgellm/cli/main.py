"""The command `forgellm`. Only the chosen command's module is imported, so that help is quick."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from forgellm import __version__
from forgellm.cli.terminal_text import clean
from forgellm.errors import ForgeError

_ITEMS_SHOWN = 10
_DETAIL_CHARACTERS = 200
_DETAIL_TITLES = {"searched_paths": "Searched", "skipped": "Left out"}
_ABOUT = "Teach a language model your own documents, on your own machine."
_COMMANDS = {
    "demo": ("forgellm.cli.demo", "teach the shipped model the shipped handbook, and measure"),
    "train": ("forgellm.cli.train", "train a model on the documents of a dataset"),
    "reproduce": ("forgellm.cli.reproduce", "train a run again and compare the two"),
    "cli": ("forgellm.cli.terminal", "generate text, chat, and look at a model"),
    "eval": ("forgellm.cli.evaluate", "measure what a model knows"),
    "publish": ("forgellm.cli.publish", "make a model of a checkpoint"),
    "models": ("forgellm.cli.models", "import, export, combine, list, pull and remove models"),
    "runs": ("forgellm.cli.runs", "list, show, resume, accept, stop and delete runs"),
    "data": ("forgellm.cli.datasets", "list the datasets"),
    "hosts": ("forgellm.cli.hosts", "check the machines that train along"),
    "start": ("forgellm.cli.serve", "start the model server and the web server"),
    "web": ("forgellm.cli.serve", "start the web server alone"),
    "server": ("forgellm.cli.serve", "start the model server alone"),
    "completion": ("forgellm.cli.completion", "print a completion script for your shell"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 1 for a failure, 2 for a wrong request, 3 for a taken port,
    130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parser(arguments).parse_args(arguments)
    try:
        code = int(args.run(args))
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where a full disk or a reader that left can be answered
        return code
    except ForgeError as error:
        _print_error(error)
        return error.exit_code
    except KeyboardInterrupt:
        print("forgellm: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _discard_output()
        return 141
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        _discard_output()
        print(f"forgellm: {error.strerror}", file=sys.stderr)
        return 1


def _print_error(error: ForgeError) -> None:
    """A line of what was wrong, what is known of it, and what to do."""
    lines = [f"forgellm: {error.code}: {error.message}", *_detail_lines(error)]
    if error.suggestion:
        lines.append(f"  {error.suggestion}")
    # Names from a dataset or a server must not give orders to the terminal.
    print("\n".join(clean(line) for line in lines), file=sys.stderr)


def _detail_lines(error: ForgeError) -> list[str]:
    """The details that the message does not have already, a list as an item a line."""
    lines: list[str] = []
    for name, value in error.details.items():
        title = _DETAIL_TITLES.get(name, name.replace("_", " ").capitalize())
        items = value if isinstance(value, list) else [value]
        told = [text for item in items if (text := _in_words(item)) not in error.message]
        if not told:
            continue
        if not isinstance(value, list) or name == "searched_paths":
            lines.append(f"  {title}: {', '.join(told)}")
            continue
        lines += [f"  {title}:", *(f"    {text}" for text in told[:_ITEMS_SHOWN])]
        if len(told) > _ITEMS_SHOWN:
            lines.append(f"    and {len(told) - _ITEMS_SHOWN} more")
    return lines


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        parts = (f"{key}: {_in_words(item)}" for key, item in value.items() if item is not None)
        text = ", ".join(parts)
    elif isinstance(value, list):
        text = ", ".join(map(_in_words, value))
    else:
        text = "" if value is None else str(value)
    text = " ".join(text.split())
    return text if len(text) <= _DETAIL_CHARACTERS else f"{text[:_DETAIL_CHARACTERS]}..."


def _discard_output() -> None:
    """Nothing more can be written; Python must not try again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def all_parsers() -> argparse.ArgumentParser:
    """Knows every command with all its options."""
    parser, subparsers = _empty_parser()
    for module in dict.fromkeys(module for module, _ in _COMMANDS.values()):
        importlib.import_module(module).add_parser(subparsers)
    return parser


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """Knows every command by name, and the options of the one that `arguments` choose."""
    parser, subparsers = _empty_parser()
    chosen = next((word for word in arguments if word in _COMMANDS), None)
    if chosen is None:
        for name, (_, text) in _COMMANDS.items():
            subparsers.add_parser(name, help=text, add_help=False)
    else:
        importlib.import_module(_COMMANDS[chosen][0]).add_parser(subparsers)
    return parser


def _empty_parser() -> tuple[argparse.ArgumentParser, argparse._SubParsersAction[Any]]:
    parser = argparse.ArgumentParser(prog="forgellm", description=_ABOUT)
    parser.add_argument("--version", action="version", version=f"forgellm {__version__}")
    return parser, parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
