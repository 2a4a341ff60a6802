"""Both servers against their own OpenAPI documents, by schemathesis with all of its checks."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from starlette.applications import Starlette

from forgellm import supervisor
from forgellm.guard import GuardSettings
from forgellm.model_server.app import create_app as create_model_server
from forgellm.model_server.shelf import Shelf
from forgellm.paths import Workspace
from forgellm.runs.lock import RunLock
from forgellm.runs.manage import rename_run
from forgellm.runs.store import Run, list_runs
from forgellm.schema.generation import LoadRequest
from forgellm.web.app import create_app as create_web_server
from security.conftest import set_hub
from serving import served

SETTINGS = Path(__file__).with_name("schemathesis.toml")
_SHORT = {"max_position_embeddings": 96}
_CASES = re.compile(r"([\d,]+) generated")


@pytest.fixture
def workspace(trained_workspace: Path, tmp_path: Path) -> Workspace:
    """A copy for each test: what is tried deletes and renames."""
    workspace = Workspace(shutil.copytree(trained_workspace, tmp_path / "workspace"))
    [run] = list_runs(workspace)
    rename_run(run, "trained")
    _shorten_context(workspace.base_models / "tiny" / "config.json")
    return workspace


@pytest.fixture
def urls(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Both servers on real ports, with a model and a run. A run that a request starts ends at once."""
    monkeypatch.setattr(supervisor, "_spawn", _spawn_nothing)
    shelf = Shelf(workspace)
    shelf.load(LoadRequest(model_name="tiny"))
    model_app = create_model_server(shelf, GuardSettings())
    with served(Starlette()) as hub, served(model_app) as model_server:
        set_hub(monkeypatch, str(hub.base_url), workspace)
        web_app = create_web_server(workspace, GuardSettings(), str(model_server.base_url))
        with served(web_app) as web_server:
            yield {"web": str(web_server.base_url), "model": str(model_server.base_url)}


def check(url: str, num_examples: int, phases: str, folder: Path) -> int:
    """Run schemathesis without a failure; how many cases it tried."""
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(SETTINGS)),
        *("run", f"{url}/openapi.json", "--checks", "all", "--seed", "4711"),
        *("--max-examples", str(num_examples), "--no-color", "--continue-on-failure"),
        # One request may want 128 answers, of a model that a busy machine runs.
        *("--request-timeout", "120", "--max-response-time", "120"),
        *("--phases", phases),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]
    found = _CASES.search(done.stdout)
    assert found is not None, done.stdout
    return int(found[1].replace(",", ""))


@pytest.mark.parametrize("name", ["web", "model"])
def test_servers_do_what_their_documents_say(
    urls: dict[str, str], name: str, tmp_path: Path
) -> None:
    assert check(urls[name], 3, "fuzzing", tmp_path) >= 20


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("name", "num_examples", "least_cases"), [("web", 200, 6500), ("model", 400, 3500)]
)
def test_ten_thousand_cases_find_no_difference(
    urls: dict[str, str], name: str, num_examples: int, least_cases: int, tmp_path: Path
) -> None:
    phases = "examples,coverage,fuzzing,stateful"
    assert check(urls[name], num_examples, phases, tmp_path) >= least_cases


def _shorten_context(config: Path) -> None:
    """Answers as long as the context are soon made, however many a request may ask for."""
    config.write_bytes(orjson.dumps(orjson.loads(config.read_bytes()) | _SHORT))


def _spawn_nothing(run: Run, arguments: list[str], lock: RunLock) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", ""], pass_fds=(lock.fileno(),))
