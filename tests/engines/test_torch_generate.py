"""What the torch engine does to be fast, against the plain way: the model's own code, one by one."""

from __future__ import annotations

import gc
import json
import random
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from forgellm.engines.answers import Answer, Question
from forgellm.engines.torch import load
from forgellm.engines.torch.cache import CHUNK
from forgellm.engines.torch.decoding import MAX_CONCURRENT
from forgellm.engines.torch.generate import TorchGenerateEngine
from forgellm.engines.torch.in_training import TorchAnswers
from forgellm.engines.torch.own_code import OwnCode
from forgellm.engines.torch.passes.compiler import compiler
from forgellm.engines.torch.straight import StraightModel, straight_model
from forgellm.errors import OutOfMemory
from forgellm.schema.generation import Sampling
from tiny_model import build_tiny_model, random_batch
from training_engines import make_engine, save

NEVER: frozenset[int] = frozenset()
CPU = torch.device("cpu")
Questions = list[tuple[list[int], Sampling]]
CHANGES: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": None},
    "gemma3": {"num_hidden_layers": 6},
}
SERVED = pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3"])


def greedy(max_tokens: int = 20, **fields: Any) -> Sampling:
    return Sampling.greedy(max_tokens).model_copy(update=fields)


def mixed_questions(count: int) -> Questions:
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
def engine(folders: Callable[[str], Path]) -> TorchGenerateEngine:
    return open_engine(folders("llama"))


def open_engine(folder: Path, dtype: str = "float32") -> TorchGenerateEngine:
    return TorchGenerateEngine(folder, None, dtype=dtype)


