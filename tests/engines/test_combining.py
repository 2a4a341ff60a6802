"""Adapters of several runs combined to one model: the sums, the folder, and what is refused."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import peft.utils.merge_utils as peft_merge
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from forgellm import supervisor
from forgellm.catalog import find_model
from forgellm.cli.main import main
from forgellm.engines import combining
from forgellm.engines.registry import load_fuse_engine, load_generate_engine
from forgellm.errors import Conflict, ForgeError, InvalidRequest
from forgellm.paths import Workspace
from forgellm.publishing import build_combined
from forgellm.publishing.combine import combine, find_parts, pinned
from forgellm.runs.checkpoints import find_checkpoint
from forgellm.runs.store import Run
from forgellm.schema.combining import CombineRequest
from forgellm.training.session import Session
from tiny_model import build_quantised_model, build_tiny_model, random_batch
from tiny_workspace import build_tiny_workspace, tiny_recipe, write_documents

LAYER = "model.layers.1.self_attn.q_proj"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Runs of one model: of other ranks, layers and data, and of other kinds."""
    workspace = build_tiny_workspace(tmp_path_factory.mktemp("combined"))
    write_documents(workspace, "other", 9)
    return {
        "first": train(workspace),
        "second": train(workspace, dataset="other", lora_rank=6, lora_target="attention", seed=3),
        "dora": train(workspace, fine_tune_type="dora", seed=4),
        "full": train(workspace, fine_tune_type="full"),
    }


def train(workspace: Workspace, **fields: Any) -> Run:
    found, lock = supervisor.claim_new_run(workspace, tiny_recipe(**fields), max_seq_length=64)
    with lock:
        Session().train(found)
    return found


def request_of(runs: dict[str, Run], *names: str, **fields: Any) -> CombineRequest:
    return CombineRequest(checkpoints=[f"{runs[name].name}@12" for name in names], **fields)


def build(request: CombineRequest, workspace: Workspace) -> build_combined.Combined:
    return build_combined.build_combined(
        pinned(request, workspace), workspace, lambda fraction, text: None
    )


def weights_of(run: Run) -> Path:
    return find_checkpoint(run.folder, 12).weights


def base_of(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.workspace.base_models / "tiny" / "model.safetensors")


def change_of(run: Run) -> torch.Tensor:
    """What the run's adapter adds to LAYER, in torch."""
    tensors = load_file(weights_of(run))
    scale = json.loads((run.folder / "adapter_config.json").read_text())["lora_parameters"]["scale"]
    delta = scale * (tensors[f"{LAYER}.lora_a"] @ tensors[f"{LAYER}.lora_b"]).T
    if (m := tensors.get(f"{LAYER}.m")) is None:
        return delta
    base = base_of(run)[f"{LAYER}.weight"]
    return (base + delta) * (m / (base + delta).norm(dim=1))[:, None] - base


