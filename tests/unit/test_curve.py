"""The curve read as columns, beside the lines read one by one."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forgellm.runs import curve as columns
from forgellm.runs import metrics, metrics_index, records, summary
from forgellm.runs.blocks import BLOCK
from forgellm.runs.curve import effective, figures_before, read_curve
from forgellm.runs.curve_figures import summary_of
from forgellm.runs.curve_points import downsample, drawn
from forgellm.runs.metrics import MetricsWriter, read_lines
from forgellm.runs.metrics_index import BLOCKS_NAME, INDEX_NAME, METRICS_NAME, index_lines
from forgellm.runs.records import IndexIsWrong, Records
from forgellm.schema.run import MetricsLine
from forgellm.web.run_status import RunFigures


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces so small that every log has several, and blocks as soon as there is one."""
    monkeypatch.setattr(metrics_index, "_SUMMED_UP_LINES", 128)
    monkeypatch.setattr(columns, "_PIECE_LINES", 7)
    monkeypatch.setattr(records, "_PIECE_LINES", 7)


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
    """Change one line where it stands; its length stays."""
    texts = (folder / METRICS_NAME).read_bytes().split(b"\n")
    size = len(texts[number])
    texts[number] = json.dumps(json.loads(texts[number]) | changes, separators=(",", ":")).encode()
    texts[number] = texts[number].ljust(size)
    assert len(texts[number]) == size
    (folder / METRICS_NAME).write_bytes(b"\n".join(texts))


def assert_alike(folder: Path) -> None:
    """The curve read as columns draws and sums up what its lines do."""
    lines = metrics.effective(read_lines(folder)[0])
    curve = effective(read_curve(folder))
    assert curve.lines() == lines
    for max_points in (2, 9, 40, 300):
        kept = curve.select(downsample(curve, max_points)).lines()
        assert kept == metrics.downsample(lines, max_points)
    expected = {name: value for name, value in summary_of_lines(lines).items() if value is not None}
    found = summary_of(curve)
    assert {name for name, value in found.items() if value is not None} == expected.keys()
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-12)


def summary_of_lines(lines: list[MetricsLine]) -> dict[str, Any]:
    validated = [(x.validation_loss, x.iteration) for x in lines if x.validation_loss is not None]
    losses = [line.training_loss for line in lines]
    best = min(validated, default=(None, None))
    return {
        "avg_tokens_per_second": summary.average_tokens_per_second(lines),
        "peak_memory_gb": summary.peak_memory_gb(lines),
        "training_stability": summary.training_stability(losses),
        "final_loss": next((x for x in reversed(losses) if x is not None), None),
        "best_validation_loss": best[0],
        "best_iteration": best[1],
        "generalisation_gap": summary.generalisation_gap(lines),
        "trained_tokens": lines[-1].trained_tokens if lines else None,
    }


@pytest.mark.parametrize("seed", range(12))
def test_columns_say_what_the_lines_say(tmp_path: Path, seed: int) -> None:
    write(tmp_path, seed * seed, seed=seed)
    assert_alike(tmp_path)


@pytest.mark.parametrize("resumes", [False, True])
@pytest.mark.parametrize("count", [127, 128, 129, 700, 1408])
def test_blocks_say_what_the_lines_say(tmp_path: Path, count: int, resumes: bool) -> None:
    write(tmp_path, count, resumes=resumes)
    assert (tmp_path / BLOCKS_NAME).exists() == (count >= 128)
    assert_alike(tmp_path)


def test_blocks_before_what_was_done_again_still_count(tmp_path: Path) -> None:
    lines = write(tmp_path, 700, resumes=False)
    with MetricsWriter(tmp_path) as writer:
        for number in range(40):
            writer.append(iteration=lines[-1].iteration - 60 + number, training_loss=0.1 * number)
    assert_alike(tmp_path)


@pytest.mark.parametrize("every", [1, 7, 300])
def test_blocks_of_an_even_log_say_what_its_lines_say(tmp_path: Path, every: int) -> None:
    """Nothing is missing in it, and losses repeat. After the middle its tokens fall back."""
    with MetricsWriter(tmp_path) as writer:
        for number in range(1000):
            writer.append(
                iteration=number,
                training_loss=3 - number // 20 / 100 + number * 7919 % 10 / 10,
                learning_rate=1e-4,
                tokens_per_second=900.0 + number % 7,
                memory_usage_gb=3.0,
                trained_tokens=100 * number - (20_000 if number > 600 else 0),
                validation_loss=1 + number % 50 / 100 if number % every == 0 else None,
            )
    assert_alike(tmp_path)


