"""The command lines of the specification, where that is beside the checkout."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

SPEC = Path(__file__).parents[2] / "shared" / "spec" / "forgellm_api_reference.md"
needs_spec = pytest.mark.skipif(not SPEC.is_file(), reason="the specification is not here")


def lines_of_the_spec() -> Iterator[list[str]]:
    """The commands of the spec's shell examples, without the brackets of optional parts."""
    for block in re.findall(r"```bash\n(.*?)```", SPEC.read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("forgellm "):
                yield shlex.split(re.sub(r"[\[\]]", "", line))[1:]
