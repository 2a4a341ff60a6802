"""What only the MLX engine does: many answers at once, prefixes known already, kv_bits."""

from __future__ import annotations

import gc
import json
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import KVCache
from mlx_lm.utils import load_model, quantize_model, save_model

from forgellm.engines.answers import Answer, Question
from forgellm.engines.mlx.decoding import MAX_CONCURRENT, Float32Logits
from forgellm.engines.mlx.generate import MlxGenerateEngine
from forgellm.engines.torch.generate import TorchGenerateEngine
from forgellm.errors import ConfigError, OutOfMemory
from forgellm.schema.generation import Sampling
from tiny_model import build_tiny_model, random_batch
from training_engines import make_engine, save, with_random_adapters

NEVER: frozenset[int] = frozenset()
WIDE: dict[str, Any] = {"hidden_size": 64, "head_dim": 64, "num_attention_heads": 2}
CHANGES: dict[str, dict[str, Any]] = {"gemma3": {"num_hidden_layers": 6}}
ARCHITECTURES = pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3"])


def greedy(max_tokens: int = 20, **fields: Any) -> Sampling:
    plain = {"temperature": 0, "repetition_penalty": 1}
    return Sampling(**{"max_tokens": max_tokens, **plain, **fields})


def mixed_questions(count: int) -> list[tuple[list[int], Sampling]]:
    """Prompts of all lengths, some with a beginning in common; greedy, seeded and penalised."""
    rng = random.Random(1)
    start = [rng.randrange(97) for _ in range(30)]
    questions = []
    for index in range(count):
        own = [rng.randrange(97) for _ in range(rng.choice([1, 3, 17, 40]))]
        prompt = start[: rng.randrange(30)] + own if index % 2 else own
        sampling = [
            greedy(rng.randrange(1, 30)),
            greedy(20, repetition_penalty=1.3, frequency_penalty=0.2),
            Sampling(max_tokens=20, temperature=0.9, top_p=0.8, seed=index),
        ][index % 3]
        questions.append((prompt, sampling))
    return questions


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(architecture: str) -> Path:
        if architecture not in made:
            changes = CHANGES.get(architecture, {})
            made[architecture] = build_tiny_model(
                tmp_path_factory.mktemp(architecture), architecture, **changes
            )
        return made[architecture]

    return folder


@pytest.fixture
def engine(folders: Callable[[str], Path]) -> MlxGenerateEngine:
    return open_engine(folders("llama"))


def open_engine(folder: Path, **options: Any) -> MlxGenerateEngine:
    return MlxGenerateEngine(folder, None, dtype="float32", **options)


