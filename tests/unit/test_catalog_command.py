"""`forgellm models` as a command, without a process of its own."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from forgellm.cli import models
from forgellm.errors import ModelNotFound, PathNotFound


def forgellm(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    models.add_parser(parser.add_subparsers())
    args = parser.parse_args(["models", *arguments])
    return int(args.run(args))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("FORGELLM_WORKSPACE", str(tmp_path))
    folder = tmp_path / "models" / "base" / "x"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    save_file({"a": np.zeros(4, np.float32)}, folder / "model.safetensors")
    return folder


def test_list_prints_a_table_or_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert forgellm("list") == 0
    assert "base/x" in capsys.readouterr().out
    assert forgellm("list", "--json") == 0
    (model,) = json.loads(capsys.readouterr().out)
    assert (model["name"], model["kind"], model["type"]) == ("base/x", "base", "base")


def test_list_of_an_empty_workspace_says_how_to_get_a_model(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert forgellm("--workspace", str(tmp_path / "empty"), "list") == 0
    assert "forgellm models pull" in capsys.readouterr().out


def test_remove_asks_first(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("builtins.input", lambda question: "n")
    assert forgellm("remove", "x") == 1
    assert folder.is_dir()
    assert forgellm("remove", "x", "--yes") == 0
    assert not folder.exists()
    with pytest.raises(ModelNotFound):
        forgellm("remove", "x", "--yes")


def test_import_of_an_absent_file_is_not_found(folder: Path) -> None:
    with pytest.raises(PathNotFound):
        forgellm("import", str(folder / "none.gguf"))
