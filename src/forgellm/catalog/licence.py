"""What a model's files say of its licence."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

_HEAD = re.compile(r"\A---\r?\n(.{0,20000}?)\n---", re.DOTALL)
LICENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,60}")


def licence_of(folder: Path) -> str | None:
    """The identifier in the head of the model card, such as `apache-2.0`; None where none is."""
    try:
        with open(folder / "README.md", encoding="utf-8", errors="replace") as file:
            head = _HEAD.match(file.read(25_000))
        found = yaml.safe_load(head[1]) if head else None
    except (OSError, yaml.YAMLError, RecursionError):
        return None
    licence = found.get("license") if isinstance(found, dict) else None
    return licence if isinstance(licence, str) and LICENCE.fullmatch(licence) else None