def alone(folder: Path, questions: list[tuple[list[int], Sampling]]) -> list[list[int]]:
    """Each answered by an engine that has nothing else to do and remembers nothing."""
    engine = open_engine(folder)
    found = []
    for prompt, sampling in questions:
        engine._worker.call(lambda opened: opened._prefixes.clear())
        found.append(list(engine.generate(prompt, sampling, NEVER)))
    return found


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens that went through the model, padding included, one number for each pass."""
    passes: list[int] = []
    call = Float32Logits.__call__

    def counting(self: Float32Logits, tokens: mx.array, cache: Any = None) -> mx.array:
        passes.append(tokens.size)
        return call(self, tokens, cache)

    monkeypatch.setattr(Float32Logits, "__call__", counting)
    return passes


# --- many at once ---------------------------------------------------------------------------------


@ARCHITECTURES
def test_many_at_once_each_get_what_they_would_get_alone(
    architecture: str, folders: Callable[[str], Path]
) -> None:
    folder = folders(architecture)
    questions = mixed_questions(24)
    expected = alone(folder, questions)
    engine = open_engine(folder)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda q: list(engine.generate(*q, NEVER)), questions))
    assert found == expected


def test_more_than_fit_wait_and_passes_are_shared(
    engine: MlxGenerateEngine, folders: Callable[[str], Path], computed: list[int]
) -> None:
    questions = [([n % 97], greedy(30)) for n in range(MAX_CONCURRENT + 8)]
    expected = alone(folders("llama"), questions)
    computed.clear()
    together = threading.Barrier(len(questions))

    def ask(question: tuple[list[int], Sampling]) -> list[int]:
        together.wait()
        return list(engine.generate(*question, NEVER))

    with ThreadPoolExecutor(len(questions)) as pool:
        assert list(pool.map(ask, questions)) == expected
    assert max(computed) <= MAX_CONCURRENT
    assert len(computed) < sum(len(text) for text in expected) / 4


def test_scores_beside_answers_are_right(
    engine: MlxGenerateEngine, folders: Callable[[str], Path]
) -> None:
    reference = TorchGenerateEngine(folders("llama"), None, dtype="float32")
    batch = random_batch([[9, 14], [12, 11]])
    expected = reference.token_log_probs(batch)
    [text] = alone(folders("llama"), [([1, 2], greedy(200))])
    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(list, engine.generate([1, 2], greedy(200), NEVER)) for _ in "ab"]
        for _ in range(3):
            np.testing.assert_allclose(engine.token_log_probs(batch), expected, atol=1e-4)
            assert len(engine.score([1, 2, 3], 2)) == 2
        scored = list(engine.generate_scored([1, 2], greedy(50), NEVER, 1))
        assert [token.token_id for token in scored] == text[:50]
        assert [answer.result() for answer in running] == [text, text]


@ARCHITECTURES
def test_closing_in_the_middle_leaves_the_others_unharmed(
    architecture: str, folders: Callable[[str], Path]
) -> None:
    folder = folders(architecture)
    questions = mixed_questions(12)
    expected = alone(folder, questions)
    engine = open_engine(folder)

    def ask(index: int) -> list[int]:
        prompt, sampling = questions[index]
        if index % 3:
            return list(engine.generate(prompt, sampling, NEVER))
        tokens: Any = engine.generate(prompt, greedy(400), NEVER)
        taken = [next(tokens) for _ in range(1 + index)]
        tokens.close()
        assert all(a == b for a, b in zip(taken, expected[index], strict=False))
        return expected[index]

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(ask, range(12))) == expected
    assert list(engine.generate(*questions[0], NEVER)) == expected[0]


def test_a_closed_answer_stops_within_a_token(
    engine: MlxGenerateEngine, computed: list[int]
) -> None:
    tokens: Any = engine.generate([1, 2, 3], greedy(400), NEVER)
    next(tokens)
    tokens.close()
    engine._worker.call(lambda opened: opened.step())
    assert engine._worker.call(lambda opened: opened.is_idle)
    num_passes = len(computed)
    engine._worker.call(lambda opened: None)
    assert len(computed) == num_passes < 300


def test_an_answer_closed_while_its_prompt_is_read_keeps_what_was_read(
    engine: MlxGenerateEngine, folders: Callable[[str], Path], computed: list[int]
) -> None:
    prompt = [n % 97 for n in range(400)]
    [expected] = alone(folders("llama"), [(prompt, greedy())])
    answer, waiting = (Answer(Question(prompt, greedy(), NEVER, 20)) for _ in range(2))
    computed.clear()

    def begin_and_close(opened: Any) -> None:
        opened.decoder.insert(answer)
        opened.step()
        opened.decoder.insert(waiting)
        for each in (answer, waiting):
            each.close()
        opened.step()
        assert opened.is_idle

    engine._worker.call(begin_and_close)
    assert 0 < sum(computed) < 300
    num_read = sum(computed)
    computed.clear()
    assert list(engine.generate(prompt, greedy(), NEVER)) == expected
    assert sum(computed) - len(computed) < 400 - num_read + 5


def test_caches_that_cannot_be_batched_are_served_one_by_one(
    folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = mixed_questions(6)
    expected = alone(folders("llama"), questions)
    monkeypatch.delattr(KVCache, "merge")
    engine = open_engine(folders("llama"))
    assert engine.max_concurrent == 1
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda q: list(engine.generate(*q, NEVER)), questions)) == expected


def test_a_failure_reaches_all_who_wait_and_the_next_answer_works(
    engine: MlxGenerateEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    call = Float32Logits.__call__
    failing = threading.Event()
    error: list[Exception] = []

    def fail(self: Float32Logits, tokens: mx.array, cache: Any = None) -> mx.array:
        if failing.is_set():
            raise error[0]
        return call(self, tokens, cache)

    monkeypatch.setattr(Float32Logits, "__call__", fail)
    expected = list(engine.generate([1, 2, 3], greedy(), NEVER))
    for cause, seen in (
        (RuntimeError("[metal::malloc] too much"), OutOfMemory),
        (ValueError("shapes differ"), RuntimeError),
    ):
        error[:] = [cause]
        running: list[Any] = [engine.generate([n], greedy(400), NEVER) for n in range(4)]
        for tokens in running[:3]:
            next(tokens)
        failing.set()
        for tokens in running:
            with pytest.raises(seen):
                list(tokens)
        failing.clear()
        assert list(engine.generate([1, 2, 3], greedy(), NEVER)) == expected
    assert "shapes differ" in caplog.text


def test_an_engine_that_nobody_holds_ends_its_thread_and_frees_its_memory(
    folders: Callable[[str], Path],
) -> None:
    gc.collect()
    before, others = mx.get_active_memory(), set(threading.enumerate())
    engine = open_engine(folders("llama"))
    tokens: Any = engine.generate([1, 2, 3], greedy(400), NEVER)
    next(tokens)
    [thread] = [item for item in set(threading.enumerate()) - others if item.name == "mlx"]
    weights = engine.memory_bytes()
    assert mx.get_active_memory() - before >= weights / 2
    del engine, tokens
    gc.collect()
    assert not thread.is_alive()
    assert mx.get_active_memory() - before < weights / 10


_LEAVES = """
import sys
from pathlib import Path
from forgellm.engines.mlx.generate import MlxGenerateEngine
from forgellm.errors import UnsupportedModel
from forgellm.schema.generation import Sampling

