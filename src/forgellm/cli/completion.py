"""`forgellm completion`: a script that completes commands, flags and their values in a shell.

It is made from the parsers and is static: completing starts no Python.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

_FILES = '$(compgen -f -- "$current")'
_FILE_METAVARS = ("PATH", "FILE", "FILE.gguf", "run.yaml")


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser(
        "completion",
        help="print a completion script for your shell",
        description='For bash: eval "$(forgellm completion bash)" in ~/.bashrc. For zsh: the same '
        "in ~/.zshrc, after compinit. For fish: forgellm completion fish > "
        "~/.config/fish/completions/forgellm.fish",
    )
    parser.add_argument("shell", choices=tuple(_SCRIPTS))
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from forgellm.cli.main import all_parsers

    print(_SCRIPTS[args.shell](list(_nodes((), all_parsers()))), end="")
    return 0


@dataclass
class _Node:
    """What can follow a chain of commands, such as `("cli", "generate")`.

    Attributes:
        words: sub-commands, or the choices of a positional argument, each with its help.
        flags: each with its help.
        values: for a flag that takes a value, the choices; none means that anything goes.
    """

    commands: tuple[str, ...]
    words: dict[str, str] = field(default_factory=dict)
    flags: dict[str, str] = field(default_factory=dict)
    values: dict[str, list[str]] = field(default_factory=dict)
    has_files: bool = False


def _nodes(commands: tuple[str, ...], parser: argparse.ArgumentParser) -> Iterator[_Node]:
    """The parser's node, then those of its sub-commands."""
    node = _Node(commands)
    children: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:
        if action.help == argparse.SUPPRESS:
            continue
        if isinstance(action, argparse._SubParsersAction):
            children = dict(action.choices)
            about = {choice.dest: choice.help or "" for choice in action._choices_actions}
            node.words |= {name: about.get(name, "") for name in children}
        elif not action.option_strings:
            node.words |= {str(choice): "" for choice in action.choices or ()}
            node.has_files |= action.metavar in _FILE_METAVARS
        for flag in action.option_strings:
            node.flags[flag] = (action.help or "").split("(default")[0].replace("%%", "%")
            if action.nargs != 0:
                node.values[flag] = _choices(action)
    yield node
    for name, child in children.items():
        yield from _nodes((*commands, name), child)


def _choices(action: argparse.Action) -> list[str]:
    if action.choices:
        return [str(choice) for choice in action.choices]
    shown = action.metavar[0] if isinstance(action.metavar, tuple) else action.metavar or ""
    # In capitals stands what the user names.
    return [word for word in shown.split("|") if not word.isupper()] if "|" in shown else []


def _bash(nodes: list[_Node]) -> str:
    """Finds the chain of commands in the words so far, then offers what can follow it."""
    lines = [
        "# Completion of forgellm for bash.",
        "_forgellm() {",
        '    local word chain="" current="${COMP_WORDS[COMP_CWORD]}"',
        '    local before="${COMP_WORDS[COMP_CWORD-1]}"',
        '    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do',
        '        case "$chain $word" in',
    ]
    chains = "|".join(shlex.quote(" " + " ".join(n.commands)) for n in nodes if n.commands)
    lines += [
        f'            {chains}) chain="$chain $word" ;;',
        "        esac",
        "    done",
        '    case "$chain $before" in',
    ]
    anything = []
    for node in nodes:
        for flag, choices in node.values.items():
            pattern = shlex.quote(f"{_chain(node)} {flag}")
            if choices:
                lines.append(f"        {pattern}) COMPREPLY=({_offered(choices)}); return ;;")
            else:
                anything.append(pattern)
    lines.append(f"        {'|'.join(anything)}) COMPREPLY=({_FILES}); return ;;")
    lines += ["    esac", '    case "$chain" in']
    for node in nodes:
        offered = _offered([*node.words, *node.flags]) + f" {_FILES}" * node.has_files
        lines.append(f"        {shlex.quote(_chain(node))}) COMPREPLY=({offered}) ;;")
    lines += ["    esac", "}", "complete -o filenames -F _forgellm forgellm", ""]
    return "\n".join(lines)


def _offered(words: list[str]) -> str:
    return f'$(compgen -W {shlex.quote(" ".join(words))} -- "$current")'


def _chain(node: _Node) -> str:
    return "".join(f" {name}" for name in node.commands)


def _zsh(nodes: list[_Node]) -> str:
    """zsh runs bash's completions."""
    return (
        "# Completion of forgellm for zsh.\n"
        "autoload -U +X bashcompinit && bashcompinit\n" + _bash(nodes).split("\n", 1)[1]
    )


def _fish(nodes: list[_Node]) -> str:
    lines = ["# Completion of forgellm for fish.", "complete -c forgellm -f"]
    for node in nodes:
        children = [
            n.commands[-1] for n in nodes if n.commands[:-1] == node.commands and n.commands
        ]
        tests = [f"__fish_seen_subcommand_from {name}" for name in node.commands]
        if children:
            tests.append(f"not __fish_seen_subcommand_from {' '.join(children)}")
        condition = shlex.quote("; and ".join(tests)) if tests else "__fish_use_subcommand"
        start = f"complete -c forgellm -n {condition}"
        for word, about in node.words.items():
            lines.append(f"{start} -a {shlex.quote(word)} -d {shlex.quote(about)}")
        for flag, about in node.flags.items():
            name = f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}"
            value = ""
            if flag in node.values:
                choices = node.values[flag]
                value = f" -x -a {shlex.quote(' '.join(choices))}" if choices else " -r -F"
            lines.append(f"{start} {name}{value} -d {shlex.quote(about.strip())}")
        if node.has_files:
            lines.append(f"{start} -F")
    return "\n".join([*lines, ""])


_SCRIPTS = {"bash": _bash, "zsh": _zsh, "fish": _fish}
