"""The curve as columns, beside its lines read one by one and figures worked out slowly."""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import pytest

from forgellm.runs import curve as curve_module
from forgellm.runs.curve import downsample, drawn, effective, figures_before, read_curve
from forgellm.runs.metrics import METRICS_NAME, MetricsWriter, read_lines
from forgellm.runs.summary import generalisation_gaps, performance_of
from forgellm.schema.run import MetricsLine
from forgellm.web.run_status import RunFigures


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks so small that every log has several, and columns that have to grow."""
    monkeypatch.setattr(curve_module, "_BLOCK_BYTES", 1000)
    monkeypatch.setattr(curve_module, "_FIRST_CAPACITY", 4)


def write(folder: Path, count: int, *, seed: int = 0, resumes: bool = True) -> list[MetricsLine]:
    """A log of reports and validations, some figures missing, in which iterations are done again."""
    rng = random.Random(seed)
    iteration = tokens = 0
    with MetricsWriter(folder) as writer:
        for _ in range(count):
            if resumes and rng.random() < 0.02:
                iteration = rng.randrange(iteration + 1)
            if rng.random() < 0.15:
                writer.append(iteration=iteration, validation_loss=2 + rng.random())
                continue
            iteration, tokens = iteration + 1, tokens + 100
            writer.append(
                iteration=iteration,
                training_loss=rng.choice([rng.random(), rng.random(), 0.5, float("nan")]),
                learning_rate=1e-4,
                tokens_per_second=rng.choice([None, 0.0, 900 + rng.random()]),
                memory_usage_gb=rng.choice([None, 3.0, rng.random()]),
                trained_tokens=tokens - rng.choice([0, 0, 500]),
                validation_loss=rng.choice([None, None, None, 1.5]),
            )
    return read_lines(folder)[0]


def edit(folder: Path, number: int, **changes: Any) -> None:
    texts = (folder / METRICS_NAME).read_bytes().split(b"\n")
    texts[number] = json.dumps(json.loads(texts[number]) | changes).encode()
    (folder / METRICS_NAME).write_bytes(b"\n".join(texts))


def counting(lines: Sequence[MetricsLine]) -> list[MetricsLine]:
    """The lines that count, found by taking out what each line replaces."""
    reports: list[MetricsLine] = []
    validations: list[MetricsLine] = []
    for line in lines:
        is_report = line.training_loss is not None or line.learning_rate is not None
        same, other = (reports, validations) if is_report else (validations, reports)
        while same and same[-1].iteration >= line.iteration:
            same.pop()
        while other and other[-1].iteration > line.iteration:
            other.pop()
        same.append(line)
    return sorted(reports + validations, key=lambda line: line.seq)


def thinned(lines: Sequence[MetricsLine], max_points: int) -> list[MetricsLine]:
    if len(lines) <= max_points:
        return list(lines)
    validated = [i for i, line in enumerate(lines) if line.validation_loss is not None]
    count = max_points // 2 - 1
    if len(validated) > count:
        validated = [validated[(n + 1) * len(validated) // count - 1] for n in range(count)]
    chosen = {0, len(lines) - 1, *validated}
    num_buckets = max(0, max_points - len(chosen)) // 2
    for number in range(num_buckets):
        bucket = range(number * len(lines) // num_buckets, (number + 1) * len(lines) // num_buckets)
        losses = [(loss, i) for i in bucket if (loss := lines[i].training_loss) is not None]
        chosen |= {min(losses)[1], max(losses)[1]} if losses else set(bucket[:1])
    return [lines[i] for i in sorted(chosen)]


def slow_gaps(lines: Sequence[MetricsLine]) -> list[float]:
    gaps: list[float] = []
    training: list[float] = []
    for line in lines:
        if line.training_loss is not None:
            training.append(line.training_loss)
        is_gap = line.validation_loss is not None and training
        gaps.append((line.validation_loss or 0) - fmean(training) if is_gap else math.nan)
        training = [] if is_gap else training
    return gaps


def slow_performance(lines: Sequence[MetricsLine]) -> dict[str, float | None]:
    losses = [line.training_loss for line in lines if line.training_loss is not None]
    residuals = []
    for i, value in enumerate(losses):
        if half := min(5, i, len(losses) - 1 - i):
            residuals.append(value - fmean(losses[i - half : i + half + 1]))
    noise = pstdev(residuals, 0.0) / fmean(losses) if len(losses) > 2 else None
    tokens, seconds = 0, 0.0
    for line in lines:
        if line.tokens_per_second and line.trained_tokens > tokens:
            seconds += (line.trained_tokens - tokens) / line.tokens_per_second
            tokens = line.trained_tokens
    gaps = [gap for gap in slow_gaps(lines) if not math.isnan(gap)][-3:]
    validated = [(x.validation_loss, x.iteration) for x in lines if x.validation_loss is not None]
    best = min(validated, default=(None, None))
    return {
        "avg_tokens_per_second": tokens / seconds if seconds else None,
        "peak_memory_gb": max(
            (x.memory_usage_gb for x in lines if x.memory_usage_gb), default=None
        ),
        "training_stability": None if noise is None else 1 / (1 + noise),
        "final_loss": losses[-1] if losses else None,
        "best_validation_loss": best[0],
        "best_iteration": best[1],
        "generalisation_gap": fmean(gaps) if gaps else None,
        "trained_tokens": lines[-1].trained_tokens if lines else None,
        "training_minutes": 2.0 if lines else None,
    }


def assert_alike(folder: Path) -> None:
    """The curve draws and sums up what its lines do."""
    assert read_curve(folder).lines() == read_lines(folder)[0]
    lines, curve = counting(read_lines(folder)[0]), effective(read_curve(folder))
    assert curve.lines() == lines
    for max_points in (2, 9, 40, 300):
        kept = curve.select(downsample(curve.table, max_points)).lines()
        assert kept == thinned(lines, max_points)
    gaps = generalisation_gaps(curve.table).tolist()
    assert gaps == pytest.approx(slow_gaps(lines), rel=1e-9, nan_ok=True)
    found = performance_of(curve.table, training_seconds=120).model_dump(exclude_none=True)
    expected = {name: x for name, x in slow_performance(lines).items() if x is not None}
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("seed", range(12))
def test_columns_say_what_the_lines_say(tmp_path: Path, seed: int) -> None:
    write(tmp_path, seed * seed * 3, seed=seed, resumes=seed % 3 > 0)
    assert_alike(tmp_path)


def test_a_growing_log_is_read_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = 0
    original = curve_module._parsed

    def counted(texts: list[bytes]) -> Any:
        nonlocal parsed
        parsed += len(texts)
        return original(texts)

    monkeypatch.setattr(curve_module, "_parsed", counted)
    first = read_curve(tmp_path).table
    for seed in range(5):
        lines = write(tmp_path, 40, seed=seed)
        before = read_curve(tmp_path).table
        assert_alike(tmp_path)
        assert parsed == len(lines) == len(before)
    assert len(first) == 0 and before["iteration"].tolist() == [x.iteration for x in lines]


def test_what_is_no_line_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path, 30)
    foreign = [
        b"not a line",
        b"",
        b"{}",
        b"[1]",
        b'{"seq": 98, "iteration": 1.5, "timestamp": "t"}',
        b'{"seq": 98, "iteration": 1e400, "timestamp": "t"}',
        b'{"seq": 98, "iteration": 7, "timestamp": "t", "training_loss": "low"}',
        b'{"seq": 98, "iteration": 7}',
        b"\xff\xfe",
    ]
    with open(tmp_path / METRICS_NAME, "ab") as log:
        for text in foreign:
            log.write(text + b"\n")
            log.write(b'{"seq": 99, "iteration": 500, "timestamp": "t"}\n')
        log.write(b'{"seq": 100, "iteration"')
    assert len(read_lines(tmp_path)[0]) == 30 + len(foreign)
    assert_alike(tmp_path)
    with open(tmp_path / METRICS_NAME, "ab") as log:
        log.write(b': 501, "timestamp": "t"}\n')
    assert read_curve(tmp_path).lines()[-1].iteration == 501


@pytest.mark.parametrize("change", ["edited", "shorter", "another file", "other beginning", "gone"])
def test_a_replaced_log_is_read_anew(tmp_path: Path, change: str) -> None:
    write(tmp_path, 60)
    log = tmp_path / METRICS_NAME
    read_curve(tmp_path)
    old = log.read_bytes()
    if change == "edited":
        edit(tmp_path, 3, iteration=1)
        os.utime(log, (1, 1))
    elif change == "shorter":
        log.write_bytes(old[: old.index(b"\n") + 1])
    elif change == "another file":
        log.unlink()
        write(tmp_path, 90, seed=5)
    elif change == "other beginning":
        log.write_bytes(old[: old.index(b"\n") + 1] * 100)
    else:
        log.unlink()
    assert_alike(tmp_path)


def test_a_log_replaced_between_two_looks_is_drawn_as_it_is_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 60)
    stale = effective(read_curve(tmp_path))
    edit(tmp_path, 0, iteration=100_000)
    with pytest.raises(curve_module.LogReplaced):
        stale.lines()
    table, places, lines = drawn(tmp_path)
    assert lines == counting(read_lines(tmp_path)[0])
    assert len(table) == len(places) == len(lines)


def test_only_so_many_lines_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curve_module, "_MOST_KEPT_LINES", 50)
    monkeypatch.setattr(curve_module, "_logs", curve_module._Logs())
    for name in "abc":
        (tmp_path / name).mkdir()
        write(tmp_path / name, 20)
        read_curve(tmp_path / name)
    assert [folder.name for folder in curve_module._logs._known] == ["b", "c"]
    assert_alike(tmp_path / "a")


def test_run_without_a_log_has_an_empty_curve(tmp_path: Path) -> None:
    table, places, lines = drawn(tmp_path)
    assert lines == [] and len(table) == len(places) == 0
    assert set(performance_of(table, 60.0).model_dump().values()) == {None}


@pytest.mark.parametrize("share", [0.0, 0.3, 0.77, 1.0])
def test_figures_before_a_place_are_those_of_its_lines(tmp_path: Path, share: float) -> None:
    write(tmp_path, 200)
    offset = int(share * (tmp_path / METRICS_NAME).stat().st_size)
    found, end = figures_before(tmp_path, offset)
    before, after = read_lines(tmp_path, 0, max(offset, 1))
    expected = RunFigures()
    for line in before:
        expected.add(line)
    assert end == after
    assert dict.fromkeys(expected.values) | found == expected.values


def test_long_log_is_followed_from_near_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = write(tmp_path, 300)
    expected = RunFigures()
    for line in lines:
        expected.add(line)
    monkeypatch.setattr("forgellm.web.run_status._LONG_BYTES", 1)
    monkeypatch.setattr("forgellm.web.run_status._TAIL_BYTES", 2000)
    figures, offset = RunFigures.near_end(tmp_path)
    rest, _ = read_lines(tmp_path, offset)
    assert 1 < len(rest) < 20 and rest[-1] == lines[-1]
    for line in rest:
        figures.add(line)
    assert figures == expected