@pytest.mark.parametrize("method", ["linear", "ties", "dare_linear", "dare_ties"])
@pytest.mark.parametrize("density", [0.3, 1.0])
@pytest.mark.filterwarnings("ignore:The density")
def test_the_combination_is_that_of_peft(
    method: Any, density: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the random choices of DARE made the same."""
    rng = np.random.default_rng(5)
    changes = [rng.standard_normal((17, 23)).astype(np.float32) for _ in range(3)]
    changes[1][:4] = 0  # an element that one of them does not change
    weights = [0.7, 1.5, -0.4]
    chosen = np.random.default_rng(9)
    monkeypatch.setattr(
        torch,
        "bernoulli",
        lambda p: torch.from_numpy((chosen.random(p.shape, np.float32) < density) * 1.0).float(),
    )
    tensors, of_each = [torch.from_numpy(change) for change in changes], torch.tensor(weights)
    theirs = {
        "linear": lambda: peft_merge.task_arithmetic(tensors, of_each),
        "ties": lambda: peft_merge.ties(tensors, of_each, density),
        "dare_linear": lambda: peft_merge.dare_linear(tensors, of_each, density),
        "dare_ties": lambda: peft_merge.dare_ties(tensors, of_each, density),
    }[method]().numpy()
    ours = combining.combine(changes, weights, method, density, np.random.default_rng(9))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert ours.dtype == np.float32


def test_dare_keeps_a_share_and_what_is_expected() -> None:
    kept = combining.keep_random(np.ones((300, 300), np.float32), 0.25, np.random.default_rng(0))
    assert set(np.unique(kept)) == {0.0, 4.0}
    assert kept.mean() == pytest.approx(1.0, abs=0.03)


def test_a_linear_combination_is_the_weighted_sum(runs: dict[str, Run]) -> None:
    run = runs["first"]
    request = request_of(runs, "first", "second", name="sum", weights=[1.0, -0.5])
    combined = combine(request, run.workspace)
    folder = run.workspace.root / combined["published_model_path"]
    stored = load_file(folder / "model.safetensors")
    expected = change_of(runs["first"]) - 0.5 * change_of(runs["second"])
    found = stored[f"{LAYER}.weight"] - base_of(run)[f"{LAYER}.weight"]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    only_first = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(stored[only_first], base_of(run)[only_first])
    assert torch.equal(stored["model.norm.weight"], base_of(run)["model.norm.weight"])
    figures = combined["verification"]
    assert figures["weights_read_back"] == 14
    assert figures["top1_agreement"] == 1.0
    assert figures["mean_kl"] == pytest.approx(0, abs=1e-5)
    first, second = combined["parts"]
    assert first["checkpoint"] == f"cpt/{run.name}@12"
    assert first["mean_kl"] < second["mean_kl"]
    assert find_model("published/sum", run.workspace).facts.type == "instruct"


def test_the_folder_tells_what_it_is_and_how_to_make_it_again(runs: dict[str, Run]) -> None:
    workspace = runs["first"].workspace
    request = request_of(runs, "first", "second", name="told", method="dare_ties", seed=7)
    folder = workspace.root / build(request, workspace).published_model_path
    lineage = json.loads((folder / "lineage.json").read_text())
    sources = [f"{runs[name].record().training_id}@12" for name in ("first", "second")]
    assert (lineage["kind"], lineage["made_from"]) == ("combined", sources)
    card = (folder / "README.md").read_text()
    assert lineage["command"] in card
    assert all(f"`cpt/{runs[name].name}@12`" in card for name in ("first", "second"))
    assert str(workspace.root) not in card
    again = shlex.split(lineage["command"])[1:]
    again[again.index("told")] = "again"
    assert main([*again[:1], "--workspace", str(workspace.root), *again[1:]]) == 0
    name = "model.safetensors"
    assert (folder / name).read_bytes() == (folder.parent / "again" / name).read_bytes()


@pytest.mark.parametrize("method", ["ties", "dare_linear"])
def test_dora_adapters_take_part_by_what_they_change(method: Any, runs: dict[str, Run]) -> None:
    run = runs["dora"]
    request = request_of(runs, "first", "dora", name=f"d-{method}", method=method, density=1.0)
    combined = build(request, run.workspace)
    assert "mean_kl" not in combined.verification
    stored = load_file(run.workspace.root / combined.published_model_path / "model.safetensors")
    merge = {"ties": peft_merge.ties, "dare_linear": peft_merge.dare_linear}[method]
    weights = torch.tensor(request.weights_used())
    with pytest.warns(UserWarning, match="no pruning"):
        expected = merge([change_of(runs["first"]), change_of(run)], weights, 1.0)
    found = stored[f"{LAYER}.weight"] - base_of(run)[f"{LAYER}.weight"]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_both_engines_combine_alike(runs: dict[str, Run], tmp_path: Path) -> None:
    """On a bfloat16 base, which each rounds to once."""
    base = tmp_path / "base"
    build_tiny_model(base, vocab_size=400)
    stored = {k: v.bfloat16() for k, v in load_file(base / "model.safetensors").items()}
    save_file(stored, base / "model.safetensors", metadata={"format": "pt"})
    files = [weights_of(runs[name]) for name in ("first", "second")]
    found = []
    for name in ("torch", "mlx"):
        change = combining.Combination(base, files, [1.0, 1.0], "dare_ties", 0.5, 3)
        (tmp_path / name).mkdir()
        load_fuse_engine(name).rewrite(base, change, tmp_path / name, lambda done: None)
        found.append(load_file(tmp_path / name / "model.safetensors"))
        assert build_combined._read_back(tmp_path / name, change) == 14
    assert found[0].keys() == found[1].keys() == stored.keys()
    assert all(torch.equal(found[0][key], found[1][key]) for key in stored)
    assert found[0][f"{LAYER}.weight"].dtype == torch.bfloat16


def test_on_a_quantised_base_the_sum_is_kept_plain(runs: dict[str, Run], tmp_path: Path) -> None:
    base = build_quantised_model(tmp_path / "q", 4, tmp_path / "plain")
    rng = np.random.default_rng(1)
    files = []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        tensors = {
            f"{LAYER}.lora_a": rng.standard_normal((32, 2)).astype(np.float32),
            f"{LAYER}.lora_b": rng.standard_normal((2, 32)).astype(np.float32),
        }
        save_file({k: torch.from_numpy(v) for k, v in tensors.items()}, folder / "a.safetensors")
        config = {"lora_parameters": {"rank": 2, "scale": 0.1, "dropout": 0.0}}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        files.append(folder / "a.safetensors")
    change = combining.Combination(base, files, [0.5, 0.5], "linear", 0.5, 0)
    out = tmp_path / "out"
    out.mkdir()
    load_fuse_engine("mlx").rewrite(base, change, out, lambda done: None)
    plain = load_file(tmp_path / "plain" / "model.safetensors")[f"{LAYER}.weight"].float()
    expected = plain.bfloat16().float() + sum(
        0.5 * 0.1 * (t[f"{LAYER}.lora_a"] @ t[f"{LAYER}.lora_b"]).T for t in map(load_file, files)
    )
    found = load_file(out / "model.safetensors")[f"{LAYER}.weight"]
    torch.testing.assert_close(found.float(), expected, rtol=0.01, atol=1e-3)
    load_generate_engine(out, None, engine="torch").token_log_probs(random_batch([[31, 33]]))


def test_what_is_not_stored_as_computed_is_not_kept(
    runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forget_one(self: Any, name: str, weight: NDArray[np.float32]) -> NDArray[np.float32]:
        changed = right(self, name, weight)
        return weight if name == f"{LAYER}.weight" else changed

    right = combining.Combination.__call__
    monkeypatch.setattr(combining.Combination, "__call__", forget_one)
    workspace = runs["first"].workspace
    with pytest.raises(ForgeError, match=f"{LAYER}.weight was not stored"):
        build(request_of(runs, "first", "second", name="wrong", method="ties"), workspace)
    assert not (workspace.published_models / "wrong").exists()


def test_a_sum_that_answers_otherwise_is_not_kept(
    runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(combining, "_weighted_sum", lambda changes, weights: -9 * changes[0])
    workspace = runs["first"].workspace
    with pytest.raises(ForgeError, match="does not answer"):
        build(request_of(runs, "first", "second", name="wrong"), workspace)
    assert not (workspace.published_models / "wrong").exists()


def test_what_cannot_be_combined_is_refused(runs: dict[str, Run], tmp_path: Path) -> None:
    workspace = runs["first"].workspace
    with pytest.raises(InvalidRequest, match="full model") as caught:
        find_parts([runs["first"].name, f"{runs['full'].name}@4"], workspace)
    assert f"--run {runs['full'].name} --iteration 4" in caught.value.suggestion
    build_tiny_model(workspace.base_models / "else", vocab_size=400, seed=9)
    for file in workspace.base_models.glob("tiny/tok*"):
        (workspace.base_models / "else" / file.name).write_bytes(file.read_bytes())
    other = train(workspace, model_name="else")
    with pytest.raises(InvalidRequest, match="different models"):
        find_parts([runs["first"].name, other.name], workspace)
    (workspace.published_models / "taken").mkdir(parents=True)
    with pytest.raises(Conflict, match="taken"):
        pinned(request_of(runs, "first", "second", name="taken"), workspace)


@pytest.mark.parametrize(
    "fields",
    [{"name": "../x"}, {"name": ".x"}, {"name": "a/b"}, {"name": "x", "weights": [1.0]},
     {"name": "x", "density": 0.0}, {"name": "x", "method": "best"},
     {"name": "x", "weights": [1.0, float("nan")]}],
)  # fmt: skip
def test_a_wrong_request_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        CombineRequest(checkpoints=["a", "b"], **fields)
