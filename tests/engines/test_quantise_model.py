"""A model quantised: what the command says, what is refused, what is left of one that failed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from forgellm.catalog import find_model
from forgellm.cli.main import main
from forgellm.engines import quantising
from forgellm.engines.registry import load_generate_engine
from forgellm.errors import Conflict, DiskTooSmall, ForgeError, InvalidRequest, ModelNotFound
from forgellm.paths import Workspace
from forgellm.publishing import build_quantised, quantise
from forgellm.publishing.__main__ import task_named
from forgellm.publishing.artefact import LINEAGE_NAME
from forgellm.publishing.family import family
from forgellm.publishing.quantise import quantise_model
from forgellm.schema.quantising import QuantisedModel, QuantiseRequest
from tiny_model import random_batch
from tiny_workspace import build_tiny_workspace

WANTED = QuantiseRequest(model_name="tiny", bits=8, group_size=32)
NAME = "tiny-8bit-g32"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Where the quantised model is there already."""
    found = build_tiny_workspace(tmp_path_factory.mktemp("made"))
    build(found)
    return found


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return build_tiny_workspace(tmp_path / "w")


def build(workspace: Workspace) -> QuantisedModel:
    return build_quantised.build_quantised(WANTED, workspace, lambda fraction, text: None)


def published_names(workspace: Workspace) -> list[str]:
    return [path.name for path in workspace.published_models.glob("*") if path.is_dir()]


def test_the_command_makes_a_model_that_loads_by_its_name(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its own process is what test_web_quantise has, which takes long to import an engine.
    monkeypatch.setattr(
        quantise,
        "make",
        lambda task, request, place, report, _: task_named(task)(request, place, report),
    )
    root = str(workspace.root)
    command = ["models", "--workspace", root, "quantize", "tiny", "--bits", "8"]
    assert main([*command, "--group-size", "32", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["model_name"] == f"published/{NAME}"
    before, after, compared = made["before"], made["after"], made["verification"]
    assert after["size_gb"] < 0.4 * before["size_gb"]
    assert after["perplexity"] == pytest.approx(before["perplexity"], rel=0.02)
    assert min(before["tokens_per_second"], after["tokens_per_second"]) > 0
    assert compared["top1_agreement"] > 0.95 and 0 < compared["mean_kl"] < 0.01
    model = find_model(made["model_name"], workspace)
    assert (model.facts.quantization, model.facts.type) == ("mlx 8-bit", "instruct")
    for engine in ("torch", "mlx"):
        folders = (workspace.base_models / "tiny", model.path)
        scores = [
            load_generate_engine(f, None, engine=engine, dtype="float32").token_log_probs(
                random_batch([[12, 18]])
            )
            for f in folders
        ]
        np.testing.assert_allclose(scores[0], scores[1], atol=0.2)
    card = (workspace.root / made["readme_path"]).read_text()
    assert str(before["perplexity"]) in card and str(after["perplexity"]) in card
    assert "forgellm models quantize base/tiny --bits 8 --group-size 32\n" in card
    assert str(workspace.root) not in card
    own = next(member for member in family(workspace) if member.name == made["model_name"])
    assert (own.kind, own.made_from) == ("quantised", ["base/tiny"])
    assert own.command == "forgellm models quantize base/tiny --bits 8 --group-size 32"


def test_what_lies_beside_the_weights_is_the_same(made: Workspace) -> None:
    base, out = made.base_models / "tiny", made.published_models / NAME
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (base / name).read_bytes()
    # The template ends turns with token 2, which the model's own settings do not say.
    before, after = (json.loads((f / "generation_config.json").read_text()) for f in (base, out))
    assert (before.pop("eos_token_id"), after.pop("eos_token_id")) == (0, [0, 2])
    assert before == after
    assert sorted(path.name for path in out.iterdir()) == sorted(
        {path.name for path in base.iterdir()} | {"README.md", LINEAGE_NAME}
    )


def test_a_model_that_is_there_or_quantised_already_is_refused(made: Workspace) -> None:
    with pytest.raises(Conflict, match="there already"):
        quantise_model(WANTED, made)
    again = QuantiseRequest(model_name=f"published/{NAME}", bits=4, group_size=32)
    with pytest.raises(InvalidRequest, match="mlx 8-bit"):
        quantise_model(again, made)
    with pytest.raises(ModelNotFound):
        quantise_model(QuantiseRequest(model_name="nix"), made)


def test_weights_that_are_not_the_rounded_ones_are_not_kept(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = quantising.quantise
    monkeypatch.setattr(
        quantising, "quantise", lambda rows, *how: right(rows[:, ::-1].copy(), *how)
    )
    with pytest.raises(ForgeError, match="was not stored as it was computed"):
        build(workspace)
    assert published_names(workspace) == []


def test_a_model_that_answers_otherwise_is_not_kept(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = build_quantised.copy_beside_weights

    def spoils(base: Path, out: Path) -> None:
        right(base, out)
        config = json.loads((out / "config.json").read_text())
        (out / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 100.0}))

    monkeypatch.setattr(build_quantised, "copy_beside_weights", spoils)
    with pytest.raises(ForgeError, match="does not answer") as caught:
        build(workspace)
    assert caught.value.details["mean_kl"] > 0.05
    assert published_names(workspace) == []


def test_a_model_without_room_in_memory_is_quantised_and_not_compared(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forgellm.hardware.training_memory_bytes", lambda: 50_000)
    made = build(workspace)
    assert made.verification is None and made.before.perplexity is None
    assert made.after.size_gb < made.before.size_gb
    assert "were not compared" in (workspace.root / made.readme_path).read_text()


def test_a_lost_end_of_turn_is_caught(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = build_quantised.copy_beside_weights

    def forgets(base: Path, out: Path) -> None:
        right(base, out)
        settings = json.loads((out / "generation_config.json").read_text())
        (out / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": []}))

    file = workspace.base_models / "tiny" / "generation_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "eos_token_id": [0, 17]}))
    monkeypatch.setattr(build_quantised, "copy_beside_weights", forgets)
    with pytest.raises(ForgeError, match="ends an answer is lost"):
        build(workspace)
    assert published_names(workspace) == []


def test_a_disk_that_is_too_small_is_said_before(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forgellm.hardware.disk_free_bytes", lambda folder: 10_000)
    with pytest.raises(DiskTooSmall):
        build(workspace)
    assert published_names(workspace) == []


def test_cancelled_it_leaves_nothing(workspace: Workspace) -> None:
    with pytest.raises(ForgeError, match="without a result"):
        quantise_model(WANTED, workspace, on_start=lambda stop: stop())
    assert published_names(workspace) == []
