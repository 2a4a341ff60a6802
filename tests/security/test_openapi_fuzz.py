"""Both servers against their own OpenAPI documents, by schemathesis with all of its checks."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.applications import Starlette

from forgellm import supervisor
from forgellm.guard import GuardSettings
from forgellm.model_server.app import create_app as create_model_server
from forgellm.model_server.slot import Slot
from forgellm.paths import Workspace
from forgellm.runs.lock import RunLock
from forgellm.runs.store import Run
from forgellm.web.app import create_app as create_web_server
from security.conftest import set_hub
from serving import served

SETTINGS = Path(__file__).with_name("schemathesis.toml")
_CASES = re.compile(r"([\d,]+) generated")


@pytest.fixture
def urls(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Both servers on real ports. A run that a valid request starts ends at once."""
    monkeypatch.setattr(supervisor, "_spawn", _spawn_nothing)
    model_app = create_model_server(Slot(workspace), GuardSettings())
    with served(Starlette()) as hub, served(model_app) as model_server:
        set_hub(monkeypatch, str(hub.base_url), workspace)
        web_app = create_web_server(workspace, GuardSettings(), str(model_server.base_url))
        with served(web_app) as web_server:
            yield {"web": str(web_server.base_url), "model": str(model_server.base_url)}


@pytest.mark.parametrize(
    ("num_examples", "least_cases"),
    [(5, 20), pytest.param(200, 5_000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])],
)
@pytest.mark.parametrize("name", ["web", "model"])
def test_servers_do_what_their_documents_say(
    urls: dict[str, str], name: str, num_examples: int, least_cases: int, tmp_path: Path
) -> None:
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(SETTINGS)),
        *("run", f"{urls[name]}/openapi.json", "--checks", "all", "--seed", "4711"),
        *("--max-examples", str(num_examples), "--no-color", "--continue-on-failure"),
        *("--phases", "fuzzing" if num_examples == 5 else "examples,coverage,fuzzing,stateful"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]
    found = _CASES.search(done.stdout)
    assert found is not None, done.stdout
    assert int(found[1].replace(",", "")) >= least_cases


def _spawn_nothing(run: Run, arguments: list[str], lock: RunLock) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", ""], pass_fds=(lock.fileno(),))
