"""A run's model is held to what it was when the run began, wherever the run's weights are used."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from forgellm import supervisor
from forgellm.cli.main import main
from forgellm.engines.pinned_base import require_same_base
from forgellm.errors import ModelChanged, RunEdited
from forgellm.generation.loading import find_source, open_source
from forgellm.guard import GuardSettings
from forgellm.model_server.app import create_app as create_model_server
from forgellm.model_server.shelf import Shelf
from forgellm.paths import Workspace
from forgellm.publishing.build import build_published
from forgellm.publishing.build_adapter import build_adapter
from forgellm.runs.checkpoints import best_checkpoint
from forgellm.runs.manage import accept_record
from forgellm.runs.store import Run, find_run
from forgellm.schema.exports import ExportRequest
from forgellm.schema.generation import LoadRequest
from forgellm.training.session import Session
from forgellm.web.app import create_app
from serving import eventually, served
from tiny_workspace import build_tiny_workspace, tiny_recipe

SHORT: dict[str, Any] = {"max_iterations": 2, "save_every": 1, "engine": "torch"}


def train(workspace: Workspace, **fields: Any) -> Run:
    recipe = tiny_recipe(**(SHORT | fields))
    run, lock = supervisor.claim_new_run(workspace, recipe, max_seq_length=64)
    with lock:
        Session().train(run)
    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(build_tiny_workspace(tmp_path_factory.mktemp("trained")))


@pytest.fixture
def run(trained: Run, tmp_path: Path) -> Run:
    """A copy, whose files have other places and dates."""
    shutil.copytree(trained.workspace.root, tmp_path / "w")
    workspace = Workspace((tmp_path / "w").resolve())
    return Run(workspace.runs("cpt") / trained.name, workspace)


def flip_a_bit(model: Path) -> None:
    """In the middle of the weights, leaving size and date as they were."""
    file = model / "model.safetensors"
    before = file.stat()
    with file.open("r+b") as content:
        content.seek(before.st_size * 2 // 3)
        byte = content.read(1)[0]
        content.seek(-1, os.SEEK_CUR)
        content.write(bytes([byte ^ 1]))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def edit(name: str, **fields: Any) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        file = model / name
        content = json.loads(file.read_text()) if file.is_file() else {}
        file.write_text(json.dumps(content | fields))

    return change


CHANGES: dict[str, Callable[[Path], None]] = {
    "model.safetensors was changed": flip_a_bit,
    "config.json was changed": edit("config.json", rope_theta=12345.0),
    "tokenizer_config.json was changed": edit("tokenizer_config.json", eos_token="<|im_end|>"),
    "chat_template.jinja was not there": lambda m: (
        (m / "chat_template.jinja").write_text("{}") and None
    ),
    "tokenizer_config.json is missing": lambda m: (m / "tokenizer_config.json").unlink(),
}


def uses(run: Run, allow: bool) -> dict[str, Callable[[], object]]:
    """Every way that puts the run's weights on its model."""
    workspace, best = run.workspace, best_checkpoint(run.folder)
    assert best is not None
    load = LoadRequest(
        model_name="tiny", adapter_path=run.output_dir, engine="torch", allow_changed_base=allow
    )
    export = ExportRequest(model_name=run.name, format="peft", allow_changed_base=allow)
    silent: Callable[..., None] = lambda *_: None  # noqa: E731
    return {
        "generate": lambda: open_source(find_source(load, workspace)),
        "publish": lambda: build_published(run, best, silent, None, allow),
        "export": lambda: build_adapter(export, workspace, silent),
        "stacked": lambda: train(
            workspace, base_run=run.name, base_run_mode="stacked", allow_changed_base=allow
        ),
        "merged": lambda: train(
            workspace, base_run=run.name, base_run_mode="merged", allow_changed_base=allow
        ),
        "resume": lambda: supervisor.claim_resume(
            workspace, run, allow_changed_base=allow
        ).release(),
    }  # fmt: skip


def test_a_run_writes_down_what_its_model_holds(run: Run) -> None:
    files = run.record().base_files
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= files.keys()
    model = run.workspace.base_models / "tiny"
    assert files["config.json"].size_bytes == (model / "config.json").stat().st_size


@pytest.mark.parametrize("words", CHANGES)
def test_each_kind_of_change_is_named(run: Run, words: str) -> None:
    model = run.workspace.base_models / "tiny"
    require_same_base(run.record(), model, run.workspace)
    CHANGES[words](model)
    with pytest.raises(ModelChanged, match=words.replace(".", r"\.")) as caught:
        require_same_base(run.record(), model, run.workspace)
    assert caught.value.details["changed"].keys() == {words.split()[0]}


@pytest.mark.parametrize("use", ["generate", "publish", "export", "stacked", "merged", "resume"])
def test_a_flipped_bit_is_found_by_every_use_and_may_be_allowed(run: Run, use: str) -> None:
    flip_a_bit(run.workspace.base_models / "tiny")
    with pytest.raises(ModelChanged, match=r"model\.safetensors was changed"):
        uses(run, allow=False)[use]()
    uses(run, allow=True)[use]()


def test_a_resume_that_is_allowed_records_the_changed_model(run: Run) -> None:
    model = run.workspace.base_models / "tiny"
    flip_a_bit(model)
    uses(run, allow=True)["resume"]()
    assert any("model.safetensors was changed" in text for text in run.record().warnings)
    require_same_base(run.record(), model, run.workspace)


