"""The metrics log: whatever a crash leaves of it, whole lines are read and writing goes on."""

from __future__ import annotations

import math
import os
import random
from pathlib import Path

import pytest

from forgellm.runs.metrics import (
    METRICS_NAME,
    MetricsWriter,
    downsample,
    effective,
    offset_of_end,
    read_lines,
)
from forgellm.schema.run import MetricsLine


def write_log(folder: Path, count: int) -> bytes:
    with MetricsWriter(folder) as writer:
        for iteration in range(1, count + 1):
            writer.append(iteration=iteration, training_loss=3 / iteration, learning_rate=1e-4)
    return (folder / METRICS_NAME).read_bytes()


def report(seq: int, iteration: int, loss: float | None = 1.0) -> MetricsLine:
    return MetricsLine(
        seq=seq, iteration=iteration, training_loss=loss, learning_rate=1e-4, timestamp=""
    )


def validation(seq: int, iteration: int, loss: float = 1.0) -> MetricsLine:
    return MetricsLine(seq=seq, iteration=iteration, validation_loss=loss, timestamp="")


def test_log_cut_at_every_byte_is_read(tmp_path: Path) -> None:
    whole = write_log(tmp_path, 15)
    path = tmp_path / METRICS_NAME
    for cut in range(len(whole), -1, -1):
        os.truncate(path, cut)
        complete = whole.count(b"\n", 0, cut)
        lines, offset = read_lines(tmp_path)
        assert [line.seq for line in lines] == list(range(1, complete + 1))
        assert offset == whole.rfind(b"\n", 0, cut) + 1 == offset_of_end(tmp_path)


def test_log_cut_anywhere_is_continued_on_a_fresh_line(tmp_path: Path) -> None:
    whole = write_log(tmp_path, 15)
    path = tmp_path / METRICS_NAME
    for cut in range(0, len(whole), 7):  # no divisor of a line's length: meets all places in a line
        path.write_bytes(whole[:cut])
        complete = whole.count(b"\n", 0, cut)
        with MetricsWriter(tmp_path) as writer:
            writer.append(iteration=16)
        more, end = read_lines(tmp_path, whole.rfind(b"\n", 0, cut) + 1)
        assert [(line.seq, line.iteration) for line in more] == [(complete + 1, 16)]
        assert end == path.stat().st_size


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00" * 4096 + b"\n",
        b"\xff\xfe\x80\n",
        b'{"seq": 3, "iterat\n',
        b"\n\n",
        b"[1, 2]\nnull\n7\n",
        b'{"seq": "x", "iteration": 1, "timestamp": ""}\n',
        b"[" * 100_000 + b"\n",
    ],
)
def test_garbled_lines_are_skipped(tmp_path: Path, garbage: bytes) -> None:
    whole = write_log(tmp_path, 2)
    (tmp_path / METRICS_NAME).write_bytes(whole + garbage)
    with MetricsWriter(tmp_path) as writer:
        writer.append(iteration=3)
    lines, offset = read_lines(tmp_path)
    assert [line.seq for line in lines] == [1, 2, 3]
    assert offset == (tmp_path / METRICS_NAME).stat().st_size


