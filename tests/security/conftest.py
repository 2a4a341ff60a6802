"""A workspace worth attacking, a canary outside it, and both servers on it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from starlette.applications import Starlette

from forgellm import supervisor
from forgellm.guard import GuardSettings
from forgellm.model_server.app import create_app as create_model_server
from forgellm.model_server.shelf import Shelf
from forgellm.paths import Workspace
from forgellm.training.session import Session
from forgellm.web.app import create_app as create_web_server
from security.attack import SECRET, Server, running_loop, started
from serving import served
from tiny_workspace import build_tiny_workspace, tiny_recipe


class Servers(NamedTuple):
    web: Server
    model: Server


@pytest.fixture(scope="session")
def trained_workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a tiny model, a dataset, and a run that has checkpoints."""
    root = tmp_path_factory.mktemp("trained") / "workspace"
    workspace = build_tiny_workspace(root)
    run, lock = supervisor.claim_new_run(workspace, tiny_recipe(), max_seq_length=64)
    with lock:
        Session().train(run)
    return root


@pytest.fixture(scope="module")
def workspace(trained_workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Its own copy, beside folders that nobody may look into, and with links that lead there."""
    root = tmp_path_factory.mktemp("attacked") / "workspace"
    shutil.copytree(trained_workspace, root)
    for folder in (root.with_name("outside"), root.with_name("workspace-evil")):
        shutil.copytree(trained_workspace / "models" / "base" / "tiny", folder)
        (folder / "secret.txt").write_text(SECRET)
    for place in ("dataset/link", "models/base/link", "models/cpt/link", "link"):
        (root / place).symlink_to(root.with_name("outside"))
    (root / "dataset" / "notes" / "link.txt").symlink_to(root.with_name("outside") / "secret.txt")
    return Workspace(root)


@pytest.fixture(scope="module")
def servers(workspace: Workspace) -> Iterator[Servers]:
    """Both applications, the one asking the other through a real port; hub and pip find nothing."""
    with pytest.MonkeyPatch.context() as patch, served(Starlette()) as hub, running_loop() as loop:
        set_hub(patch, str(hub.base_url), workspace)
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setattr(supervisor, "_spawn", _refuse_to_start)
        model_app = create_model_server(Shelf(workspace), GuardSettings())
        with served(model_app) as model_client:
            web_app = create_web_server(workspace, GuardSettings(), str(model_client.base_url))
            with started(web_app, loop):
                yield Servers(
                    Server(web_app, loop, workspace.root), Server(model_app, loop, workspace.root)
                )


@pytest.fixture(params=["web", "model"])
def server(request: pytest.FixtureRequest, servers: Servers) -> Server:
    found: Server = getattr(servers, request.param)
    return found


def set_hub(patch: pytest.MonkeyPatch, url: str, workspace: Workspace) -> None:
    patch.setenv("HF_ENDPOINT", url)
    patch.setenv("HF_HUB_CACHE", str(workspace.root.with_name("hf") / "hub"))


def _refuse_to_start(*args: object) -> None:
    raise AssertionError("a hostile request started a trainer")
