"""The demo's steps. Each is skipped where an earlier call has already done its work."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from forgellm.atomic import read_json, write_json
from forgellm.catalog import ModelFolder
from forgellm.data.prepare import prepare_data
from forgellm.data.prepared import PreparedData
from forgellm.data.tokenizer import Tokenizer
from forgellm.demo.measure import ASSETS, HANDBOOK, Measurement, measure
from forgellm.engines.registry import load_generate_engine
from forgellm.errors import RunNotFound
from forgellm.paths import Workspace
from forgellm.runs import checkpoints
from forgellm.runs.store import Run, find_run
from forgellm.schema.recipe import Recipe, parse_recipe

_RECIPE = ASSETS / "demo_recipe.yaml"


@dataclass
class Demo:
    """What the demo has done so far, kept in the workspace between calls."""

    workspace: Workspace
    run_name: str | None = None
    before: Measurement | None = None
    after: Measurement | None = None
    measured_iteration: int | None = None

    @property
    def _file(self) -> Path:
        return self.workspace.root / ".forgellm" / "demo.json"

    @classmethod
    def open(cls, workspace: Workspace, *, fresh: bool) -> Demo:
        """Continue where an earlier call ended; with `fresh`, or another recipe, start over."""
        demo = cls(workspace)
        saved = {} if fresh else (read_json(demo._file) or {})
        if saved.get("recipe") != recipe().model_dump(mode="json"):
            return demo
        demo.run_name = saved["run_name"]
        demo.before, demo.after = _measurement(saved["before"]), _measurement(saved["after"])
        demo.measured_iteration = saved["measured_iteration"]
        return demo

    def save(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        write_json(
            self._file,
            {
                "recipe": recipe().model_dump(mode="json"),
                "run_name": self.run_name,
                "before": self.before and asdict(self.before),
                "after": self.after and asdict(self.after),
                "measured_iteration": self.measured_iteration,
            },
        )

    def run(self) -> Run | None:
        """The run of an earlier call, if it is still there."""
        if self.run_name is None:
            return None
        try:
            return find_run(self.workspace, self.run_name)
        except RunNotFound:
            return None

    def measure_before(self, model: ModelFolder, progress: Callable[[str], None]) -> None:
        if self.before is None:
            progress("measuring the untouched model")
            self.before = _measure(model, None, self.workspace)
            self.save()

    def measure_after(self, model: ModelFolder, run: Run, progress: Callable[[str], None]) -> None:
        best = checkpoints.best_checkpoint(run.folder)
        assert best is not None
        if self.after is None or self.measured_iteration != best.iteration:
            progress(f"measuring the best checkpoint (iteration {best.iteration})")
            self.after = _measure(model, best.weights, self.workspace)
            self.measured_iteration = best.iteration
            self.save()


def recipe() -> Recipe:
    return parse_recipe(yaml.safe_load(_RECIPE.read_text()), from_text=True)


def copy_handbook(workspace: Workspace) -> None:
    """Put the shipped handbook where the recipe looks for it, as a user would their own."""
    target = workspace.datasets / recipe().dataset
    target.mkdir(parents=True, exist_ok=True)
    for file in HANDBOOK.glob("*.md"):
        if not (target / file.name).exists():
            shutil.copyfile(file, target / file.name)


def _measure(model: ModelFolder, adapter: Path | None, workspace: Workspace) -> Measurement:
    tokenizer = Tokenizer.load(model.path)
    engine = load_generate_engine(model.path, adapter, dtype=recipe().dtype)
    found = measure(engine, tokenizer, _held_out(tokenizer, workspace).validation_batches())
    del engine
    gc.collect()
    return found


def _held_out(tokenizer: Tokenizer, workspace: Workspace) -> PreparedData:
    settings = recipe().resolved()
    assert settings.max_seq_length is not None
    return prepare_data(settings, workspace, tokenizer, settings.max_seq_length)


def _measurement(saved: dict[str, Any] | None) -> Measurement | None:
    return Measurement(**saved) if saved else None
