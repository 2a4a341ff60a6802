"""What should perhaps not be in a model: keys, passwords and e-mail addresses.

Keys are known by their shapes, others by a name such as `password` before a value that looks random.
Values are never shown whole.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from forgellm.schema.preparation import Maskable

_SHAPES = {
    "private key": r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY[A-Z ]{0,10}-----"
    r"(?:[\s\S]{0,20000}?-----END [A-Z ]{0,30}PRIVATE KEY[A-Z ]{0,10}-----)?",
    "AWS key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{60,255})\b",
    "GitLab token": r"\bglpat-[\w-]{20,64}",
    "Google key": r"\bAIza[0-9A-Za-z_-]{35}\b",
    "Slack token": r"\bxox[abeprs]-[0-9A-Za-z-]{10,250}",
    "Stripe key": r"\b[sr]k_(?:live|test)_[0-9A-Za-z]{16,250}\b",
    "API key": r"\bsk-[A-Za-z0-9_-]{20,250}",
    "Hugging Face token": r"\bhf_[A-Za-z0-9]{30,64}\b",
    "npm token": r"\bnpm_[A-Za-z0-9]{36}\b",
    "PyPI token": r"\bpypi-AgE[\w-]{50,500}",
    "JWT": r"\beyJ[\w-]{8,2000}\.eyJ[\w-]{8,8000}\.[\w-]{8,2000}",
    "password in an address": r"\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@]{1,100}:(?P<value>[^\s/@]{3,200})@",
    "assigned secret": r"(?i:secret|token|passwd|password|pwd|api[_-]?key|access[_-]?key"
    r"|private[_-]?key|credentials?)[\w-]{0,20}[\"']?\s{0,3}(?:=>|:=|=|:)\s{0,3}[\"']?"
    r"(?P<value>[A-Za-z0-9+/=_.!@#$%^&*~-]{12,500})",
}
# Looked for first, in the text in small letters: most texts have none, and are done with quickly.
_SIGNS = {
    "private key": ("private key",),
    "AWS key": ("akia", "asia"),
    "GitHub token": ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
    "GitLab token": ("glpat-",),
    "Google key": ("aiza",),
    "Slack token": ("xox",),
    "Stripe key": ("k_live_", "k_test_"),
    "API key": ("sk-",),
    "Hugging Face token": ("hf_",),
    "npm token": ("npm_",),
    "PyPI token": ("pypi-age",),
    "JWT": ("eyj",),
    "password in an address": ("://",),
    "assigned secret": (
        "secret",
        "token",
        "passw",
        "pwd",
        "api",
        "access",
        "private",
        "credential",
    ),
}
_PATTERNS = {kind: re.compile(shape) for kind, shape in _SHAPES.items()}
_MIN_BITS = 3.3  # of entropy in a character, for a value to look random
_LOCAL = re.compile(r"[A-Za-z0-9._%+-]{1,64}\Z")
_DOMAIN = re.compile(r"(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b")


class Finding(NamedTuple):
    """`start` to `end` is the value's place in the text; `masked` is how it may be shown."""

    group: Maskable
    kind: str
    start: int
    end: int
    line: int
    masked: str


def findings(text: str) -> list[Finding]:
    """In order, none within another."""
    spans = sorted(
        [*_secrets(text), *_emails(text)], key=lambda span: (span[2], span[0] == "emails", -span[3])
    )
    found: list[Finding] = []
    position, line, end_before = 0, 1, 0
    for group, kind, start, end in spans:
        if start < end_before:
            continue
        line += text.count("\n", position, start)
        position, end_before = start, end
        found.append(Finding(group, kind, start, end, line, _masked(group, kind, text[start:end])))
    return found


Span = tuple[Maskable, str, int, int]


def _secrets(text: str) -> Iterator[Span]:
    lowered = text.lower()
    for kind, pattern in _PATTERNS.items():
        if not any(sign in lowered for sign in _SIGNS[kind]):
            continue
        for match in pattern.finditer(text):
            name = "value" if pattern.groups else 0
            if kind != "assigned secret" or _looks_random(match[name]):
                yield "secrets", kind, *match.span(name)


def _emails(text: str) -> Iterator[Span]:
    at = text.find("@")
    while at >= 0:
        before = _LOCAL.search(text, max(0, at - 64), at)
        after = _DOMAIN.match(text, at + 1)
        if before and after:
            yield "emails", "e-mail address", before.start(), after.end()
        at = text.find("@", at + 1)


def _looks_random(value: str) -> bool:
    counts = Counter(value).values()
    bits = -sum(count / len(value) * math.log2(count / len(value)) for count in counts)
    kinds = (str.isdigit, str.islower, str.isupper)
    return bits >= _MIN_BITS and sum(any(map(kind, value)) for kind in kinds) >= 2


def _masked(group: Maskable, kind: str, value: str) -> str:
    if group == "emails":
        return f"{value[0]}***@{value.rpartition('@')[2]}"
    shown = 4 if len(value) >= 20 and kind not in ("assigned secret", "private key") else 0
    return f"{value[:shown]}*** ({len(value)} characters)"