def test_the_trainer_itself_compares(run: Run) -> None:
    flip_a_bit(run.workspace.base_models / "tiny")
    with pytest.raises(ModelChanged):
        Session().train(run, resume=True)
    assert run.state().phase == "failed"


@pytest.mark.parametrize(
    ("name", "text"), [("chat_template.jinja", "{{ 1 }}"), ("adapter_config.json", None)]
)
def test_what_belongs_to_the_weights_is_pinned_too(run: Run, name: str, text: str | None) -> None:
    """Here in a way that no program of ours would read otherwise."""
    file = run.folder / name
    file.write_text(text or file.read_text() + " ")
    for use in ("generate", "publish", "export", "stacked", "merged", "resume"):
        with pytest.raises(RunEdited, match=name.replace(".", r"\.")):
            uses(run, allow=False)[use]()
    assert accept_record(run) == [name]
    uses(run, allow=False)["generate"]()


def test_the_same_model_in_another_place_is_the_same(run: Run) -> None:
    workspace = run.workspace
    shutil.copytree(workspace.base_models / "tiny", workspace.base_models / "copy")
    load = LoadRequest(model_name="copy", adapter_path=run.output_dir, engine="torch")
    open_source(find_source(load, workspace))


def test_another_model_of_the_same_shape_is_not(run: Run) -> None:
    workspace = run.workspace
    shutil.copytree(workspace.base_models / "tiny", workspace.base_models / "other")
    flip_a_bit(workspace.base_models / "other")
    load = LoadRequest(model_name="other", adapter_path=run.output_dir, engine="torch")
    with pytest.raises(ModelChanged):
        open_source(find_source(load, workspace))


def test_a_checkpoint_of_all_weights_needs_no_others(tmp_path: Path) -> None:
    run = train(build_tiny_workspace(tmp_path), fine_tune_type="full")
    model = run.workspace.base_models / "tiny"
    flip_a_bit(model)
    uses(run, allow=False)["generate"]()
    edit("tokenizer_config.json", eos_token="<|im_end|>")(model)
    with pytest.raises(ModelChanged, match="tokenizer_config"):
        uses(run, allow=False)["generate"]()


def test_a_run_of_an_earlier_version_is_used_with_a_note(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    run.write_record(run.record().model_copy(update={"base_files": {}}))
    flip_a_bit(run.workspace.base_models / "tiny")
    with caplog.at_level(logging.WARNING):
        uses(run, allow=False)["generate"]()
    assert "not known" in caplog.text


def test_the_commands_name_the_way_on(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    root, model = str(run.workspace.root), run.workspace.base_models / "tiny"
    (run.workspace.root / "q.json").write_text(
        json.dumps([{"question": "Who?", "choices": ["a", "b"], "answer": 0}])
    )
    flip_a_bit(model)
    commands = [
        ["cli", "generate", "--adapter-path", run.output_dir, "--prompt", "a", "--max-tokens", "2"],
        ["publish", "--run", run.name],
        ["eval", run.name, "--general", str(next((run.workspace.datasets / "notes").iterdir()))],
        ["models", "--workspace", root, "export", run.name, "--format", "mlx"],
        ["train", "--resume", run.name],
    ]
    for command in commands:
        place = [] if "--workspace" in command else ["--workspace", root]
        assert main([*command, *place]) == 1, command
        said = capsys.readouterr().err
        assert "MODEL_CHANGED" in said and "--allow-changed-base" in said
        assert main([*command, *place, "--allow-changed-base"]) == 0, capsys.readouterr().err
        capsys.readouterr()
    assert find_run(run.workspace, run.name).state().phase == "completed"


def test_the_servers_say_it_and_take_the_field(run: Run) -> None:
    flip_a_bit(run.workspace.base_models / "tiny")
    web = TestClient(
        create_app(run.workspace, GuardSettings(), "http://127.0.0.1:1"),
        base_url="http://localhost:5002",
        client=("127.0.0.1", 40000),
    )
    refused = web.post("/api/training/resume", json={"output_dir": run.output_dir})
    assert (refused.status_code, refused.json()["error_code"]) == (409, "MODEL_CHANGED")
    assert refused.json()["details"]["changed"] == {"model.safetensors": "was changed"}
    weights = best_checkpoint(run.folder)
    assert weights is not None
    path = run.workspace.relative(weights.weights)
    published = web.post("/api/training/publish_checkpoint", json={"checkpoint_path": path})
    assert published.json()["error_code"] == "MODEL_CHANGED"

    with served(create_model_server(Shelf(run.workspace), GuardSettings())) as server:
        body = {"model_name": "tiny", "adapter_path": run.output_dir, "engine": "torch"}
        asked = {"prompt": "a", "max_tokens": 2, "streaming": False}
        server.post("/api/model/load", json=body)
        answer = server.post("/api/model/generate", json=asked).json()
        assert "model.safetensors was changed" in answer["error"]
        status = server.get("/api/model/status").json()
        assert status["error"]["error_code"] == "MODEL_CHANGED" and not status["loaded"]
        server.post("/api/model/load", json=body | {"allow_changed_base": True})
        assert server.post("/api/model/generate", json=asked).json()["success"]

    allowed = {"output_dir": run.output_dir, "allow_changed_base": True}
    assert web.post("/api/training/resume", json=allowed).status_code == 200
    eventually(lambda: run.state().phase == "completed" and not run.is_alive())
