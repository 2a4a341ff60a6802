"""The layering of pyproject.toml holds, and would notice if it did not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def test_imports_point_down() -> None:
    done = subprocess.run(
        [BIN / "lint-imports", "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("room", ["runs", "web", "data", "cli"])
@pytest.mark.parametrize("line", ["import torch", "import transformers", "import pickle"])
def test_a_planted_import_is_refused(room: str, line: str) -> None:
    done = subprocess.run(
        [BIN / "ruff", "check", "--no-cache", "--stdin-filename", f"src/forgellm/{room}/x.py", "-"],
        cwd=ROOT,
        input=f"{line}\n",
        capture_output=True,
        text=True,
    )
    assert "TID251" in done.stdout


@pytest.mark.parametrize("module", ["forgellm", "forgellm.cli.main", "forgellm.sdk"])
def test_light_modules_import_nothing_heavy(module: str) -> None:
    heavy = ["torch", "transformers", "numpy", "fastapi", "matplotlib", "pyarrow", "rich"]
    code = f"import sys, {module}; print([n for n in {heavy} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
