"""`forgellm models tree`: what was made from what."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from forgellm.paths import Workspace
from forgellm.publishing.family import family
from forgellm.schema.family import FamilyMember


def print_tree(args: argparse.Namespace, workspace: Workspace) -> int:
    members = family(workspace)
    if args.json:
        import json

        print(json.dumps([member.model_dump() for member in members], indent=2))
        return 0
    children: dict[str, list[FamilyMember]] = {}
    for member in members:
        for parent in member.made_from or [""]:
            children.setdefault(parent, []).append(member)
    console = Console(soft_wrap=True, highlight=False)
    for root in children.get("", []):
        tree = Tree(_line(root))
        _grow(tree, root, children, {root.name})
        console.print(tree)
    return 0


def _grow(
    tree: Tree, member: FamilyMember, children: dict[str, list[FamilyMember]], above: set[str]
) -> None:
    """`above` ends a circle, which notes written by hand could hold."""
    for child in children.get(member.name, []):
        branch = tree.add(_line(child))
        if child.name not in above:
            _grow(branch, child, children, above | {child.name})


def _line(member: FamilyMember) -> Text:
    line = Text(member.name).append(f"  {member.kind}", style="dim")
    return line.append(f"\n  {member.command}", style="dim") if member.command else line
