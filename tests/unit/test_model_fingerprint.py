"""The fingerprint of a model is that of its copy, and of nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from forgellm.catalog.fingerprint import model_fingerprint


def weights(seed: int) -> dict[str, np.ndarray]:
    return {"a.weight": np.random.default_rng(seed).standard_normal((600, 2000), np.float32)}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save_file(weights(0), folder / "model.safetensors")
    return folder


def test_a_copy_has_the_same(model: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model, tmp_path / "copy")
    (copy / "README.md").write_text("Another card.")
    assert model_fingerprint(copy) == model_fingerprint(model)


def test_other_weights_of_the_same_shape_have_another(model: Path) -> None:
    before = model_fingerprint(model)
    save_file(weights(1), model / "model.safetensors")
    assert model_fingerprint(model) != before


@pytest.mark.parametrize("name", ["config.json", "chat_template.jinja"])
def test_another_small_file_makes_another(model: Path, name: str) -> None:
    before = model_fingerprint(model)
    (model / name).write_text("{ }")
    assert model_fingerprint(model) != before
