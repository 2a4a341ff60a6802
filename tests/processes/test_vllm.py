"""`forgellm server --backend vllm` with stand-ins in vLLM's place: its command line, its life."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file, save_file

from forgellm import supervisor
from forgellm.cli.main import main
from forgellm.errors import UnsupportedModel
from forgellm.model_server.vllm.command import build_command, find_wanted
from forgellm.paths import Workspace
from forgellm.runs.store import Run
from forgellm.training.session import Session
from served_command import Server
from serving import PATIENCE_SECONDS, eventually
from tiny_workspace import build_tiny_workspace, tiny_recipe

# Our own model server, which calls its models as we do.
REAL = """
from forgellm.guard import GuardSettings
from forgellm.model_server.app import create_app
from forgellm.model_server.shelf import Shelf
from forgellm.paths import Workspace
import uvicorn
app = create_app(Shelf(Workspace(Path.cwd())), GuardSettings())
uvicorn.run(app, host="127.0.0.1", port=port, log_config=None)
"""
# Only a list of models.
LIGHT = """
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = b'{"data": [{"id": "base/tiny"}]}'
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
ENDS = "raise SystemExit(3)"
_HEAD = """#!{python}
import json, os, sys
from pathlib import Path
words = sys.argv[1:]
port = int(words[words.index("--port") + 1])
modules = [json.loads(word) for word in words if word.startswith("{{")]
note = {{"words": words, "key": os.environ["VLLM_API_KEY"], "pid": os.getpid()}}
note["files"] = [sorted(os.listdir(module["path"])) for module in modules]
Path("vllm.json").write_text(json.dumps(note))
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    workspace = build_tiny_workspace(tmp_path_factory.mktemp("workspace"))
    run, lock = supervisor.claim_new_run(workspace, tiny_recipe(), max_seq_length=64)
    with lock:
        Session().train(run)
    return run


@pytest.fixture
def workspace(trained: Run) -> Workspace:
    return trained.workspace


def programs(folder: Path, script: str | None, *, has_gpu: bool = True) -> str:
    """A PATH with stand-ins for vLLM and for the NVIDIA driver's tool."""
    folder.mkdir()
    if script is not None:
        (folder / "vllm").write_text(_HEAD.format(python=sys.executable) + script)
    if has_gpu:
        (folder / "nvidia-smi").write_text("#!/bin/sh\necho 'NVIDIA Test, 1000, 900, 9.0'\n")
    for file in folder.iterdir():
        file.chmod(0o755)
    return str(folder)


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    started: list[Server] = []
    yield started
    for server in started:
        server.end()


VLLM = ("server", "--port", "0", "--backend", "vllm", "--model", "tiny")


def test_base_and_adapter_answer_and_all_ends_together(
    trained: Run, workspace: Workspace, tmp_path: Path, servers: list[Server]
) -> None:
    path = programs(tmp_path / "bin", REAL) + os.pathsep + os.environ["PATH"]
    adapter = ("--adapter", trained.output_dir)
    server = Server(workspace.root, *VLLM, *adapter, PATH=path)
    servers.append(server)
    name = f"cpt/{trained.name}"
    note = json.loads((workspace.root / "vllm.json").read_text())
    words = note["words"]
    assert words[:2] == ["serve", str(workspace.base_models / "tiny")]
    assert words[words.index("--served-model-name") + 1] == "base/tiny"
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert words[words.index("--max-lora-rank") + 1] == "8"
    assert note["files"] == [["adapter_config.json", "adapter_model.safetensors"]]
    assert note["key"] not in words and "--trust-remote-code" not in words

    status = server.get("/api/model/status")
    assert (status["model_name"], status["adapter_path"]) == ("tiny", trained.output_dir)
    assert status["model_type"] == "instruct"
    assert set(status["upstream_models"]) == {"base/tiny", name}
    server.post("/api/model/load", {"model_name": "base/tiny", "beside": True})
    ask = {"prompt": "The tide", "temperature": 0, "max_tokens": 12}
    taught = {"model_name": "tiny", "adapter_path": trained.output_dir}
    base = server.post("/api/model/generate", ask | {"model_name": "base/tiny"})
    tuned = server.post("/api/model/generate", ask | taught)
    assert base["response"] and tuned["response"] and base["response"] != tuned["response"]
    child = psutil.Process(note["pid"])
    assert server.end(signal.SIGTERM) == 0
    assert not child.is_running()
    lora = json.loads(next(word for word in words if word.startswith("{")))
    assert lora["name"] == name and not Path(lora["path"]).exists()


