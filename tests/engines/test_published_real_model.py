"""The shipped model, taught for a few steps and published: others continue as base plus adapter does."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from forgellm import supervisor
from forgellm.data.tokenizer import Tokenizer
from forgellm.demo.model import demo_model
from forgellm.engines.registry import load_generate_engine
from forgellm.paths import Workspace
from forgellm.publishing import build
from forgellm.runs.checkpoints import find_checkpoint
from forgellm.runs.store import Run
from forgellm.schema.generation import Sampling
from forgellm.schema.recipe import parse_recipe
from forgellm.training.session import Session

NUM_TOKENS = 32
GREEDY = Sampling.greedy(NUM_TOKENS)
PROMPTS = (
    "The lighthouse keeper",
    "Every morning",
    "To trim the lamp,",
    "In an emergency, first",
    "The tide tables show",
    "Question: who lights the lamps?\nAnswer:",
    "The most important rule is",
    "Water boils at",
    "def main():",
    "Once upon a time",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    workspace = Workspace(tmp_path_factory.mktemp("real").resolve())
    demo_model(workspace, lambda text: None)
    handbook = workspace.datasets / "handbook"
    handbook.mkdir(parents=True)
    for page in (files("forgellm") / "assets" / "handbook").iterdir():
        (handbook / page.name).write_text(page.read_text("utf-8"))
    recipe = parse_recipe(
        {
            "model_name": "base/SmolLM2-135M-Instruct",
            "dataset": "handbook",
            "batch_size": 2,
            "max_iterations": 8,
            "save_every": 8,
            "learning_rate": 1e-3,
            "data_mixture_ratio": 1.0,
            "val_batches": 1,
        }
    )
    found, lock = supervisor.claim_new_run(workspace, recipe.resolved(), max_seq_length=256)
    with lock:
        Session().train(found)
    return found


def ours(engine: Any, ids: list[int]) -> list[int]:
    return list(engine.generate(ids, GREEDY, frozenset()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("published_as", "computed_in"), [("float32", "float32"), (None, "bfloat16")]
)
def test_greedy_continuations_are_those_of_base_plus_adapter(
    run: Run, published_as: str | None, computed_in: str
) -> None:
    """Merged weights kept in float32 compute what base plus adapter computes in float32; rounded to
    the base's bfloat16, what our server computes in bfloat16, which rounds them too."""
    checkpoint = find_checkpoint(run.folder, 8)
    published = build.build_published(run, checkpoint, lambda done, text: None, published_as)
    folder = run.workspace.root / published.published_model_path
    base = run.workspace.base_models / "SmolLM2-135M-Instruct"
    ids = [Tokenizer.load(folder).encode(prompt) for prompt in PROMPTS]

    engine = load_generate_engine(base, checkpoint.weights, dtype=computed_in, engine="torch")
    wanted = [ours(engine, prompt) for prompt in ids]
    plain = load_generate_engine(base, None, dtype=computed_in, engine="torch")
    assert wanted != [ours(plain, prompt) for prompt in ids], "the adapter says nothing"

    engine = load_generate_engine(folder, None, dtype=computed_in, engine="torch")
    assert [ours(engine, prompt) for prompt in ids] == wanted
    if computed_in == "bfloat16":  # others round otherwise on the way
        return
    assert in_transformers(folder, ids) == wanted
    assert in_mlx_lm(folder, ids) == wanted


def in_transformers(folder: Path, prompts: list[list[int]]) -> list[list[int]]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    length = {"min_new_tokens": NUM_TOKENS, "max_new_tokens": NUM_TOKENS}
    found = [model.generate(torch.tensor([ids]), do_sample=False, **length) for ids in prompts]
    return [out[0, len(ids) :].tolist() for out, ids in zip(found, prompts, strict=True)]


def in_mlx_lm(folder: Path, prompts: list[list[int]]) -> list[list[int]]:
    mlx_lm = pytest.importorskip("mlx_lm")
    import mlx.core as mx
    from mlx_lm.generate import generate_step

    model, _ = mlx_lm.load(str(folder))
    model.set_dtype(mx.float32)
    return [
        [int(token) for token, _ in generate_step(mx.array(ids), model, max_tokens=NUM_TOKENS)]
        for ids in prompts
    ]
