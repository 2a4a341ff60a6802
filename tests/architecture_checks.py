"""What is found out of a tiny model of an architecture, with either engine: whether it trains, answers
and is published as plain transformers would have it. Each check fails with an AssertionError, or with
the refusal that a user would read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from forgellm.catalog.safetensors_header import read_header
from forgellm.catalog.safety import weight_files
from forgellm.engines.adapter import CONFIG_NAME
from forgellm.engines.registry import load_fuse_engine, load_generate_engine
from forgellm.schema.generation import Sampling
from tiny_model import documents_of, random_batch
from training_engines import make_engine, plain_loss, save, with_random_adapters

# Longer than every window; the second row is filled up.
BATCH = random_batch([[5, 17, 9], [20, 3, 8]], padding=3)
_CLOSE = 1e-4  # nats a token


def by_transformers(folder: Path, attention: str = "eager") -> Any:
    model, told = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation=attention, dtype=torch.float32, output_loading_info=True
    )
    assert not told["missing_keys"] and not told["unexpected_keys"], told
    return model.eval()


def _attention_of(folder: Path) -> str:
    """Falcon's two ways of computing ALiBi differ from each other, in transformers itself."""
    is_alibi = json.loads((folder / "config.json").read_text()).get("alibi")
    return "sdpa" if is_alibi else "eager"


@torch.no_grad()
def loss_alone(folder: Path) -> float:
    """Of each document by itself, by transformers' plainest code."""
    total, count = plain_loss(by_transformers(folder, _attention_of(folder)), documents_of(BATCH))
    return float(total) / count


def check_training(engine_name: str, folder: Path, **recipe: Any) -> Any:
    """Packed documents have the loss they have alone, and steps make it smaller."""
    engine: Any = make_engine(engine_name, folder, **recipe)
    start = engine.validation_loss([BATCH], lambda: False)
    expected = loss_alone(folder)
    assert abs(start - expected) < _CLOSE, f"loss {start:.5f}, by transformers {expected:.5f}"
    for _ in range(3):
        engine.step(BATCH, 1e-2, True)
    assert engine.validation_loss([BATCH], lambda: False) < start, "it does not learn"
    return engine


def check_answers(engine_name: str, folder: Path) -> None:
    """The likeliest answer is that of whole texts read anew for each token."""
    prompt = np.random.default_rng(3).integers(1, 97, 11).tolist()
    plain, said = by_transformers(folder, _attention_of(folder)), list(prompt)
    with torch.no_grad():
        for _ in range(12):
            logits = plain(input_ids=torch.tensor([said]), use_cache=False).logits
            said.append(int(logits[0, -1].argmax()))

    engine = load_generate_engine(folder, None, engine=engine_name, dtype="float32")
    sampling = Sampling(max_tokens=12, temperature=0.0, repetition_penalty=1.0)
    found = list(engine.generate(prompt, sampling, frozenset()))
    assert found == said[11:], f"answers {found}, by transformers {said[11:]}"
    # A second turn that goes on from the middle of what the first left behind.
    rest = sampling.model_copy(update={"max_tokens": 5})
    assert list(engine.generate(said[:18], rest, frozenset())) == said[18:], "the next turn"


def check_publishing(engine_name: str, folder: Path, work: Path, **recipe: Any) -> None:
    """What is published is for transformers what was trained, under the base's names."""
    engine: Any = make_engine(engine_name, folder, **recipe)
    if recipe.get("fine_tune_type") == "full":
        engine.step(BATCH, 1e-2, True)
        weights = save(engine, work / "c")
    else:
        with_random_adapters(engine, work / "c")
        weights = work / "c" / "0000000_adapters.safetensors"
        (work / "c" / CONFIG_NAME).write_text(json.dumps(engine.adapter_config()))
    trained = engine.validation_loss([BATCH], lambda: False)
    out = work / "published"
    out.mkdir()
    fuse = load_fuse_engine(engine_name)
    fuse.fuse(folder, weights, out, lambda done: None)
    assert abs(loss_alone(out) - trained) < _CLOSE, "the published model has another loss"
    assert stored(out) == stored(folder), "names of tensors"
    assert fuse.agreement(folder, weights, out, [list(range(1, 20))]).mean_kl < 1e-5


def stored(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's tensors."""
    return {n: i.shape for file in weight_files(folder) for n, i in read_header(file).items()}
