"""The training dashboard is a picture of what the run store holds, whatever that is."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread

from forgellm.errors import ForgeError, RunNotFound
from forgellm.paths import Workspace
from forgellm.publishing import dashboard_png
from forgellm.publishing.dashboard_panels import BEST, TRAINING, VALIDATION, WARNING
from forgellm.publishing.dashboard_png import draw_dashboard, write_dashboard
from forgellm.publishing.dashboard_story import (
    compact,
    curves_of,
    duration,
    method_of,
    read_story,
    smoothed,
)
from forgellm.runs.checkpoints import write_checkpoint
from forgellm.runs.metrics import MetricsWriter
from forgellm.runs.store import Run, create_run
from forgellm.schema.recipe import Recipe
from forgellm.schema.run import MetricsLine, RunState


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    (tmp_path / "models" / "cpt").mkdir(parents=True)
    return Workspace(tmp_path)


def new_run(workspace: Workspace, **fields: Any) -> Run:
    values = {"model_name": "base/tiny", "dataset": "handbook", "max_iterations": 40} | fields
    return create_run(workspace, Recipe.model_validate(values), 64)


def training_loss(iteration: int) -> float:
    return 2 + math.exp(-iteration / 10) + 0.1 * math.sin(7 * iteration)


def validation_loss(iteration: int) -> float:
    return 2.2 + 0.002 * (iteration - 20) ** 2 / 2


def train(
    run: Run,
    *,
    iterations: int = 40,
    eval_every: int | None = 10,
    loss: Callable[[int], float] = training_loss,
    **state: Any,
) -> Run:
    """Leave what a trainer would have left."""
    with MetricsWriter(run.folder) as writer:
        if eval_every:
            writer.append(iteration=0, validation_loss=validation_loss(0))
        for iteration in range(1, iterations + 1):
            validated = eval_every and iteration % eval_every == 0
            measured = validation_loss(iteration) if validated else None
            writer.append(
                iteration=iteration,
                training_loss=loss(iteration),
                validation_loss=measured,
                learning_rate=1e-4,
                tokens_per_second=500.0,
                memory_usage_gb=1.5,
                grad_norm=0.7,
                trained_tokens=100 * iteration,
            )
            if measured:
                save(run, iteration, measured)
    values = {"phase": "completed", "iteration": iterations, "training_seconds": 90.0} | state
    run.write_state(RunState.model_validate(values))
    return run


def save(run: Run, iteration: int, loss: float) -> None:
    write_checkpoint(
        run.folder,
        iteration,
        loss,
        lambda folder, stem: (folder / f"{stem}_adapters.safetensors").write_bytes(b"weights"),
        lambda folder: (folder / "optimizer.safetensors").write_bytes(b"moments"),
        {},
    )


def pixels(picture: Path) -> np.ndarray:
    """[1200, 1600, 3], 0 to 255. Fails unless the file is a whole PNG."""
    assert picture.read_bytes().endswith(b"IEND\xaeB`\x82")
    image = np.round(imread(picture)[..., :3] * 255).astype(int)
    assert image.shape == (1200, 1600, 3)
    return image


def num_pixels(image: np.ndarray, colour: str) -> int:
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((image == wanted).all(axis=2).sum())


LOSS_PANEL = slice(280, 820), slice(60, 1040)


def test_dashboard_lies_in_the_run_folder_and_nothing_else_does(workspace: Workspace) -> None:
    run = train(new_run(workspace))
    before = {path.name for path in run.folder.iterdir()}
    picture = write_dashboard(run)
    assert picture == run.folder / "training_dashboard.png"
    assert {path.name for path in run.folder.iterdir()} == before | {picture.name}
    loss = pixels(picture)[LOSS_PANEL]
    assert all(num_pixels(loss, colour) > 200 for colour in (TRAINING, VALIDATION, BEST))
    assert num_pixels(loss, WARNING) == 0


def test_asking_process_does_not_import_matplotlib() -> None:
    code = (
        "import sys, forgellm.publishing.dashboard_png; sys.exit(int('matplotlib' in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_overfitting_is_marked(workspace: Workspace, tmp_path: Path) -> None:
    run = train(new_run(workspace), overfitting=True, overfitting_iteration=30)
    image = pixels(draw_dashboard(run, tmp_path / "out.png"))
    assert num_pixels(image[LOSS_PANEL], WARNING) > 200


def test_run_without_validation(workspace: Workspace, tmp_path: Path) -> None:
    run = train(new_run(workspace, validation_split=0), eval_every=None)
    loss = pixels(draw_dashboard(run, tmp_path / "out.png"))[LOSS_PANEL]
    assert num_pixels(loss, VALIDATION) == num_pixels(loss, BEST) == 0
    assert num_pixels(loss, TRAINING) > 200
    first = read_story(run).headlines[0]
    assert (first.title, first.note) == ("Final training loss", "no validation")


@pytest.mark.parametrize("iterations", [0, 1, 2, 3])
def test_very_short_run(workspace: Workspace, tmp_path: Path, iterations: int) -> None:
    run = train(new_run(workspace, max_iterations=3), iterations=iterations, eval_every=1)
    image = pixels(draw_dashboard(run, tmp_path / "out.png"))
    assert num_pixels(image[LOSS_PANEL], VALIDATION) > 20


def test_run_that_has_measured_nothing(workspace: Workspace, tmp_path: Path) -> None:
    run = new_run(workspace)
    pixels(draw_dashboard(run, tmp_path / "out.png"))
    assert [headline.value for headline in read_story(run).headlines] == ["–"] * 5


@pytest.mark.parametrize("from_iteration", [1, 25])
def test_losses_that_are_not_finite_are_marked(
    workspace: Workspace, tmp_path: Path, from_iteration: int
) -> None:
    run = train(
        new_run(workspace),
        loss=lambda at: training_loss(at) if at < from_iteration else math.nan,
        phase="failed",
        error={"error": "The loss became nan", "error_code": "NON_FINITE_LOSS"},
    )
    image = pixels(draw_dashboard(run, tmp_path / "out.png"))
    assert num_pixels(image[LOSS_PANEL], WARNING) > 50
    assert (num_pixels(image[LOSS_PANEL], TRAINING) > 50) == (from_iteration > 1)


def test_losses_too_large_for_a_perplexity(workspace: Workspace, tmp_path: Path) -> None:
    run = train(new_run(workspace), loss=lambda at: 1e5 / at, eval_every=None)
    pixels(draw_dashboard(run, tmp_path / "out.png"))


def test_hundred_thousand_lines(workspace: Workspace, tmp_path: Path) -> None:
    run = new_run(workspace, max_iterations=100_000)
    line = (
        '{"seq":%d,"iteration":%d,"training_loss":%.4f,"learning_rate":1e-4,"grad_norm":%.4f,'
        '"tokens_per_second":500.0,"trained_tokens":%d,"timestamp":"2025-01-15T10:30:00.000Z"}\n'
    )
    noise = np.random.default_rng(1).normal(0, 0.2, 100_001)
    with open(run.folder / "metrics.jsonl", "w") as file:
        for i in range(1, 100_001):
            file.write(line % (i, i, 2 + noise[i], 1 + abs(noise[i]), 100 * i))
    image = pixels(draw_dashboard(run, tmp_path / "out.png"))
    assert num_pixels(image[LOSS_PANEL], TRAINING) > 200


@pytest.mark.parametrize(
    "name",
    [
        "$x^2_{",
        "$\\frac{1}{0}$ %s {0} <b>&amp;",
        "漢字 \u200b\u0301 🚀 \u202e tac",
        "line\nbreak\ttab\x07",
        "W" * 200,
        "$" * 200,
    ],
)
def test_odd_names(workspace: Workspace, tmp_path: Path, name: str) -> None:
    run = train(new_run(workspace, model_name=name, dataset=name))
    run.write_record(run.record().model_copy(update={"name": name}))
    image = pixels(draw_dashboard(run, tmp_path / "out.png"))
    margin = image[:, :40], image[:, -16:]
    assert all((side[:130] == 255).all() for side in margin), "the header leaves the page"


def test_failure_names_its_cause_and_the_earlier_picture_stays(workspace: Workspace) -> None:
    run = train(new_run(workspace))
    picture = write_dashboard(run)
    before = picture.read_bytes()
    (run.folder / "metrics.jsonl").unlink()
    (run.folder / "metrics.jsonl").mkdir()
    with pytest.raises(ForgeError) as caught:
        write_dashboard(run)
    assert caught.value.message == (
        "The training dashboard could not be drawn: IsADirectoryError: [Errno 21] "
        f"Is a directory: '{run.output_dir}/metrics.jsonl'"
    )
    assert str(workspace.root) not in str(caught.value.to_dict())
    assert picture.read_bytes() == before
    assert not list(run.folder.glob(".tmp-*"))


def test_drawing_that_takes_too_long_is_given_up(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(new_run(workspace))
    monkeypatch.setattr(dashboard_png, "_TIMEOUT_SECONDS", 0.001)
    with pytest.raises(ForgeError, match="took longer than"):
        write_dashboard(run)
    assert not list(run.folder.glob("*.png"))


def test_folder_without_a_run(workspace: Workspace) -> None:
    with pytest.raises(RunNotFound):
        write_dashboard(Run(workspace.models / "cpt", workspace))


def test_settings_of_matplotlib_are_left_alone(workspace: Workspace, tmp_path: Path) -> None:
    before = matplotlib.rcParams.copy()
    draw_dashboard(train(new_run(workspace)), tmp_path / "out.png")
    assert matplotlib.rcParams.copy() == before


def test_headlines_are_of_what_ran(workspace: Workspace) -> None:
    story = read_story(train(new_run(workspace)))
    assert [(headline.title, headline.value, headline.note) for headline in story.headlines] == [
        ("Best validation loss", "2.200", "−15.4 % at iteration 20"),
        ("Final validation loss", "2.600", "iteration 40"),
        ("Tokens trained", "4k", ""),
        ("Average speed", "500 tok/s", ""),
        ("Peak memory", "1.50 GB", ""),
        ("Training time", "90 s", ""),
    ]
    assert [iteration for iteration, _ in story.best] == [20, 10, 30]


def test_resumed_run_is_drawn_once(workspace: Workspace) -> None:
    run = train(new_run(workspace))
    with MetricsWriter(run.folder) as writer:
        for iteration in range(31, 36):
            writer.append(iteration=iteration, training_loss=1.0, learning_rate=1e-4)
    curves = read_story(run).curves
    assert list(curves.iteration) == list(range(1, 36))
    assert list(curves.validated_at) == [0, 10, 20, 30]


def test_gap_is_validation_minus_training_loss() -> None:
    lines = [MetricsLine(seq=1, iteration=0, validation_loss=3.0, timestamp="")]
    for i in range(1, 5):
        loss = None if i == 3 else 2.0 + i
        lines.append(
            MetricsLine(
                seq=i + 1,
                iteration=i,
                training_loss=loss,
                validation_loss=4.5,
                learning_rate=1e-4,
                timestamp="",
            )
        )
    gap = curves_of(lines).gap
    assert math.isnan(gap[0])  # no training loss at iteration 0
    np.testing.assert_allclose(gap[[1, 2, 4]], [1.5, 0.5, -1.5])


def test_smoothing_keeps_levels_slopes_and_gaps() -> None:
    line = np.linspace(5, 1, 600)
    np.testing.assert_allclose(smoothed(line)[100:-100], line[100:-100])
    holed = np.where(np.arange(600) % 7 == 0, np.nan, 2.0)
    np.testing.assert_allclose(smoothed(holed), holed)
    noise = np.random.default_rng(1).normal(0, 1, 600)
    assert smoothed(noise).std() < 0.35 * noise.std()
    assert (smoothed(noise[:20]) == noise[:20]).all()  # too few to smooth


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"lora_rank": 8}, "LoRA rank 8, alpha 16, all linear layers"),
        ({"fine_tune_type": "full", "num_layers": 4}, "full fine-tuning, last 4 layers"),
        (
            {"fine_tune_type": "dora", "lora_target": ["q_proj", "v_proj"]},
            "DoRA rank 16, alpha 32, q_proj, v_proj",
        ),
    ],
)
def test_method_in_words(workspace: Workspace, fields: dict[str, Any], words: str) -> None:
    method = method_of(new_run(workspace, **fields).record())
    assert method == f"Continued pre-training · {words} · batch 2 × 64 tokens"


def test_numbers_are_short() -> None:
    assert [compact(x) for x in (0, 8.254, 999, 999.6, 1200, 34e6, 5e9)] == [
        "0", "8.25", "999", "1k", "1.2k", "34M", "5G",
    ]  # fmt: skip
    assert [duration(x) for x in (0, 42, 600, 9000, 864_000)] == [
        "–", "42 s", "10 min", "2.5 h", "10.0 days",
    ]  # fmt: skip
