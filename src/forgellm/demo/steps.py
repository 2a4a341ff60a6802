"""The demo's steps. Each is skipped where an earlier call has already done its work."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from forgellm.atomic import read_json, write_json
from forgellm.catalog import ModelFolder
from forgellm.data.prepare import prepare_data
from forgellm.data.tokenizer import Tokenizer
from forgellm.demo.lessons import Lesson
from forgellm.demo.measure import Measurement, measure
from forgellm.engines.registry import load_generate_engine
from forgellm.errors import RunNotFound
from forgellm.paths import Workspace
from forgellm.runs import checkpoints
from forgellm.runs.store import Run, find_run


@dataclass
class Demo:
    """What the demo has done so far for a lesson, kept in the workspace between calls."""

    workspace: Workspace
    lesson: Lesson
    run_name: str | None = None
    before: Measurement | None = None
    after: Measurement | None = None
    measured_iteration: int | None = None

    @property
    def _file(self) -> Path:
        return self.workspace.root / ".forgellm" / f"demo_{self.lesson.name}.json"

    @classmethod
    def open(cls, workspace: Workspace, lesson: Lesson, *, fresh: bool) -> Demo:
        """Continue where an earlier call ended; with `fresh`, or another recipe, start over."""
        demo = cls(workspace, lesson)
        saved = {} if fresh else (read_json(demo._file) or {})
        if saved.get("recipe") != lesson.recipe().model_dump(mode="json"):
            return demo
        demo.run_name = saved["run_name"]
        before, after = saved["before"], saved["after"]
        demo.before = Measurement.from_dict(before) if before else None
        demo.after = Measurement.from_dict(after) if after else None
        demo.measured_iteration = saved["measured_iteration"]
        return demo

    def save(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        write_json(
            self._file,
            {
                "recipe": self.lesson.recipe().model_dump(mode="json"),
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
            self.before = self._measure(model, None)
            self.save()

    def measure_after(self, model: ModelFolder, run: Run, progress: Callable[[str], None]) -> None:
        best = checkpoints.best_checkpoint(run.folder)
        assert best is not None
        if self.after is None or self.measured_iteration != best.iteration:
            progress(f"measuring the best checkpoint (iteration {best.iteration})")
            self.after = self._measure(model, best.weights)
            self.measured_iteration = best.iteration
            self.save()

    def _measure(self, model: ModelFolder, adapter: Path | None) -> Measurement:
        settings = self.lesson.recipe().resolved()
        assert settings.max_seq_length is not None
        tokenizer = Tokenizer.load(model.path)
        data = prepare_data(settings, self.workspace, tokenizer, settings.max_seq_length)
        engine = load_generate_engine(model.path, adapter, dtype=settings.dtype)
        batches = data.validation_batches()
        found = measure(engine, tokenizer, batches, self.lesson.num_questions)
        del engine
        gc.collect()
        return found
