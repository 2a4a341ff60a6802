"""Finding, checking and listing models."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from forgellm.catalog import find_model, list_models, read_facts
from forgellm.catalog.remove import remove_model
from forgellm.catalog.safetensors_header import read_header
from forgellm.errors import ConfigError, Conflict, InvalidRequest, ModelNotFound, UnsupportedModel
from forgellm.paths import Workspace
from tiny_model import build_tiny_model
from tiny_tokenizer import build_tiny_tokenizer

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
    "intermediate_size": 16, "vocab_size": 10, "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}  # fmt: skip
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    (tmp_path / "work").mkdir()
    return Workspace(tmp_path / "work")


def make_model(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    weights = {
        "model.embed_tokens.weight": np.zeros((10, 8), np.float16),
        "model.layers.0.mlp.up_proj.weight": np.zeros((16, 8), np.float16),
        "lm_head.weight": np.zeros((10, 8), np.float16),
    }
    save_file(weights, folder / "model.safetensors")
    return folder


def make_cached(hub: Path, repo_id: str, **changes: Any) -> Path:
    repo = hub / ("models--" + repo_id.replace("/", "--"))
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    return make_model(repo / "snapshots" / COMMIT, **changes)


def test_a_model_is_found_by_each_of_its_names(workspace: Workspace, hub: Path) -> None:
    base = make_model(workspace.base_models / "x")
    published = make_model(workspace.published_models / "p")
    full = make_model(workspace.models / "cpt" / "run" / "0000300_model")
    cached = make_cached(hub, "org/name")
    for name, path, kind, shown in (
        ("x", base, "base", "base/x"),
        ("base/x", base, "base", "base/x"),
        ("models/base/x", base, "base", "base/x"),
        ("models/base/x/", base, "base", "base/x"),
        ("published/p", published, "published", "published/p"),
        ("cpt/run/0000300_model", full, "cpt", "cpt/run/0000300_model"),
        ("org/name", cached, "cached", "org/name"),
    ):
        model = find_model(name, workspace)
        assert (model.path, model.kind, model.name) == (path, kind, shown)
        assert model.config["hidden_size"] == 8


def test_absent_models_name_the_places_searched(workspace: Workspace, tmp_path: Path) -> None:
    outside = make_model(tmp_path / "outside")
    (workspace.root / "link").symlink_to(outside)
    for name in ("org/none", "../outside", str(outside), "link", "", "~/x", "a\0b", "a--b/c", "."):
        with pytest.raises(ModelNotFound) as caught:
            find_model(name, workspace)
        assert "models/base/" in caught.value.details["searched_paths"]
        assert str(tmp_path) not in json.dumps(caught.value.details["searched_paths"])
    with pytest.raises(ModelNotFound) as caught:
        find_model("org/none", workspace)
    assert caught.value.suggestion == "Download it with: forgellm models pull org/none"


def test_the_cache_is_named_without_a_path_of_this_machine(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value, shown in (
        ("HF_HUB_CACHE", "/none", "$HF_HUB_CACHE/"),
        ("HF_HOME", "/none", "$HF_HOME/hub/"),
        ("XDG_CACHE_HOME", "/none", "~/.cache/huggingface/hub/"),
    ):
        monkeypatch.delenv("HF_HUB_CACHE", raising=False)
        monkeypatch.delenv("HF_HOME", raising=False)
        monkeypatch.setenv(variable, value)
        with pytest.raises(ModelNotFound) as caught:
            find_model("org/none", workspace)
        assert caught.value.details["searched_paths"][-1] == shown


def test_absolute_folders_only_for_the_user_of_the_machine(
    workspace: Workspace, tmp_path: Path
) -> None:
    outside = make_model(tmp_path / "outside")
    assert find_model(str(outside), workspace, allow_absolute=True).path == outside
    with pytest.raises(ModelNotFound):
        find_model(str(tmp_path / "none"), workspace, allow_absolute=True)


def test_incomplete_snapshots_do_not_count_and_say_so(workspace: Workspace, hub: Path) -> None:
    snapshot = make_cached(hub, "org/name")
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelNotFound) as caught:
        find_model("org/name", workspace)
    assert "model-2.safetensors missing" in caught.value.details["searched_paths"][-1]
    assert not list_models(workspace)
    (snapshot / "model.safetensors.index.json").unlink()
    assert find_model("org/name", workspace).kind == "cached"
    (snapshot / "config.json").unlink()
    with pytest.raises(ModelNotFound) as caught:
        find_model("org/name", workspace)
    assert "config.json missing" in caught.value.details["searched_paths"][-1]
    (hub / "models--org--only-blobs" / "blobs").mkdir(parents=True)
    with pytest.raises(ModelNotFound) as caught:
        find_model("org/only-blobs", workspace)
    assert "incomplete" in caught.value.details["searched_paths"][-1]


@pytest.mark.parametrize(
    "key", ["auto_map", "trust_remote_code", "_attn_implementation_internal", "_attn_implementation", "custom_pipelines"]
)  # fmt: skip
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_files_that_ask_for_foreign_code_are_refused(
    workspace: Workspace, file: str, key: str
) -> None:
    folder = make_model(workspace.base_models / "x")
    for content in ({key: "a/b"}, {"text_config": {"deep": [{key: {"AutoModel": "x.Y"}}]}}):
        (folder / file).write_text(json.dumps({**CONFIG, **content}))
        with pytest.raises(UnsupportedModel, match=key):
            find_model("x", workspace)
    (folder / file).write_text(
        json.dumps({**CONFIG, key: None, "_attn_implementation_autoset": True})
    )
    assert find_model("x", workspace).kind == "base"


@pytest.mark.parametrize(
    "content", ["", "[1]", "{", "[" * 100_000, '{"a": "' + "x" * 1_000_001 + '"}']
)
def test_unreadable_configurations_are_unsupported(workspace: Workspace, content: str) -> None:
    folder = make_model(workspace.base_models / "x")
    (folder / "config.json").write_text(content)
    with pytest.raises(UnsupportedModel):
        find_model("x", workspace)


def test_pickled_weights_alone_are_refused_with_a_way_out(workspace: Workspace) -> None:
    folder = make_model(workspace.base_models / "x")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UnsupportedModel, match="pickled") as caught:
        find_model("x", workspace)
    assert "safetensors" in caught.value.suggestion


def test_index_cannot_lead_out_of_the_folder(workspace: Workspace) -> None:
    folder = make_model(workspace.base_models / "x")
    for name in ("../../secret.safetensors", "/etc/passwd", "a\x00b", 3):
        index = {"weight_map": {"a": name}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(UnsupportedModel):
            find_model("x", workspace)


def test_damaged_weight_headers_are_refused(workspace: Workspace) -> None:
    folder = make_model(workspace.base_models / "x")
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    data = whole[8 + length :]

    def with_header(changes: dict[str, Any]) -> bytes:
        text = json.dumps({**header, "lm_head.weight": {**header["lm_head.weight"], **changes}})
        return len(text).to_bytes(8, "little") + text.encode() + data

    file.write_bytes(with_header({}))
    assert find_model("x", workspace)
    for content in (
        b"", whole[:5], whole[:-1], whole + b"\0", b"\xff" * 8 + whole[8:],
        whole[:8] + b"[" * length + data,
        with_header({"shape": [10, 9]}), with_header({"shape": [-10, -8]}),
        with_header({"shape": [2**62, 2**62]}), with_header({"shape": "x"}),
        with_header({"dtype": "X99"}), with_header({"dtype": []}),
        with_header({"data_offsets": [80, 240]}), with_header({"data_offsets": [0]}),
        with_header({"data_offsets": [10**9, 10**9 + 160]}),
    ):  # fmt: skip
        file.write_bytes(content)
        with pytest.raises(UnsupportedModel, match="damaged"):
            find_model("x", workspace)


def test_facts_come_from_configuration_and_headers(workspace: Workspace) -> None:
    model = find_model(make_model(workspace.base_models / "x").name, workspace)
    facts = model.facts
    assert facts.num_parameters == 10 * 8 + 16 * 8  # the tied lm_head counts once
    assert facts.size_bytes == (model.path / "model.safetensors").stat().st_size
    assert (facts.head_dim, facts.num_kv_heads, facts.context_length) == (4, 1, 64)
    assert (facts.dtype, facts.type, facts.quantization) == ("float16", "base", None)
    untied = read_facts(model.path, {**model.config, "tie_word_embeddings": False})
    assert untied.num_parameters == 10 * 8 * 2 + 16 * 8


def test_type_comes_from_the_chat_template_not_the_name(workspace: Workspace) -> None:
    folder = make_model(workspace.base_models / "Something-Instruct")
    settings = folder / "tokenizer_config.json"
    for content, expected in (({}, "base"), ({"chat_template": "{{ x }}"}, "instruct")):
        settings.write_text(json.dumps(content))
        assert find_model(folder.name, workspace).facts.type == expected
    settings.write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ x }}")
    assert find_model(folder.name, workspace).facts.type == "instruct"


def test_mlx_quantised_models_are_reported(workspace: Workspace) -> None:
    quantization = {"group_size": 64, "bits": 4}
    folder = make_model(
        workspace.base_models / "x", quantization=quantization, quantization_config=quantization
    )
    weights = {
        "model.embed_tokens.weight": np.zeros((10, 16), np.uint32),  # 128 4-bit weights a row
        "model.embed_tokens.scales": np.zeros((10, 2), np.float16),
        "model.embed_tokens.biases": np.zeros((10, 2), np.float16),
        "model.norm.weight": np.zeros(8, np.float16),
    }
    save_file(weights, folder / "model.safetensors")
    facts = find_model("x", workspace).facts
    assert facts.quantization == "mlx 4-bit"
    assert facts.num_parameters == 10 * 128 + 8
    config = {**CONFIG, "quantization_config": {"quant_method": "gptq"}}
    assert read_facts(folder, config).quantization == "gptq"


def test_list_shows_models_and_runs_with_checkpoints(workspace: Workspace, hub: Path) -> None:
    make_cached(hub, "org/name")
    make_model(workspace.base_models / "b")
    make_model(workspace.published_models / "p")
    (workspace.base_models / ".import-half").mkdir()
    (workspace.base_models / "empty").mkdir()
    for run, files in (("with", ["0000010_adapters.safetensors"]), ("without", [])):
        folder = workspace.runs("cpt") / run
        folder.mkdir(parents=True)
        created = {"created_at": "2025-01-15T10:30:00.000Z"}
        (folder / "run.json").write_text(json.dumps(created))
        for name in files:
            (folder / name).write_bytes(b"x" * 1000)
    listed = list_models(workspace)
    assert [(m.kind, m.name, m.path) for m in listed] == [
        ("cached", "org/name", None),
        ("base", "base/b", "base/b"),
        ("cpt", "with", "cpt/with"),
        ("published", "published/p", "published/p"),
    ]
    assert listed[2].created_at == "2025-01-15T10:30:00.000Z"
    assert listed[2].size_bytes > 1000
    assert listed[0].type == "base"


def test_list_of_an_empty_machine_is_empty(workspace: Workspace) -> None:
    assert list_models(workspace) == []


def test_models_are_removed_and_what_belongs_to_others_is_refused(
    workspace: Workspace, hub: Path
) -> None:
    make_cached(hub, "org/name")
    make_model(workspace.base_models / "b")
    make_model(workspace.published_models / "p")
    make_model(workspace.models / "cpt" / "run" / "0000300_model")
    make_model(workspace.root / "elsewhere")
    for name in ("org/name", "base/b", "published/p"):
        with pytest.raises(Conflict):
            remove_model(name, workspace, ["gone", name.removeprefix("base/")])
        assert remove_model(name, workspace, ["cpt/run/0000300_model"]) > 480
    for name in ("cpt/run/0000300_model", "elsewhere"):
        with pytest.raises(InvalidRequest):
            remove_model(name, workspace, [])
    with pytest.raises(ModelNotFound):
        remove_model("org/name", workspace, [])
    assert os.listdir(hub) == []
    assert [model.name for model in list_models(workspace)] == ["run"]


def test_read_header_lists_every_tensor(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "x")
    tensors = read_header(folder / "model.safetensors")
    assert tensors["model.layers.0.mlp.up_proj.weight"].shape == (16, 8)
    assert sum(info.num_bytes for info in tensors.values()) == (80 + 80 + 128) * 2


def test_a_link_out_of_the_workspace_is_told_to_the_user_of_the_machine_alone(
    workspace: Workspace, tmp_path: Path
) -> None:
    (tmp_path / "disk").mkdir()
    workspace.base_models.mkdir(parents=True, exist_ok=True)
    (workspace.base_models / "linked").symlink_to(tmp_path / "disk")
    with pytest.raises(ModelNotFound) as caught:
        find_model("linked", workspace, allow_absolute=True)
    assert "a link" in caught.value.details["searched_paths"][0]
    assert "--model /FOLDER" in caught.value.suggestion
    with pytest.raises(ModelNotFound) as caught:
        find_model("linked", workspace)
    assert "a link" not in str(caught.value.details) + caught.value.suggestion


@pytest.fixture
def linked(tmp_path: Path) -> Workspace:
    """A workspace with a link to a model outside it, in each place where one may try."""
    workspace = Workspace((tmp_path / "w").resolve())
    model = build_tiny_tokenizer(tmp_path / "disk" / "model")
    build_tiny_model(model, vocab_size=400)
    for folder in (workspace.base_models, workspace.published_models, workspace.datasets):
        folder.mkdir(parents=True)
        (folder / "linked").symlink_to(model)
    (workspace.base_models / "deep").mkdir()
    (workspace.base_models / "deep" / "linked").symlink_to(model)
    return workspace


def test_a_link_out_of_the_workspace_is_a_model_where_its_owner_allows_it(
    linked: Workspace,
) -> None:
    assert not list_models(linked)
    (linked.root / "settings.toml").write_text("linked_models = true\n")
    for name in ("linked", "base/linked", "models/base/linked"):
        found = find_model(name, linked)
        assert (found.name, found.kind) == ("base/linked", "base")
    assert [model.name for model in list_models(linked)] == ["base/linked"]
    for name in ("published/linked", "deep/linked", "../w/models/base/linked", "dataset/linked"):
        with pytest.raises(ModelNotFound):
            find_model(name, linked)
    with pytest.raises(InvalidRequest):
        remove_model("linked", linked, [])
    assert (linked.base_models / "linked" / "config.json").is_file()


@pytest.mark.parametrize(
    ("text", "told"),
    [("linked_models = 1", "linked_models"), ("links = true", "links"), ("links", "not TOML")],
)
def test_settings_that_are_wrong_are_told(linked: Workspace, text: str, told: str) -> None:
    (linked.root / "settings.toml").write_text(text)
    with pytest.raises(ConfigError, match=told):
        list_models(linked)