def test_random_damage_never_raises(tmp_path: Path) -> None:
    whole = write_log(tmp_path, 30)
    rng = random.Random(1)
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(rng.randrange(1, 6)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        (tmp_path / METRICS_NAME).write_bytes(damaged)
        lines, _ = read_lines(tmp_path)
        assert len(lines) >= 30 - 2 * 5
        with MetricsWriter(tmp_path) as writer:
            assert writer.append(iteration=31).seq >= 1


def test_reader_gets_each_line_once(tmp_path: Path) -> None:
    assert read_lines(tmp_path) == ([], 0)
    offset, seen = 0, []
    with MetricsWriter(tmp_path) as writer:
        for iteration in range(1, 21):
            writer.append(iteration=iteration)
            if iteration % 3 == 0:
                lines, offset = read_lines(tmp_path, offset)
                seen += [line.seq for line in lines]
    lines, offset = read_lines(tmp_path, offset)
    assert seen + [line.seq for line in lines] == list(range(1, 21))
    assert read_lines(tmp_path, offset) == ([], offset)


def test_end_of_a_long_log_is_found_without_its_beginning(tmp_path: Path) -> None:
    assert offset_of_end(tmp_path) == 0
    whole = write_log(tmp_path, 2)
    torn = whole + b"\x00" * 200_000 + b"\n" + whole
    (tmp_path / METRICS_NAME).write_bytes(torn + whole[:-5])
    assert offset_of_end(tmp_path) == len(torn) + whole.index(b"\n") + 1


def test_offset_inside_a_line_or_beyond_the_end_is_harmless(tmp_path: Path) -> None:
    whole = write_log(tmp_path, 3)
    assert [line.seq for line in read_lines(tmp_path, 5)[0]] == [2, 3]
    for beyond in (len(whole) + 9, 2**53, 2**63):
        assert read_lines(tmp_path, beyond) == ([], beyond)
    assert len(read_lines(tmp_path, -4)[0]) == 3


def test_numbering_goes_on_after_a_tail_longer_than_one_read(tmp_path: Path) -> None:
    whole = write_log(tmp_path, 2)
    (tmp_path / METRICS_NAME).write_bytes(whole + b"\x00" * 200_000)
    with MetricsWriter(tmp_path) as writer:
        assert writer.append(iteration=3).seq == 3
    assert (tmp_path / METRICS_NAME).read_bytes().startswith(whole + b'{"seq":3')


def test_non_finite_figures_become_null_and_are_flagged(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as writer:
        bad = writer.append(iteration=1, training_loss=math.nan, grad_norm=math.inf)
        good = writer.append(iteration=2, training_loss=1.5, validation_loss=None)
    assert (bad.training_loss, bad.grad_norm, bad.non_finite) == (None, None, True)
    assert not good.non_finite
    text = (tmp_path / METRICS_NAME).read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert read_lines(tmp_path)[0] == [bad, good]


def test_iterations_trained_again_replace_the_earlier_ones() -> None:
    lines = [report(i, i) for i in range(1, 6)] + [validation(6, 5)]
    again = [report(7, 4), report(8, 5), validation(9, 5), report(10, 6)]
    kept = effective(lines + again)
    assert [line.seq for line in kept] == [1, 2, 3, 7, 8, 9, 10]


def test_validation_of_the_checkpoint_resumed_from_stays() -> None:
    lines = [report(1, 4), report(2, 5), validation(3, 5), report(4, 6), report(5, 6)]
    assert [line.seq for line in effective(lines)] == [1, 2, 3, 5]


@pytest.mark.parametrize("validation_first", [True, False])
def test_report_and_validation_of_one_iteration_both_count(validation_first: bool) -> None:
    pair = (
        [validation(2, 5), report(3, 5)] if validation_first else [report(2, 5), validation(3, 5)]
    )
    assert [line.seq for line in effective([report(1, 4), *pair])] == [1, 2, 3]


def test_resume_beginning_with_a_validation_drops_what_lies_beyond() -> None:
    lines = [report(1, 1), report(2, 2), report(3, 3), validation(4, 3), validation(5, 1)]
    assert [line.seq for line in effective(lines)] == [1, 5]


def test_downsampled_curve_keeps_its_spikes_ends_and_validations() -> None:
    rng = random.Random(0)
    lines = [report(i, i, 2 + rng.random()) for i in range(20_000)]
    lines[7_777] = report(7_777, 7_777, 90.0)
    lines[12_345] = report(12_345, 12_345, 0.001)
    for i in range(100, 20_000, 100):
        lines[i] = validation(i, i)
    few = downsample(lines, 2000)
    assert len(few) <= 2000
    seqs = [line.seq for line in few]
    assert seqs == sorted(set(seqs))
    assert {0, 19_999, 7_777, 12_345, *range(100, 20_000, 100)} <= set(seqs)


@pytest.mark.parametrize("max_points", [0, 1, 2, 3, 10, 57])
def test_downsampling_never_exceeds_the_limit(max_points: int) -> None:
    for lines in (
        [validation(i, i) for i in range(500)],
        [report(i, i, None) for i in range(500)],
        [report(i, i, float(i)) if i % 2 else validation(i, i) for i in range(500)],
    ):
        few = downsample(lines, max_points)
        assert len(few) <= max_points
        if max_points >= 2:
            assert few[0] == lines[0] and few[-1] == lines[-1]


def test_short_curve_is_left_alone() -> None:
    lines = [report(i, i) for i in range(10)]
    assert downsample(lines, 10) == lines