def test_blocks_without_a_loss_or_a_speed(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as writer:
        for number in range(700):
            is_known = 300 < number < 320
            writer.append(iteration=number, training_loss=number if is_known else None)
    assert_alike(tmp_path)


@pytest.mark.parametrize(
    "damage", ["deleted", "torn", "header", "short", "foreign", "longer", "directory"]
)
def test_blocks_that_are_not_the_indexs_are_not_believed(tmp_path: Path, damage: str) -> None:
    write(tmp_path, 1000, resumes=False)
    blocks = tmp_path / BLOCKS_NAME
    data = blocks.read_bytes()
    size = BLOCK.itemsize
    assert len(data) == 8 * size
    blocks.unlink()
    if damage == "directory":
        blocks.mkdir()
    elif damage != "deleted":
        damaged = {
            "torn": data[:-10],
            "header": b"another" + data[7:],
            "short": data[: 3 * size],
            "foreign": data[:-size] + data[size : 2 * size],
            "longer": data + data[-size:],
        }
        blocks.write_bytes(damaged[damage])
    assert_alike(tmp_path)
    write(tmp_path, 200, seed=1, resumes=False)
    assert_alike(tmp_path)
    if damage != "directory":
        assert blocks.read_bytes()[: len(data)] == data
        assert blocks.stat().st_size == (1 + 1200 // 128) * size


def test_index_made_anew_has_new_blocks(tmp_path: Path) -> None:
    write(tmp_path, 300, resumes=False)
    edit(tmp_path, 3, iteration=9)
    os.utime(tmp_path / INDEX_NAME, (1, 1))
    before = (tmp_path / BLOCKS_NAME).read_bytes()
    MetricsWriter(tmp_path).close()
    assert (tmp_path / BLOCKS_NAME).read_bytes() != before
    assert_alike(tmp_path)


def test_index_cut_short_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    lines = metrics.effective(write(tmp_path, 300))
    curve = read_curve(tmp_path)
    os.truncate(tmp_path / INDEX_NAME, 64 * 50)
    with pytest.raises(IndexIsWrong):
        curve.lines()
    assert drawn(tmp_path)[0] == lines


def test_drawn_curve_is_that_of_a_full_parse(tmp_path: Path) -> None:
    lines = metrics.effective(write(tmp_path, 5000))
    shown, curve = drawn(tmp_path)
    assert len(shown) <= 2000
    assert shown == metrics.downsample(lines)
    (tmp_path / INDEX_NAME).unlink()
    again, parsed = drawn(tmp_path)
    assert again == shown
    assert summary_of(parsed) == summary_of(curve)


def test_index_holds_what_parsing_the_log_gives(tmp_path: Path) -> None:
    write(tmp_path, 50)
    write(tmp_path, 50, seed=1)
    assert (tmp_path / INDEX_NAME).read_bytes()[64:] == b"".join(index_lines(tmp_path))
    assert len(Records(tmp_path)) == 100


@pytest.mark.parametrize("damage", ["deleted", "cut", "header", "longer", "older", "directory"])
def test_index_that_does_not_belong_to_the_log_is_made_anew(tmp_path: Path, damage: str) -> None:
    lines = write(tmp_path, 30)
    index = tmp_path / INDEX_NAME
    data = index.read_bytes()
    if damage in ("deleted", "directory"):
        index.unlink()
    if damage == "directory":
        index.mkdir()
    if damage == "cut":
        index.write_bytes(data[:-100])
    if damage == "header":
        index.write_bytes(b"another" + data[7:])
    if damage == "longer":
        index.write_bytes(data + b"\x7f" * 64)
    if damage == "older":
        edit(tmp_path, 3, iteration=1)
        os.utime(index, (1, 1))
    assert read_curve(tmp_path).lines() == read_lines(tmp_path)[0]
    more = write(tmp_path, 5, seed=3)
    assert len(more) == len(lines) + 5
    assert read_curve(tmp_path).lines() == more
    if damage != "directory":  # which no run would ever make: the log goes on without an index
        assert (tmp_path / INDEX_NAME).read_bytes()[64:] == b"".join(index_lines(tmp_path))


def test_lines_the_index_lacks_are_read_from_the_log(tmp_path: Path) -> None:
    write(tmp_path, 30)
    index = tmp_path / INDEX_NAME
    index.write_bytes(index.read_bytes()[: -64 * 4])
    with open(tmp_path / METRICS_NAME, "ab") as log:
        log.write(b'not a line\n{"seq": 99, "iteration": 500, "timestamp": "t"}\n{"seq": 100')
    lines = read_lines(tmp_path)[0]
    assert lines[-1].seq == 99
    assert read_curve(tmp_path).lines() == lines


@pytest.mark.parametrize("count", [30, 300])
def test_line_unlike_its_record_is_noticed_and_the_log_believed(tmp_path: Path, count: int) -> None:
    write(tmp_path, count, resumes=False)
    dates = (tmp_path / INDEX_NAME).stat()
    edit(tmp_path, 7, iteration=1)
    os.utime(tmp_path / METRICS_NAME, ns=(dates.st_mtime_ns, dates.st_mtime_ns))
    with pytest.raises(IndexIsWrong):
        read_curve(tmp_path).lines()
    shown, curve = drawn(tmp_path)
    assert shown == metrics.effective(read_lines(tmp_path)[0])
    (tmp_path / INDEX_NAME).unlink()
    assert curve.blocks.tobytes() == effective(read_curve(tmp_path)).blocks.tobytes()


def test_run_without_a_log_has_an_empty_curve(tmp_path: Path) -> None:
    shown, curve = drawn(tmp_path)
    assert shown == [] and set(summary_of(curve).values()) == {None}


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


def test_curve_of_nothing_but_ends(tmp_path: Path) -> None:
    write(tmp_path, 3)
    empty = read_curve(tmp_path).select(np.array([], np.intp))
    assert len(empty) == 0 and downsample(empty).tolist() == []
