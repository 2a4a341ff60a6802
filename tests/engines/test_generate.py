"""Answers of both engines: the reference's text, sampling, scores, stops; and errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from forgellm.engines.base import GenerateEngine
from forgellm.engines.registry import load_generate_engine
from forgellm.errors import CheckpointNotFound, ConfigError, InvalidRequest, UnsupportedModel
from forgellm.schema.generation import Sampling
from tiny_model import COMMON, build_tiny_model, random_batch
from training_engines import make_engine, save

ENGINES = ["torch", "mlx"]
CONTEXT = COMMON["max_position_embeddings"]
NEVER: frozenset[int] = frozenset()
PROMPTS = [[1, 2, 3], [5], [*range(40)], [*range(30), 11, 12, 13]]
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
PENALTIES: dict[str, float] = {
    "repetition_penalty": 1.3,
    "frequency_penalty": 0.4,
    "presence_penalty": 0.3,
}


def greedy(max_tokens: int = 20, **fields: Any) -> Sampling:
    plain = {"temperature": 0, "repetition_penalty": 1}
    return Sampling(**{"max_tokens": max_tokens, **plain, **fields})


def sampled(seed: int | None, **fields: Any) -> Sampling:
    plain = {"temperature": 1, "top_p": 1, "repetition_penalty": 1, "max_tokens": 12}
    return Sampling(**{**plain, "seed": seed, **fields})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest, folder: Path) -> GenerateEngine:
    return load_generate_engine(folder, None, engine=request.param, dtype="float32")


@pytest.fixture(scope="module")
def both(folder: Path) -> list[GenerateEngine]:
    return [load_generate_engine(folder, None, engine=name, dtype="float32") for name in ENGINES]


def reference_text(folder: Path, prompt: list[int], num_tokens: int, **fields: Any) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor([prompt])
    model.generation_config.eos_token_id = None
    found: list[int] = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=num_tokens,
        do_sample=False,
        **fields,
    )[0, len(prompt) :].tolist()
    return found


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("llama", {}),
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
        ("llama", {"rope_parameters": LLAMA3_ROPE}),
        ("qwen2", {}),
        ("qwen3", {}),
        ("mistral", {"sliding_window": None}),
        ("gemma2", {"sliding_window": 64}),
        ("gemma3", {"num_hidden_layers": 6}),
    ],
)
@pytest.mark.parametrize("name", ENGINES)
def test_greedy_text_is_that_of_transformers(
    name: str, architecture: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    """For Gemma 3 also far beyond its window of 6 tokens."""
    folder = build_tiny_model(tmp_path, architecture, **changes)
    engine = load_generate_engine(folder, None, engine=name, dtype="float32")
    for prompt in PROMPTS:
        expected = reference_text(folder, prompt, 20)
        assert list(engine.generate(prompt, greedy(), NEVER)) == expected


def test_a_seed_gives_the_same_text_and_another_seed_another(engine: GenerateEngine) -> None:
    texts = [list(engine.generate([1, 2], sampled(seed), NEVER)) for seed in (4, 4, 5)]
    assert texts[0] == texts[1] != texts[2]
    unseeded = {tuple(engine.generate([1, 2], sampled(None), NEVER)) for _ in range(3)}
    assert len(unseeded) == 3


@pytest.mark.parametrize("penalty", PENALTIES)
def test_penalties_act_the_same_in_both_engines(
    both: list[GenerateEngine], folder: Path, penalty: str
) -> None:
    """One by one and all together, on the prompt's tokens and on those said."""
    for fields in ({penalty: PENALTIES[penalty]}, PENALTIES):
        texts = [list(e.generate([1, 2, 3, 2], greedy(40, **fields), NEVER)) for e in both]
        assert texts[0] == texts[1] != reference_text(folder, [1, 2, 3, 2], 40)


def test_repetition_penalty_is_that_of_transformers(engine: GenerateEngine, folder: Path) -> None:
    expected = reference_text(folder, [1, 2, 3], 60, repetition_penalty=1.5)
    found = list(engine.generate([1, 2, 3], greedy(60, repetition_penalty=1.5), NEVER))
    assert found == expected != reference_text(folder, [1, 2, 3], 60)


def test_what_was_said_counts_each_time_to_the_end_of_the_text(engine: GenerateEngine) -> None:
    """Each choice made again from the scores, by a count of all that was answered before."""
    sampling = greedy(150, frequency_penalty=0.5, presence_penalty=0.7)
    said = np.zeros(97)
    for token in engine.generate_scored([1, 2, 3], sampling, NEVER, 97):
        scores = dict(token.top)
        log_probs = np.array([scores[i] for i in range(97)])
        assert token.token_id == int((log_probs - 0.5 * said - 0.7 * (said > 0)).argmax())
        said[token.token_id] += 1
    assert said.sum() == 150 and said.max() > 2


def test_top_p_keeps_the_smallest_set_of_that_mass(engine: GenerateEngine) -> None:
    [first] = engine.generate_scored([1, 2, 3], greedy(1), NEVER, 97)
    probabilities = np.exp([score for _, score in first.top])
    size = int(np.searchsorted(np.cumsum(probabilities), 0.5)) + 1
    inside = {token for token, _ in first.top[:size]}
    drawn = {
        next(iter(engine.generate([1, 2, 3], sampled(seed, top_p=0.5, max_tokens=1), NEVER)))
        for seed in range(60)
    }
    assert 1 < len(drawn) and drawn <= inside
    least = sampled(0, top_p=1e-6, max_tokens=1)
    assert next(iter(engine.generate([1, 2, 3], least, NEVER))) == first.token_id


