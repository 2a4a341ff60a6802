"""Likelihoods and probes, against the plain way of computing them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from forgellm.data.tokenizer import Tokenizer
from forgellm.demo.lessons import HANDBOOK
from forgellm.demo.measure import GENERAL_HELD_OUT, PROBES
from forgellm.engines.base import GenerateEngine
from forgellm.engines.registry import load_generate_engine
from forgellm.errors import DataError
from forgellm.evaluation.probe_files import Probe, read_probes
from forgellm.evaluation.probes import score_probes
from forgellm.evaluation.scoring import Passage, likelihoods, mean_loss, windows
from tiny_model import build_tiny_model
from tiny_tokenizer import build_tiny_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    build_tiny_tokenizer(folder)
    return build_tiny_model(folder, vocab_size=400)


@pytest.fixture(scope="module", params=["torch", "mlx"])
def engine(request: pytest.FixtureRequest, folder: Path) -> GenerateEngine:
    return load_generate_engine(folder, None, engine=request.param, dtype="float32")


def test_packed_likelihoods_equal_those_of_each_passage_alone(
    folder: Path, engine: GenerateEngine
) -> None:
    rng = np.random.default_rng(0)
    passages = [
        Passage(rng.integers(0, 400, n).tolist(), first)
        for n, first in [(5, 1), (400, 1), (200, 190), (2, 1), (511, 3), (512, 1), (30, 29)]
    ]
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    for passage, found in zip(passages, likelihoods(engine, passages), strict=True):
        ids = torch.tensor([passage.ids])
        with torch.no_grad():
            scores = plain(input_ids=ids).logits[0, :-1].log_softmax(-1)
        wanted = scores.gather(-1, ids[0, 1:, None])[passage.first_counted - 1 :, 0]
        assert found.num_tokens == len(wanted)
        assert found.log_prob == pytest.approx(float(wanted.sum()), rel=1e-4)


def test_a_long_document_is_scored_in_windows(folder: Path, engine: GenerateEngine) -> None:
    tokenizer = Tokenizer.load(folder)
    passages = windows(tokenizer, "tide and lamp " * 300, length=128)
    assert sum(len(p.ids) for p in passages) == len(tokenizer.encode("tide and lamp " * 300)) + 1
    loss = mean_loss(likelihoods(engine, passages))
    assert 0 < loss < 2 * math.log(400)
    assert math.isnan(mean_loss([]))


def test_the_likeliest_ending_counts_as_right(folder: Path, engine: GenerateEngine) -> None:
    tokenizer = Tokenizer.load(folder)
    endings = ["green boats", "stone lamps", "north tides", "eleven keys"]
    scored = score_probes(
        engine,
        tokenizer,
        [Probe("?", "The keeper counts", e, tuple(x for x in endings if x != e)) for e in endings],
    )
    assert sum(scored.right) == 1  # exactly one of four endings is the likeliest
    assert scored.accuracy == 0.25
    assert 0 < scored.standard_error < 0.5
    assert scored.confidence == pytest.approx(0.25, abs=0.15)


def test_shipped_probes_and_texts_are_sound() -> None:
    probes = read_probes(PROBES)
    texts = [file.read_text("utf-8") for file in sorted(HANDBOOK.glob("*.md"))]
    assert len(texts) >= 60 and sum(len(t.encode()) for t in texts) >= 60_000
    assert len(probes) >= 40
    for probe in probes:
        assert len(set(probe.options)) == 4
        stated = sum(probe.answer.lower() in text.lower() for text in texts)
        assert stated >= 3, probe.answer
        assert not any(f"{probe.stem} {probe.answer}" in text for text in texts)
    replay = sorted((GENERAL_HELD_OUT.parent / "replay").glob("*.md"))
    assert sum(file.stat().st_size for file in replay) >= 60_000
    held_out = {line for f in GENERAL_HELD_OUT.glob("*.md") for line in f.read_text().split(". ")}
    replayed = {line for f in replay for line in f.read_text().split(". ")}
    assert not {line for line in held_out & replayed if len(line) > 30}


@pytest.mark.parametrize("content", ["", "[]", '{"probes": [{"question": "?"}]}', "{"])
def test_a_file_that_holds_no_probes_is_a_clear_error(tmp_path: Path, content: str) -> None:
    file = tmp_path / "probes.json"
    file.write_text(content)
    with pytest.raises(DataError, match="probe file"):
        read_probes(file)
    file.write_text(json.dumps({"probes": []}))
    assert read_probes(file) == []
