"""Fills the generated parts of docs/*.md from the code.

    python scripts/write_docs.py            write them
    python scripts/write_docs.py --check    exit 1 if any of them is stale

A generated part stands between `<!-- begin generated: NAME -->` and `<!-- end generated -->`.
"""

from __future__ import annotations

import argparse
import ast
import functools
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import scaling_tables

from forgellm import errors
from forgellm.cli import main as cli
from forgellm.data.chat import shapes, turns
from forgellm.schema.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PACKAGE = ROOT / "src" / "forgellm"
HELP_WIDTH = 100

_PART = re.compile(
    r"(<!-- begin generated: (?P<name>[a-z -]+) -->\n).*?(<!-- end generated -->)", re.DOTALL
)
_BOUNDS = {
    "minimum": "from",
    "exclusiveMinimum": "above",
    "maximum": "up to",
    "exclusiveMaximum": "below",
}
# Folders whose `__init__.py` says nothing.
_FOLDERS = {
    "assets": "The demo's handbook, conversations about it, probe questions and recipes; general text to replay and to measure",
    "cli": "The commands, one module each, dependencies imported inside",
    "generation": "From a conversation to an answer, whatever engine computes it",
    "model_server": "The process that holds a model and answers, port 5001",
    "publishing": "What is made of a finished run",
    "runs": "The run store: a run is a folder",
    "training": "A run from its recipe to its final state",
    "web": "The web server, port 5002",
    "web/api": "Its REST routes, one module per area",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if stale")
    args = parser.parse_args()
    stale = stale_files()
    if args.check:
        for file in stale:
            print(f"{file.relative_to(ROOT)} is stale: run python scripts/write_docs.py")
        return 1 if stale else 0
    for file in stale:
        file.write_text(filled(file.read_text("utf-8")), "utf-8")
        print(f"wrote {file.relative_to(ROOT)}")
    return 0


def stale_files() -> list[Path]:
    files = sorted(DOCS.glob("*.md"))
    return [file for file in files if filled(text := file.read_text("utf-8")) != text]


def filled(text: str) -> str:
    """`text` with each generated part as the code has it now."""
    return _PART.sub(lambda match: match[1] + _PARTS[match["name"]]() + match[3], text)


# --- recipe fields ----------------------------------------------------------------------------


def recipe_fields() -> str:
    rows = [
        (f"`{name}`", _kind(schema), _default(name), schema.get("description", ""))
        for name, schema in Recipe.model_json_schema()["properties"].items()
    ]
    return _table(("Field", "Type and range", "Default", "Meaning"), rows)


def _kind(schema: dict[str, Any]) -> str:
    """A JSON schema in words, without the `null` that stands for "decided at the start"."""
    options = [option for option in schema.get("anyOf", [schema]) if option.get("type") != "null"]
    return " or ".join(_one_kind(option) for option in options)


def _one_kind(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema["type"] == "array":
        return "a list of names"
    if schema["type"] == "object":
        return "a map of " + ", ".join(f"`{role}`" for role in schema["propertyNames"]["enum"])
    if schema["type"] in ("string", "boolean"):
        return {"string": "text", "boolean": "`true`, `false`"}[schema["type"]]
    form, number = (",", "whole number") if schema["type"] == "integer" else ("g", "number")
    bounds = [f"{words} {schema[key]:{form}}" for key, words in _BOUNDS.items() if key in schema]
    return " ".join([number, *bounds])


def _default(name: str) -> str:
    field = Recipe.model_fields[name]
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True, validated_data={})
    if default is None or default == "":
        return "see meaning"
    if default == []:
        return "none"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


# --- error codes ------------------------------------------------------------------------------


def error_codes() -> str:
    rows = [
        (
            f"`{kind.code}`",
            str(kind.status),
            str(kind.exit_code),
            f"`{kind.__name__}`",
            kind.default_suggestion,
        )
        for kind in error_classes()
    ]
    return _table(("Code", "HTTP status", "Exit code", "Class", "Usual suggestion"), rows)


def error_classes(base: type[errors.ForgeError] = errors.ForgeError) -> Iterator[Any]:
    """The tree of `errors.py`, each class before its children, in the order of the file."""
    yield base
    for kind in base.__subclasses__():
        if kind.__module__ == errors.__name__:
            yield from error_classes(kind)


# --- shapes of datasets -------------------------------------------------------------------------


def conversation_shapes() -> str:
    return _shapes(shapes.CONVERSATIONS)


def preference_shapes() -> str:
    return _shapes(shapes.PREFERENCES)


def _shapes(known: tuple[shapes.Shape, ...]) -> str:
    rows = [
        (
            "; ".join(_column(column) for column in shape.needs),
            "; ".join(_beside(shape.also)),
            ", ".join(shape.datasets),
        )
        for shape in known
    ]
    return _table(("A row has", "Also read", "Among others"), rows)


def _column(column: shapes.Column) -> str:
    return f"{_names(column)}: {shapes.PARTS[column.part]}"


def _names(column: shapes.Column) -> str:
    return " or ".join(f"`{name}`" for name in column.names)


def _beside(columns: tuple[shapes.Column, ...]) -> Iterator[str]:
    """The columns that many shapes have by their first name, which another table explains."""
    own = [column for column in columns if column not in _COMMON]
    yield from map(_column, own)
    if common := [f"`{column.names[0]}`" for column in columns if column in _COMMON]:
        yield ", ".join(common)


_COMMON = (shapes.SYSTEM, shapes.HISTORY, shapes.TOOLS)


def common_columns() -> str:
    rows = [(_names(column), shapes.PARTS[column.part]) for column in _COMMON]
    return _table(("Column", "What it is"), rows)


def refused_shapes() -> str:
    rows = [
        (refusal.name, ", ".join(f"`{name}`" for name in refusal.columns), refusal.reason)
        for refusal in shapes.REFUSALS
    ]
    return _table(("Rows", "Columns", "Why they are skipped"), rows)


def speakers() -> str:
    names: dict[str, list[str]] = {}
    for name, role in turns.ROLES.items():
        names.setdefault(role, []).append(f"`{name}`")
    return _table(("Role", "Names"), [(f"`{r}`", ", ".join(n)) for r, n in names.items()])


# --- commands ---------------------------------------------------------------------------------


def command_help() -> str:
    sections = []
    for parser in command_parsers():
        parser.formatter_class = functools.partial(argparse.HelpFormatter, width=HELP_WIDTH)
        sections.append(f"## {parser.prog}\n\n```text\n{parser.format_help()}```\n")
    return "\n" + "\n".join(sections) + "\n"


def command_parsers() -> Iterator[argparse.ArgumentParser]:
    """`forgellm` itself, then each command and its sub-commands."""
    whole = cli._parser([])
    yield whole
    for name in _subparsers(whole):
        yield from _with_children(_subparsers(cli._parser([name]))[name])


def _with_children(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for child in _subparsers(parser).values():
        yield from _with_children(child)


def _subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


# --- tree of the package ----------------------------------------------------------------------


def package_tree() -> str:
    lines = ["src/forgellm/", *_tree(PACKAGE, 1)]
    return "```text\n" + "\n".join(lines) + "\n```\n"


def _tree(folder: Path, depth: int) -> Iterator[str]:
    indent = "  " * depth
    for file in sorted(folder.glob("*.py")):
        if file.name != "__init__.py":
            yield _line(indent + file.name, _summary(file))
    for child in sorted(path for path in folder.iterdir() if path.is_dir()):
        name = child.relative_to(PACKAGE).as_posix()
        is_package = (child / "__init__.py").is_file()
        if is_package or name in _FOLDERS:
            about = _summary(child / "__init__.py") if is_package else ""
            yield _line(f"{indent}{child.name}/", about or _FOLDERS[name])
        if is_package:
            yield from _tree(child, depth + 1)


def _line(name: str, about: str) -> str:
    return f"{name:<30}{about}".rstrip()


def _summary(file: Path) -> str:
    """The first paragraph of a module's docstring, as one line without its full stop."""
    text = ast.get_docstring(ast.parse(file.read_text("utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split()).rstrip(".:")


# --- Markdown ---------------------------------------------------------------------------------


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in lines
    )


_PARTS: dict[str, Callable[[], str]] = {
    "recipe fields": recipe_fields,
    "error codes": error_codes,
    "conversation shapes": conversation_shapes,
    "preference shapes": preference_shapes,
    "common columns": common_columns,
    "refused shapes": refused_shapes,
    "speakers": speakers,
    "command help": command_help,
    "package tree": package_tree,
    "scaling on gpus": lambda: _table(*scaling_tables.gpu_rows()),
    "scaling on macs": lambda: _table(*scaling_tables.mac_rows()),
}


if __name__ == "__main__":
    sys.exit(main())
