"""Answering, ours against transformers' `generate` and llama.cpp, with one model.

    python benchmarks/generation.py MODEL_FOLDER [--work one sixteen turns] [--rounds 3]

MODEL_FOLDER is a model in Hugging Face layout. What its workspace has of it besides takes part: GGUF
files that `forgellm models export --format gguf` wrote, and copies by `forgellm models quantize`.
Each contender runs in a process of its own, in turn, with all cores, greedily, on random tokens.

one: a prompt of 512 tokens ("prefill", its tokens by the seconds to the first answered one), then 128
tokens ("decode"). sixteen: 16 chats of 64 + 64 tokens asked for at once, by the time until the last is
there. turns: seconds to the first token of a new prompt of 10 tokens, and of a turn of 10 new tokens
in a chat of 1,000; the median of eight each.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rounds import (
    Column,
    Figures,
    add_rounds,
    peak_bytes,
    peer_python,
    print_heading,
    print_table,
    run_contender,
    take_turns,
)

OURS, TRANSFORMERS = "ForgeLLM", "transformers"
PROMPT, ANSWER = 512, 128
NUM_CHATS, CHAT_TOKENS = 16, 64
TURN, HISTORY, NUM_TURNS = 10, 1000, 8
COLUMNS = {
    "one": [
        Column("decode", "decode tok/s", spread=True, ratio="more"),
        Column("prefill", "prefill tok/s", "{:.0f}", spread=True, ratio="more"),
        Column("peak_gb", "peak memory", "{:.2f} GB", ratio="less"),
    ],
    "sixteen": [
        Column("one_rate", "one chat, tok/s", spread=True),
        Column("rate", "16 chats, tok/s", spread=True, ratio="more"),
        Column("gain", "16 to one", "{:.1f}x"),
    ],
    "turns": [
        Column("first_ms", "10 tokens", "{:.0f} ms", spread=True),
        Column("turn_ms", "1,000 + 10 tokens", "{:.0f} ms", spread=True),
        Column("turn_ratio", "second to first", "{:.2f}x"),
    ],
}


def random_tokens(count: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(100, 40_000) for _ in range(count)]


@dataclass(frozen=True)
class Timing:
    """Of one answer. `first_seconds` go by until its first token, `rest_seconds` from there."""

    first_seconds: float
    rest_seconds: float
    num_tokens: int


def timed(tokens: Iterable[object]) -> Timing:
    started = first = time.perf_counter()
    count = 0
    for _ in tokens:
        first = first if count else time.perf_counter()
        count += 1
    return Timing(first - started, time.perf_counter() - first, count)


class Ours:
    def __init__(self, model: Path, num_chats: int) -> None:
        from forgellm.engines.torch.generate import TorchGenerateEngine

        self._engine = TorchGenerateEngine(model, None)

    def answer(self, prompt: list[int], max_tokens: int) -> Timing:
        from forgellm.schema.generation import Sampling

        return timed(self._engine.generate(prompt, Sampling.greedy(max_tokens), frozenset()))


class Transformers:
    def __init__(self, model: Path, num_chats: int) -> None:
        import torch
        import transformers

        transformers.utils.logging.set_verbosity_error()
        self._model = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
        self._model.eval().generation_config.eos_token_id = None

    def answer(self, prompt: list[int], max_tokens: int) -> Timing:
        import torch
        from transformers.generation.streamers import TextStreamer

        times: list[float] = []

        class Times(TextStreamer):  # type: ignore[misc]
            def put(self, value: Any) -> None:
                times.append(time.perf_counter())

            def end(self) -> None:
                pass

        ids = torch.tensor([prompt])
        started = time.perf_counter()
        settings = {"max_new_tokens": max_tokens, "do_sample": False, "streamer": Times(None)}
        self._model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        _, *times = times  # the first is the prompt's
        return Timing(times[0] - started, times[-1] - times[0], len(times))


class LlamaCpp:
    """By the times that it gives itself: its binding says nothing before the last token."""

    def __init__(self, model: Path, num_chats: int) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(model)
        params.n_ctx, params.n_parallel = 2048 * num_chats, num_chats
        params.n_gpu_layers = 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = os.cpu_count()
        self._server = xllamacpp.Server(params)

    def answer(self, prompt: list[int], max_tokens: int) -> Timing:
        request = {"prompt": prompt, "n_predict": max_tokens, "temperature": 0, "ignore_eos": True}
        found = self._server.handle_completions(request)["timings"]
        return Timing(found["prompt_ms"] / 1e3, found["predicted_ms"] / 1e3, found["predicted_n"])


def one(engine: Any) -> Figures:
    for seed in (1, 2):  # the first warms up
        timing = engine.answer(random_tokens(PROMPT, seed), ANSWER)
    return {
        "prefill": PROMPT / timing.first_seconds,
        "decode": (timing.num_tokens - 1) / timing.rest_seconds,
        "peak_gb": peak_bytes() / 1e9,
    }


def sixteen(engine: Any) -> Figures:
    def rate(num_chats: int, seed: int) -> float:
        prompts = [random_tokens(CHAT_TOKENS, seed + n) for n in range(num_chats)]
        started = time.perf_counter()
        with ThreadPoolExecutor(num_chats) as pool:
            answers = list(pool.map(lambda prompt: engine.answer(prompt, CHAT_TOKENS), prompts))
        return sum(a.num_tokens for a in answers) / (time.perf_counter() - started)

    rate(1, 0)
    alone, together = rate(1, 100), rate(NUM_CHATS, 200)
    return {"one_rate": alone, "rate": together, "gain": together / alone}


def turns(engine: Any) -> Figures:
    firsts, nexts = [], []
    history = random_tokens(HISTORY, 0)
    engine.answer(history, 2)
    for seed in range(1, NUM_TURNS + 1):
        firsts.append(engine.answer(random_tokens(TURN, seed), 2).first_seconds)
        history += random_tokens(TURN, 100 + seed)
        nexts.append(engine.answer(history, 2).first_seconds)
    first, second = statistics.median(firsts), statistics.median(nexts)
    return {"first_ms": 1e3 * first, "turn_ms": 1e3 * second, "turn_ratio": second / first}


WORKS = {"one": one, "sixteen": sixteen, "turns": turns}


@dataclass(frozen=True)
class Contender:
    """What answers, the file or folder that it loads, and the bits of its weights."""

    kind: type
    path: Path
    bits: int


def contenders(model: Path) -> dict[str, Contender]:
    models = model.parent.parent
    found = {OURS: Contender(Ours, model, 16), TRANSFORMERS: Contender(Transformers, model, 16)}
    for folder in sorted(models.glob(f"published/{model.name}-*bit-g*")):
        name = folder.name.removeprefix(f"{model.name}-")
        found[f"{OURS}, {name}"] = Contender(Ours, folder, int(name.split("bit")[0]))
    for file in sorted(models.glob(f"exported/{model.name}-gguf-*/*.gguf")):
        name = file.stem.removeprefix(f"{model.name}-")
        bits = 16 if "16" in name else int(name[1])
        found[f"llama.cpp, {name}"] = Contender(LlamaCpp, file, bits)
    return found


def measure(model: Path, work: str, rounds: int) -> None:
    known = contenders(model)

    def run(name: str) -> Figures:
        python = sys.executable if known[name].kind is Ours else peer_python()
        return run_contender([str(model), "--contender", work, name], python)

    found = take_turns([n for n in known if work == "one" or n != TRANSFORMERS], rounds, run)
    for bits in (16, 8, 4):
        of_these = {name: each for name, each in found.items() if known[name].bits == bits}
        if of_these:
            print_table(f"{work}, {bits} bits", COLUMNS[work], of_these)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--work", nargs="+", choices=WORKS, default=list(WORKS))
    add_rounds(parser)
    parser.add_argument("--contender", nargs=2, metavar=("WORK", "NAME"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contender:
        work, name = args.contender
        own = contenders(args.model)[name]
        engine = own.kind(own.path, NUM_CHATS if work == "sixteen" else 1)
        print("\n" + json.dumps(WORKS[work](engine)), flush=True)
        return
    print_heading(f"Answering, {args.model.name}", ["torch", "transformers", "xllamacpp"])
    for work in args.work:
        measure(args.model, work, args.rounds)


if __name__ == "__main__":
    main()
