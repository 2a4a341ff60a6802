"""`evaluations.jsonl` and `samples.jsonl`: what a run has measured of its model, and made it say.

Appended by the trainer alone. Readers pass over what is not a line.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from forgellm.runs.line_file import LineFile
from forgellm.schema.evaluation import EvaluationLine, SampleLine

EVALUATIONS_NAME = "evaluations.jsonl"
SAMPLES_NAME = "samples.jsonl"
Line = TypeVar("Line", EvaluationLine, SampleLine)


def append_evaluation(folder: Path, line: EvaluationLine, samples: Iterable[SampleLine]) -> None:
    """The evaluation last: where it stands, the samples of its iteration are there too.

    Raises DiskFull.
    """
    _append(folder / SAMPLES_NAME, samples)
    _append(folder / EVALUATIONS_NAME, [line])


def read_evaluations(folder: Path) -> list[EvaluationLine]:
    """Those that count, by iteration: after a resume, later ones replace those done again."""
    kept: list[EvaluationLine] = []
    for line in _read(folder / EVALUATIONS_NAME, EvaluationLine):
        while kept and kept[-1].iteration >= line.iteration:
            kept.pop()
        kept.append(line)
    return kept


def read_samples(folder: Path) -> list[SampleLine]:
    """Those that count, by iteration, each iteration's in the order of the prompts."""
    by_iteration: dict[int, list[SampleLine]] = {}
    before = -1
    for line in _read(folder / SAMPLES_NAME, SampleLine):
        if line.iteration != before or line.prompt == by_iteration[before][0].prompt:
            for stale in [number for number in by_iteration if number >= line.iteration]:
                del by_iteration[stale]
        by_iteration.setdefault(line.iteration, []).append(line)
        before = line.iteration
    return [line for number in sorted(by_iteration) for line in by_iteration[number]]


def probe_accuracy(line: EvaluationLine | None) -> float | None:
    """Share of all probes of all files that were answered right."""
    if line is None or not line.probes:
        return None
    asked = sum(figures.num_probes for figures in line.probes)
    return sum(figures.right.count("1") for figures in line.probes) / asked


def general_loss(line: EvaluationLine | None) -> float | None:
    """Mean over the tokens of all general text, in nats; None where one of them has no loss."""
    if line is None or not line.general:
        return None
    parts = [(f.loss, f.num_tokens) for f in line.general if f.loss is not None]
    if len(parts) < len(line.general):
        return None
    return sum(loss * tokens for loss, tokens in parts) / sum(tokens for _, tokens in parts)


def _append(path: Path, lines: Iterable[BaseModel]) -> None:
    texts = [line.model_dump_json().encode() for line in lines]
    if texts:
        with LineFile(path) as file:
            for text in texts:
                file.append(text)


def _read(path: Path, kind: type[Line]) -> list[Line]:
    try:
        texts = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    found = []
    for text in texts:
        try:
            found.append(kind.model_validate_json(text))
        except ValidationError:
            continue
    return found