def loaded(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return load.load_model(folder, dtype, CPU).eval().requires_grad_(False)


def plain_texts(folder: Path, questions: Questions) -> list[list[int]]:
    """Each answered by the model's own code, one after the other, with nothing remembered."""
    place = load.choose_placement("float32")
    plain = TorchAnswers(loaded(folder), place, open_engine(folder).info)
    return [list(plain.generate(*question, NEVER)) for question in questions]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many prompt tokens went through the model, one number for each pass."""
    passes: list[int] = []
    for kind in (StraightModel, OwnCode):
        own = kind.read

        def counting(self: Any, ids: list[int], cache: Any, own: Any = own) -> torch.Tensor:
            passes.append(len(ids))
            logits: torch.Tensor = own(self, ids, cache)
            return logits

        monkeypatch.setattr(kind, "read", counting)
    return passes


# --- the passes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("is_compiled", [True, False], ids=["in C", "in torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "mistral"])
@torch.inference_mode()
def test_straight_passes_come_out_as_the_own_code_says(
    architecture: str,
    dtype: torch.dtype,
    is_compiled: bool,
    folders: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Texts of several lengths, read in parts, then token by token all together; across a growth."""
    if not is_compiled:
        monkeypatch.setattr("forgellm.engines.torch.straight.compiled_step", lambda *_: None)
    elif compiler() is None:
        pytest.skip("no C compiler here")
    model = loaded(folders(architecture), dtype)
    straight = straight_model(model)
    assert straight is not None and (straight._compiled is not None) == is_compiled
    exact = OwnCode(loaded(folders(architecture)))
    own = OwnCode(model)
    rng = random.Random(3)
    texts = [[rng.randrange(97) for _ in range(n)] for n in (1, 17, 130, CHUNK - 2)]
    caches = [straight.new_cache() for _ in texts]
    references = [(each, [each.new_cache() for _ in texts]) for each in (exact, own)]
    for index, text in enumerate(texts):
        for part in filter(None, (text[:100], text[100:])):
            ours = straight.read(part, caches[index])
            expected, theirs = (each.read(part, kept[index]) for each, kept in references)
    for step in range(6):
        ids = [rng.randrange(97) for _ in texts]
        ours = straight.step(ids, caches)
        expected, theirs = (each.step(ids, kept) for each, kept in references)
        if dtype == torch.float32:
            torch.testing.assert_close(ours, expected, atol=1e-3, rtol=1e-4)
        else:  # in 16 bits as near to the exact result as the own code is
            error, own_error = ((x - expected).square().mean() for x in (ours, theirs))
            assert error < 2 * own_error, step
    assert [len(cache) for cache in caches] == [len(text) + 6 for text in texts]


@pytest.mark.parametrize(
    ("architecture", "changes"), [("gemma2", {}), ("mistral", {"sliding_window": 7})]
)
def test_other_models_are_served_by_their_own_code(
    architecture: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    assert straight_model(loaded(build_tiny_model(tmp_path, architecture, **changes))) is None


def test_a_block_that_computes_something_else_is_not_taken(
    folders: Callable[[str], Path],
) -> None:
    model = loaded(folders("llama"))
    own = model.model.layers[0].forward
    model.model.layers[0].forward = lambda x, **fields: own(x, **fields) - 0.01 * x
    assert straight_model(model) is None


# --- many at once ---------------------------------------------------------------------------------


@SERVED
def test_many_at_once_each_get_the_plain_way_s_text(
    architecture: str, folders: Callable[[str], Path]
) -> None:
    questions = mixed_questions(24)
    expected = plain_texts(folders(architecture), questions)
    engine = open_engine(folders(architecture))
    with ThreadPoolExecutor(24) as pool:
        found = list(pool.map(lambda q: list(engine.generate(*q, NEVER)), questions))
    assert found == expected


def test_in_bfloat16_a_crowd_changes_no_bit(tmp_path: Path) -> None:
    """Scores of each token alone and among as many as fit, prompts that share nothing."""
    folder = build_tiny_model(tmp_path, intermediate_size=1536, hidden_size=64)
    prompts = [[n, *(n * k % 97 for k in range(n))] for n in range(1, MAX_CONCURRENT + 1)]

    def ask(engine: TorchGenerateEngine, prompt: list[int]) -> list[Any]:
        sampling = Sampling(max_tokens=30, temperature=0.9, top_p=0.9, seed=prompt[0])
        return list(engine.generate_scored(prompt, sampling, NEVER, 3))

    engine = open_engine(folder, "bfloat16")
    alone = [ask(engine, prompt) for prompt in prompts]
    engine = open_engine(folder, "bfloat16")
    with ThreadPoolExecutor(MAX_CONCURRENT) as pool:
        assert list(pool.map(lambda prompt: ask(engine, prompt), prompts)) == alone


def test_more_than_fit_wait_and_passes_are_shared(
    engine: TorchGenerateEngine,
    folders: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    questions = [([n % 97], greedy(30)) for n in range(MAX_CONCURRENT + 8)]
    expected = plain_texts(folders("llama"), questions)
    passes: list[int] = []
    own = StraightModel.step

    def counting(self: Any, ids: list[int], caches: Any) -> torch.Tensor:
        passes.append(len(ids))
        return own(self, ids, caches)

    monkeypatch.setattr(StraightModel, "step", counting)
    together = threading.Barrier(len(questions))

    def ask(question: tuple[list[int], Sampling]) -> list[int]:
        together.wait()
        return list(engine.generate(*question, NEVER))

    with ThreadPoolExecutor(len(questions)) as pool:
        assert list(pool.map(ask, questions)) == expected
    assert max(passes) == MAX_CONCURRENT
    assert len(passes) < sum(passes) / 4


def test_a_long_prompt_is_read_while_others_answer(
    engine: TorchGenerateEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def watch(opened: Any) -> list[int]:
        opened.decoder._read_tokens = 10
        first = Answer(Question([1], greedy(), NEVER, 30))
        opened.decoder.insert(first)
        opened.step()
        opened.decoder.insert(Answer(Question([*range(80)], greedy(), NEVER, 1)))
        held = []
        while not opened.is_idle:
            opened.step()
            held.append(first._items.qsize())
        return held

    held = engine._worker.call(watch)
    assert held[:8] == [*range(held[0], held[0] + 8)]


@SERVED
def test_closing_in_the_middle_leaves_the_others_unharmed(
    architecture: str, folders: Callable[[str], Path]
) -> None:
    questions = mixed_questions(12)
    expected = plain_texts(folders(architecture), questions)
    engine = open_engine(folders(architecture))

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
    engine._worker.call(lambda opened: opened.step())
    assert engine._worker.call(lambda opened: opened.is_idle)


def test_a_failure_reaches_all_who_wait_and_the_next_answer_works(
    engine: TorchGenerateEngine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = list(engine.generate([1, 2, 3], greedy(), NEVER))
    own = StraightModel.step
    failing = threading.Event()
    error: list[Exception] = []

    def fail(self: Any, ids: list[int], caches: Any) -> torch.Tensor:
        if failing.is_set():
            raise error[0]
        return own(self, ids, caches)

    monkeypatch.setattr(StraightModel, "step", fail)
    for cause, seen in ((MemoryError(), OutOfMemory), (ValueError("shapes differ"), RuntimeError)):
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
    others = set(threading.enumerate())
    engine = open_engine(folders("llama"))
    tokens: Any = engine.generate([1, 2, 3], greedy(400), NEVER)
    next(tokens)
    [thread] = [item for item in set(threading.enumerate()) - others if item.name == "torch"]
    model = engine._worker.call(lambda opened: weakref.ref(opened.model))
    del engine, tokens
    gc.collect()
    assert not thread.is_alive() and model() is None


@pytest.mark.parametrize("fine_tune_type", ["lora", "dora"])
def test_an_adapter_is_served_as_trained(
    fine_tune_type: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    trainer = make_engine("torch", folders("llama"), fine_tune_type=fine_tune_type)
    for _ in range(3):
        trainer.step(random_batch([[9, 14]]), 3e-2, update=True)
    checkpoint = save(trainer, tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps(trainer.adapter_config()))
    engine = TorchGenerateEngine(folders("llama"), checkpoint, dtype="float32")
    prompts = [[1, 2, 3], [7]]
    with trainer.evaluating() as plain:
        expected = [list(plain.generate(prompt, greedy(), NEVER)) for prompt in prompts]
    assert [list(engine.generate(prompt, greedy(), NEVER)) for prompt in prompts] == expected
    assert expected != plain_texts(folders("llama"), [(prompt, greedy()) for prompt in prompts])


# --- prefixes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_the_next_turn_computes_only_what_is_new(
    architecture: str, folders: Callable[[str], Path], read: list[int]
) -> None:
    engine = open_engine(folders(architecture))
    prompt = [*range(60)]
    for turn in range(3):
        [expected] = plain_texts(folders(architecture), [(prompt, greedy(12))])
        read.clear()
        text = list(engine.generate(prompt, greedy(12), NEVER))
        assert text == expected
        assert turn == 0 or sum(read[:1]) < 8
        prompt = [*prompt, *text, 90, 91 + turn]


def test_a_shared_beginning_is_computed_once_also_while_it_is_in_use(
    engine: TorchGenerateEngine, folders: Callable[[str], Path], read: list[int]
) -> None:
    shared = [n * 7 % 97 for n in range(200)]
    questions: Questions = [([*shared, n], greedy(10)) for n in range(MAX_CONCURRENT)]
    expected = plain_texts(folders("llama"), questions)
    read.clear()
    with ThreadPoolExecutor(MAX_CONCURRENT) as pool:
        found = list(pool.map(lambda q: list(engine.generate(*q, NEVER)), questions))
    assert found == expected
    assert sum(read) == 200 + MAX_CONCURRENT


@SERVED
def test_prompts_that_part_in_the_middle_get_their_own_text(
    architecture: str, folders: Callable[[str], Path]
) -> None:
    """Sliding windows too: there a cache cannot be cut back, and must then not be used."""
    rng = random.Random(2)
    prompts = [[*range(25)]]
    for _ in range(14):
        start = rng.choice(prompts)
        prompts.append(start[: rng.randrange(1, len(start) + 1)] + [rng.randrange(97)] * 3)
    questions = [(prompt, greedy(9)) for prompt in prompts]
    expected = plain_texts(folders(architecture), questions)
    engine = open_engine(folders(architecture))
    assert [list(engine.generate(*question, NEVER)) for question in questions] == expected


def test_what_was_read_of_a_cancelled_prompt_is_kept(
    engine: TorchGenerateEngine, folders: Callable[[str], Path], read: list[int]
) -> None:
    prompt = [n % 97 for n in range(400)]
    [expected] = plain_texts(folders("llama"), [(prompt, greedy())])
    answer = Answer(Question(prompt, greedy(), NEVER, 20))
    read.clear()

    def begin_and_close(opened: Any) -> None:
        opened.decoder.insert(answer)
        opened.step()
        answer.close()
        opened.step()
        assert opened.is_idle

    engine._worker.call(begin_and_close)
    assert list(engine.generate(prompt, greedy(), NEVER)) == expected
    assert 0 < read[0] < 400 and sum(read) == 400


def test_what_is_remembered_is_bounded_and_counted(
    engine: TorchGenerateEngine, folders: Callable[[str], Path]
) -> None:
    weights = engine.memory_bytes()
    chunk = CHUNK * 2 * 2 * 2 * 8 * 4  # layers, keys and values, heads, their size, bytes
    engine._worker.call(lambda opened: setattr(opened.prefixes, "_max_bytes", 3 * chunk))
    questions = [([n, *range(60)], greedy(10)) for n in range(10)]
    expected = plain_texts(folders("llama"), questions)
    assert [list(engine.generate(*question, NEVER)) for question in questions] == expected
    engine._worker.call(lambda opened: opened.step())
    assert engine.memory_bytes() - weights == 3 * chunk