try:
    engine = MlxGenerateEngine(Path(sys.argv[1]), None)
except UnsupportedModel:
    sys.exit(7)
next(engine.generate([1, 2], Sampling(max_tokens=400), frozenset()))
"""


def test_a_process_may_end_whatever_the_engine_does(
    folders: Callable[[str], Path], tmp_path: Path
) -> None:
    """MLX aborts a process that ends while the streams of another thread are being taken down."""
    for folder, code in [(folders("llama"), 0), (tmp_path, 7)] * 2:
        done = subprocess.run([sys.executable, "-c", _LEAVES, folder], capture_output=True)
        assert done.returncode == code, done.stderr


# --- prefixes -------------------------------------------------------------------------------------


def test_the_next_turn_computes_only_what_is_new(
    engine: MlxGenerateEngine, folders: Callable[[str], Path], computed: list[int]
) -> None:
    """With `generate` and with scores, after answers that ended by length and by a stop."""
    prompt = [*range(60)]
    for turn in range(3):
        stop = NEVER if turn else frozenset({50})
        [expected] = alone(folders("llama"), [(prompt, greedy(12))])
        computed.clear()
        text = list(engine.generate(prompt, greedy(12), stop))
        assert text == expected[: len(text)]
        num_prefilled = sum(computed) - len(computed)
        assert turn == 0 or num_prefilled < 8
        prompt = [*prompt, *text, 90, 91 + turn]


def test_the_same_prompt_again_and_one_cut_short(
    engine: MlxGenerateEngine, folders: Callable[[str], Path], computed: list[int]
) -> None:
    prompt = [*range(60)]
    questions = [(prompt, greedy()), (prompt, greedy()), (prompt[:40], greedy()), ([0], greedy())]
    expected = alone(folders("llama"), questions)
    for number, question in enumerate(questions):
        computed.clear()
        assert list(engine.generate(*question, NEVER)) == expected[number]
        assert number == 0 or sum(computed) - len(computed) == 0


@ARCHITECTURES
def test_prompts_that_part_in_the_middle_get_their_own_text(
    architecture: str, folders: Callable[[str], Path]
) -> None:
    """Sliding windows too: there a cache cannot be cut back, and must then not be used."""
    folder = folders(architecture)
    rng = random.Random(2)
    prompts = [[*range(25)]]
    for _ in range(14):
        start = rng.choice(prompts)
        prompts.append(start[: rng.randrange(1, len(start) + 1)] + [rng.randrange(97)] * 3)
    questions = [(prompt, greedy(9)) for prompt in prompts]
    expected = alone(folder, questions)
    engine = open_engine(folder)
    assert [list(engine.generate(*question, NEVER)) for question in questions] == expected


@ARCHITECTURES
def test_a_cancelled_answer_can_be_gone_on_from(
    architecture: str, folders: Callable[[str], Path], computed: list[int]
) -> None:
    folder = folders(architecture)
    engine = open_engine(folder)
    tokens: Any = engine.generate([*range(40)], greedy(400), NEVER)
    said = [next(tokens) for _ in range(5)]
    tokens.close()
    prompt = [*range(40), *said, 7]
    [expected] = alone(folder, [(prompt, greedy())])
    computed.clear()
    assert list(engine.generate(prompt, greedy(), NEVER)) == expected
    # The engine ran ahead of who read: windows cannot be cut back to what was read.
    assert architecture == "gemma3" or sum(computed) - len(computed) < 8


def test_what_is_remembered_is_bounded(
    engine: MlxGenerateEngine, folders: Callable[[str], Path]
) -> None:
    one_token = 2 * 2 * 2 * 8 * 4  # layers, keys and values, heads, their size, bytes
    engine._worker.call(lambda opened: setattr(opened._prefixes, "_max_bytes", 200 * one_token))
    weights = engine.memory_bytes()
    questions = [([n, *range(60)], greedy(10)) for n in range(10)]
    expected = alone(folders("llama"), questions)
    assert [list(engine.generate(*question, NEVER)) for question in questions] == expected
    engine._worker.call(lambda opened: opened.step())
    assert 100 * one_token < engine.memory_bytes() - weights <= 200 * one_token


# --- kv_bits --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("wide"), **WIDE)


@pytest.mark.parametrize(("bits", "bound"), [(8, 0.05), (4, 1.0)])
def test_a_quantised_cache_nearly_agrees(
    wide: Path, bits: int, bound: float, computed: list[int]
) -> None:
    plain, engine = open_engine(wide), open_engine(wide, kv_bits=bits)
    assert (plain.max_concurrent, engine.max_concurrent) == (MAX_CONCURRENT, 1)
    prompt = [*range(50)]
    [expected] = plain.generate_scored(prompt, greedy(1), NEVER, 97)
    computed.clear()
    first, *_ = engine.generate_scored(prompt, greedy(20), NEVER, 97)
    scores = dict(expected.top)
    errors = [abs(score - scores[token_id]) for token_id, score in first.top]
    assert np.mean(errors) < bound
    assert sum(computed) - len(computed) >= 45
    computed.clear()
    again = list(engine.generate([*prompt, first.token_id, 3], greedy(20), NEVER))
    assert len(again) == 20 and sum(computed) - len(computed) < 5


def test_with_a_quantised_cache_requests_wait_for_each_other(wide: Path) -> None:
    engine = open_engine(wide, kv_bits=8)
    questions = mixed_questions(9)
    expected = [list(engine.generate(*question, NEVER)) for question in questions]
    with ThreadPoolExecutor(9) as pool:
        closed: Any = engine.generate([1], greedy(400), NEVER)
        next(closed)
        asked = [pool.submit(list, engine.generate(*q, NEVER)) for q in questions]
        assert engine.score([1, 2, 3], 0)
        closed.close()
        assert [answer.result() for answer in asked] == expected


def test_a_cache_that_cannot_be_quantised_is_a_wrong_field(
    folders: Callable[[str], Path],
) -> None:
    for architecture in ("llama", "gemma3"):  # heads of 8 numbers; sliding windows
        with pytest.raises(ConfigError, match="kv_bits"):
            open_engine(folders(architecture), kv_bits=8)


# --- quantised weights ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quantised(wide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantised")
    model, config = load_model(wide)
    model, config = quantize_model(model, config, group_size=32, bits=8)
    save_model(folder, model)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_an_adapter_stays_beside_quantised_weights(
    quantised: Path, wide: Path, tmp_path: Path
) -> None:
    trainer = make_engine("mlx", quantised)
    with_random_adapters(trainer, tmp_path / "adapter")
    weights = save(trainer, tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(trainer.adapter_config()))
    ids = [*range(30)]
    scores = {}
    for name, folder, adapter in (
        ("plain", wide, weights),
        ("quantised", quantised, weights),
        ("base", quantised, None),
    ):
        engine = MlxGenerateEngine(folder, adapter, dtype="float32")
        scores[name] = np.array([token.log_prob for token in engine.score(ids, 0)])
        assert len(list(engine.generate(ids, greedy(), NEVER))) == 20
    near = np.abs(scores["plain"] - scores["quantised"]).mean()
    assert near < 0.1 < np.abs(scores["base"] - scores["quantised"]).mean()
