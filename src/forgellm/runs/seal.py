"""`run.json` carries hashes of its own fields, so that an edit by hand is told by the field's name.

What a resume trains with, and what an answer's adapter is scaled by, are read from that file and
from those beside it, whose hashes are in it too. The
seal is no signature: it finds mistakes and damage, not forgery.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from forgellm.runs.manifest import sha256

SEAL = "seal"
# A record with this field was written by a version that seals.
_SINCE = "base_files"


COMPANIONS = ("adapter_config.json", "chat_template.jinja")
REFERENCE_NAME = "reference.safetensors"  # compared by who reads it, on a resume


def companions_of(folder: Path) -> dict[str, str]:
    """sha256 of the files that belong to a run's weights, by name."""
    return {
        name: sha256(folder / name)
        for name in (*COMPANIONS, REFERENCE_NAME)
        if (folder / name).is_file()
    }


def sealed(record: dict[str, Any]) -> dict[str, Any]:
    """The record with a hash of each of its fields; those of the recipe one by one."""
    written = orjson.loads(orjson.dumps(record))  # numbers as they will be read
    return {**record, SEAL: dict(_hashes(written))}


def edited_fields(content: dict[str, Any]) -> list[str]:
    """Which fields are not as they were written, such as `recipe.learning_rate`. None are in a record
    of an earlier version, which has no seal."""
    seal = content.get(SEAL)
    if not isinstance(seal, dict):
        return [SEAL] if _SINCE in content else []
    found = dict(_hashes({name: value for name, value in content.items() if name != SEAL}))
    return sorted(name for name in seal.keys() | found.keys() if seal.get(name) != found.get(name))


def _hashes(record: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in record.items():
        if name == "recipe" and isinstance(value, dict):
            yield from ((f"recipe.{field}", _hash(item)) for field, item in value.items())
        else:
            yield name, _hash(value)


def _hash(value: Any) -> str:
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]