def test_its_death_is_our_end_with_a_reason(
    workspace: Workspace, tmp_path: Path, servers: list[Server]
) -> None:
    path = programs(tmp_path / "bin", LIGHT) + os.pathsep + os.environ["PATH"]
    server = Server(workspace.root, *VLLM, PATH=path)
    servers.append(server)
    psutil.Process(json.loads((workspace.root / "vllm.json").read_text())["pid"]).kill()
    assert server.process.wait(PATIENCE_SECONDS) == 1
    assert server.end() == 1  # which reads the last lines
    assert any("ENGINE_UNAVAILABLE: vLLM ended by itself (-9)" in line for line in server.lines)


def test_a_start_that_fails_is_our_end_with_a_reason(workspace: Workspace, tmp_path: Path) -> None:
    path = programs(tmp_path / "bin", ENDS) + os.pathsep + os.environ["PATH"]
    done = subprocess.run(
        [sys.executable, "-m", "forgellm", *VLLM],
        cwd=workspace.root, env=os.environ | {"PATH": path}, capture_output=True, text=True,
        timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    assert done.returncode == 1 and done.stdout == ""
    assert "ENGINE_UNAVAILABLE: vLLM ended by itself (3)" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="Linux ends a child with its parent")
def test_it_does_not_outlive_us_when_we_are_killed(
    workspace: Workspace, tmp_path: Path, servers: list[Server]
) -> None:
    path = programs(tmp_path / "bin", LIGHT) + os.pathsep + os.environ["PATH"]
    server = Server(workspace.root, *VLLM, PATH=path)
    servers.append(server)
    child = psutil.Process(json.loads((workspace.root / "vllm.json").read_text())["pid"])
    server.end(signal.SIGKILL)
    eventually(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


@pytest.mark.parametrize(
    ("script", "has_gpu", "words"),
    [(None, True, "vLLM is not installed"), (LIGHT, False, "needs an NVIDIA GPU")],
)
def test_without_vllm_or_gpu_it_says_so(
    script: str | None,
    has_gpu: bool,
    words: str,
    workspace: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PATH", programs(tmp_path / "bin", script, has_gpu=has_gpu))
    assert main([*VLLM, "--workspace", str(workspace.root)]) == 1
    assert words in capsys.readouterr().err.splitlines()[0]


def test_answers_end_where_the_template_of_the_adapters_ends_them(
    trained: Run, workspace: Workspace, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained.folder, folder)
    template = "{% for m in messages %}{{ m.content + '<|im_start|>' }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    weights = next(folder.glob("*_adapters.safetensors"))
    (folder / "run.json").unlink()
    for named, expected in ((str(weights), [0, 1, 2]), (None, [0, 2])):
        scratch = tmp_path / f"scratch-{len(expected)}"
        scratch.mkdir()
        wanted = find_wanted("tiny", [named] if named else [], workspace)
        command = build_command("vllm", wanted, 1, scratch)
        settings = Path(command[command.index("--generation-config") + 1])
        assert json.loads((settings / "generation_config.json").read_text()) == {
            "eos_token_id": expected
        }


def test_what_vllm_cannot_serve_is_refused(
    trained: Run, workspace: Workspace, tmp_path: Path
) -> None:
    weights = load_file(next(trained.folder.glob("*_adapters.safetensors")))
    config: dict[str, Any] = json.loads((trained.folder / "adapter_config.json").read_text())
    magnitudes = {
        name.replace("lora_b", "m"): np.ones(value.shape[1], "f4")
        for name, value in weights.items()
        if name.endswith("lora_b")
    }
    wide = {
        name: np.ones((len(v), 513) if name.endswith("lora_a") else (513, v.shape[1]), "f4")
        for name, v in weights.items()
    }
    parameters = {"rank": 513, "scale": 2.0}
    for tensors, changes, words in (
        (weights | magnitudes, {"fine_tune_type": "dora", "use_dora": True}, "DoRA"),
        (wide, {"lora_parameters": parameters, "r": 513, "lora_alpha": 1026}, "up to rank 512"),
    ):
        folder = tmp_path / words[:2]
        folder.mkdir()
        save_file(tensors, folder / "adapters.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps(config | changes))
        scratch = folder / "scratch"
        scratch.mkdir()
        with pytest.raises(UnsupportedModel, match=words):
            build_command("vllm", find_wanted("tiny", [str(folder)], workspace), 1, scratch)
