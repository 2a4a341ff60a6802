"""An adapter whose configuration and weights do not belong together, or hold no numbers, is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from forgellm.catalog import find_model
from forgellm.engines.registry import load_fuse_engine, load_generate_engine, load_train_engine
from forgellm.errors import CheckpointCorrupt, UnsupportedModel
from forgellm.generation.loading import find_source
from forgellm.paths import Workspace
from forgellm.runs.store import Run, create_run
from forgellm.schema.generation import LoadRequest
from tiny_workspace import build_tiny_workspace, tiny_recipe

ENGINES = ["torch", "mlx"]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return build_tiny_workspace(tmp_path_factory.mktemp("w"), num_documents=1)


@pytest.fixture(params=["lora", "dora"])
def adapter(workspace: Workspace, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    return write_adapter(workspace, tmp_path / "a", request.param)


def write_adapter(workspace: Workspace, folder: Path, kind: str) -> Path:
    recipe = tiny_recipe(fine_tune_type=kind, engine="torch").resolved()
    engine = load_train_engine(recipe, workspace.base_models / "tiny")
    folder.mkdir(exist_ok=True)
    name = engine.save_weights(folder, "0000001")[0]
    (folder / name).rename(folder / "adapters.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(engine.adapter_config()))
    return folder


def attach(engine: str, workspace: Workspace, folder: Path) -> None:
    model = find_model("tiny", workspace).path
    load_generate_engine(model, folder / "adapters.safetensors", engine=engine, dtype="float32")


def merge(engine: str, workspace: Workspace, folder: Path, out: Path) -> None:
    out.mkdir()
    model = find_model("tiny", workspace).path
    load_fuse_engine(engine).fuse(model, folder / "adapters.safetensors", out, lambda done: None)


def configure(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


@pytest.mark.parametrize("engine", ENGINES)
def test_an_adapter_that_fits_is_attached(workspace: Workspace, adapter: Path, engine: str) -> None:
    attach(engine, workspace, adapter)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["lora_parameters"].update(rank=3),
        lambda c: c["lora_parameters"].update(rank=0),
        lambda c: c["lora_parameters"].update(rank="4"),
        lambda c: c["lora_parameters"].update(scale=float("nan")),
        lambda c: c["lora_parameters"].update(scale=float("inf")),
        lambda c: c["lora_parameters"].update(scale=-2.0),
        lambda c: c["lora_parameters"].update(scale=1e30),
        lambda c: c["lora_parameters"].update(scale=3.0),  # lora_alpha says something else
        lambda c: c.update(lora_alpha=float("nan")),
        lambda c: c.update(r=8),
        lambda c: c.update(fine_tune_type={"dora": "lora"}.get(c["fine_tune_type"], "dora")),
        lambda c: c.update(lora_parameters=[4, 2.0]),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(
    workspace: Workspace, adapter: Path, tmp_path: Path, engine: str, change: Any
) -> None:
    configure(adapter, change)
    with pytest.raises(UnsupportedModel, match="adapter_config"):
        attach(engine, workspace, adapter)
    with pytest.raises(UnsupportedModel, match="adapter_config"):
        merge(engine, workspace, adapter, tmp_path / "merged")


WEIGHTS = "0000001_adapters.safetensors"
Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(f"{Q}.lora_b"), f"lacks {Q}.lora_b"),
        (lambda t: t.update({f"{Q}.lora_c": np.ones(3, "f4")}), "lora_c"),
        (lambda t: t.update({f"{Q}.lora_a": np.ones((32, 9), "f4")}), Q),
        (lambda t: t.update({f"{Q}.lora_b": np.ones((4, 5), "f4")}), Q),
        (lambda t: t.update({f"{Q}.lora_b": np.full((4, 32), np.nan, "f4")}), "not finite"),
        (lambda t: t.update({f"{Q}.lora_a": np.full((32, 4), np.inf, "f4")}), "not finite"),
        (
            lambda t: [
                t.update({k.replace(Q, "model.layers.7.self_attn.q_proj"): t[k]})
                for k in list(t)
                if k.startswith(Q)
            ],
            "model.layers.7",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(
    workspace: Workspace, adapter: Path, engine: str, change: Any, words: str
) -> None:
    file = adapter / "adapters.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    with pytest.raises(UnsupportedModel, match=words.replace(".", r"\.")):
        attach(engine, workspace, adapter)


def test_a_run_whose_adapter_settings_were_changed_does_not_answer(tmp_path: Path) -> None:
    workspace = build_tiny_workspace(tmp_path, num_documents=1)
    run = untrained_run(workspace)
    request = LoadRequest(model_name="tiny", adapter_path=f"{run.output_dir}/{WEIGHTS}")
    assert find_source(request, workspace).adapter is not None

    def double(config: dict[str, Any]) -> None:  # in both words, so that the file fits itself
        config["lora_parameters"]["scale"] *= 2
        config["lora_alpha"] *= 2

    configure(run.folder, double)
    with pytest.raises(CheckpointCorrupt, match="recipe"):
        find_source(request, workspace)


def untrained_run(workspace: Workspace) -> Run:
    """A run's folder with an adapter in it, as far as answering looks at it."""
    run = create_run(workspace, tiny_recipe(), 64)
    write_adapter(workspace, run.folder, "lora")
    (run.folder / "adapters.safetensors").rename(run.folder / WEIGHTS)
    return run
