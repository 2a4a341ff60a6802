"""A question before something is deleted."""

from __future__ import annotations

import sys


def confirmed(question: str) -> bool:
    """Whether the user says yes; no where nobody can answer."""
    if sys.stdin is None:
        return False
    try:
        answer = input(f"{question} [y/N] ")
    except EOFError:
        return False
    return answer.strip().lower() in ("y", "yes")