def test_samples_are_drawn_in_proportion(engine: GenerateEngine) -> None:
    """At temperature 2, against the scores of temperature 1."""
    [first] = engine.generate_scored([1, 2, 3], greedy(1), NEVER, 97)
    scores = dict(first.top)
    weights = np.exp([scores[token] / 2 for token in range(97)])
    expected = weights / weights.sum()
    counts = np.zeros(97)
    num_draws = 400
    for seed in range(num_draws):
        sampling = sampled(seed, temperature=2, max_tokens=1)
        counts[next(iter(engine.generate([1, 2, 3], sampling, NEVER)))] += 1
    error = np.abs(counts / num_draws - expected)
    assert (error < 5 * np.sqrt(expected / num_draws) + 0.01).all()


@pytest.mark.parametrize("fields", [{}, PENALTIES])
def test_scores_agree_and_do_not_know_of_penalties(
    both: list[GenerateEngine], fields: dict[str, float]
) -> None:
    prompt = [1, 2, 3, 2]
    ours, theirs = (list(e.generate_scored(prompt, greedy(**fields), NEVER, 3)) for e in both)
    assert [token.token_id for token in ours] == [token.token_id for token in theirs]
    for mine, its in zip(ours, theirs, strict=True):
        assert [token for token, _ in mine.top] == [token for token, _ in its.top]
        assert mine.log_prob == pytest.approx(its.log_prob, abs=1e-4)
        assert [p for _, p in mine.top] == pytest.approx([p for _, p in its.top], abs=1e-4)
    text = [token.token_id for token in ours]
    for engine in both:
        scored = engine.score(prompt + text, 3)[len(prompt) - 1 :]
        assert [t.log_prob for t in scored] == pytest.approx([t.log_prob for t in ours], abs=1e-4)


def test_log_probs_of_packed_documents_are_those_of_each_alone(engine: GenerateEngine) -> None:
    batch = random_batch([[9, 14], [12, 11]])
    found = engine.token_log_probs(batch)
    alone = [token.log_prob for token in engine.score(batch.tokens[0, :9].tolist(), 0)]
    assert found[0, :8] == pytest.approx(alone, abs=1e-4)
    assert (found[batch.loss_mask == 0] == 0).all()


def test_a_stop_id_ends_the_text_and_is_scored(engine: GenerateEngine) -> None:
    whole = list(engine.generate([1, 2, 3], greedy(), NEVER))
    stop = whole[5]
    cut = whole[: whole.index(stop)]
    assert list(engine.generate([1, 2, 3], greedy(), frozenset({stop, 500}))) == cut
    scored = list(engine.generate_scored([1, 2, 3], greedy(), frozenset({stop}), 0))
    assert [token.token_id for token in scored] == [*cut, stop]


def test_the_context_s_end_ends_the_text(engine: GenerateEngine) -> None:
    prompt = [n % 97 for n in range(CONTEXT - 5)]
    assert len(list(engine.generate(prompt, greedy(50), NEVER))) == 5
    assert list(engine.generate([*prompt, 1, 2, 3, 4, 5], greedy(50), NEVER)) == []
    assert len(list(engine.generate([1], greedy(1), NEVER))) == 1


def test_an_empty_prompt_is_refused(engine: GenerateEngine) -> None:
    with pytest.raises(InvalidRequest, match="empty"):
        list(engine.generate([], greedy(), NEVER))


def test_a_closed_answer_leaves_the_engine_ready(engine: GenerateEngine) -> None:
    expected = list(engine.generate([1, 2, 3], greedy(), NEVER))
    for num_tokens in (0, 1, 7):
        tokens: Any = engine.generate([1, 2, 3], greedy(400), NEVER)
        assert [next(tokens) for _ in range(num_tokens)] == expected[:num_tokens]
        tokens.close()
    assert list(engine.generate([1, 2, 3], greedy(), NEVER)) == expected


@pytest.mark.parametrize("name", ENGINES)
def test_what_cannot_be_loaded_is_named(name: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFound):
        load_generate_engine(folder, tmp_path / "gone_adapters.safetensors", engine=name)
    (tmp_path / "config.json").write_text('{"model_type": "no-such-architecture"}')
    with pytest.raises(UnsupportedModel):
        load_generate_engine(tmp_path, None, engine=name)


@pytest.mark.parametrize("name", ENGINES)
def test_a_full_checkpoint_stands_in_the_model_s_place(
    name: str, folder: Path, tmp_path: Path
) -> None:
    trainer = make_engine(name, folder, fine_tune_type="full")
    trainer.step(random_batch([[9, 14]]), 1e-2, update=True)
    checkpoint = save(trainer, tmp_path)
    engine = load_generate_engine(folder, checkpoint, engine=name, dtype="float32")
    expected = reference_text(checkpoint, [1, 2, 3], 20)
    assert list(engine.generate([1, 2, 3], greedy(), NEVER)) == expected
    assert expected != reference_text(folder, [1, 2, 3], 20)


def test_torch_has_no_kv_bits(folder: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        load_generate_engine(folder, None, engine="torch", kv_bits=8)
    assert [problem["field"] for problem in refused.value.details["problems"]] == ["kv_bits"]


def test_memory_is_at_least_the_weights(engine: GenerateEngine) -> None:
    assert engine.memory_bytes() >= 4 * engine.info.num_parameters
    assert engine.info.context_length == CONTEXT
