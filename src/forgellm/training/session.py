"""One training run from its folder to its final state, in the process that calls it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from forgellm import __version__
from forgellm.atomic import write_json
from forgellm.data.prepare import PreparedData, prepare_cpt, reopen_prepared
from forgellm.data.tokenizer import Tokenizer
from forgellm.engines.base import TrainEngine
from forgellm.engines.registry import load_train_engine
from forgellm.errors import CheckpointNotFound, ForgeError, OutOfMemory, TrainingFailed
from forgellm.paths import iso_utc
from forgellm.runs import checkpoints
from forgellm.runs.store import Run
from forgellm.schema.run import MetricsLine, RunRecord, RunState
from forgellm.training.followers import Followers
from forgellm.training.loop import Observer, TrainingLoop
from forgellm.training.plan import Plan, plan_compute
from forgellm.training.preflight import rehearse

log = logging.getLogger(__name__)


class _Stopped(Exception):
    """A stop request came before the first update."""


@dataclass
class Session:
    """What a caller may watch and ask while a run trains in its process.

    Attributes:
        observer: called after each report.
        progress: called with a sentence at each stage before the first update.
        stop: set it to end the run gracefully; a stop request in the run's folder does the same.
    """

    observer: Observer = field(default=lambda line, state: None)
    progress: Callable[[str], None] = field(default=lambda text: None)
    stop: bool = False

    def train(self, run: Run, *, resume: bool = False) -> RunState:
        """Train `run`, whose lock this process holds. The final state is written in every case.

        Raises ForgeError: what went wrong, as it is kept in the state too.
        """
        with Followers(run) as followers:
            return self._train_or_record(run, resume, followers)

    def _train_or_record(self, run: Run, resume: bool, followers: Followers) -> RunState:
        try:
            return self._train(run, resume, followers)
        except _Stopped:
            state = RunState(phase="stopped", heartbeat=iso_utc())
            run.write_state(state)
            return state
        except ForgeError as error:
            _record_failure(run, error)
            raise
        except MemoryError as error:
            out_of_memory = OutOfMemory("The machine ran out of memory")
            _record_failure(run, out_of_memory)
            raise out_of_memory from error
        except Exception as error:
            log.exception("the run failed")
            failure = TrainingFailed(
                f"The trainer met an unexpected {type(error).__name__}: {error}",
                suggestion="Look at the run's trainer.log.",
            )
            _record_failure(run, failure)
            raise failure from error

    def _train(self, run: Run, resume: bool, followers: Followers) -> RunState:
        record = run.record()
        recipe = record.recipe.resolved()
        should_stop = self._stop_check(run)
        checkpoint = self._checkpoint_to_resume(run) if resume else None
        # Whoever made the run has checked the name; a resume may come from another place.
        plan = plan_compute(recipe, run.workspace, allow_absolute=True)
        self.progress("reading and tokenising the documents")
        data = self._prepare(run, record, plan, should_stop)
        self.progress("loading the model")
        engine = load_train_engine(recipe, plan.model.path)
        self.progress("rehearsing one step")
        measured = rehearse(engine, data, plan)
        if checkpoint is None:
            run.write_record(_completed(record, plan, engine, data, measured))
            if (config := engine.adapter_config()) is not None:
                write_json(run.folder / "adapter_config.json", config)
        for warning in data.warnings:
            log.warning(warning)
        followers.open_trackers(run.written_state())
        self.progress("training")
        loop = TrainingLoop(run, recipe, engine, data, should_stop, self._with(followers))
        return loop.run(checkpoint)

    def _with(self, followers: Followers) -> Observer:
        def observe(line: MetricsLine, state: RunState) -> None:
            followers.observe(line, state)
            self.observer(line, state)

        return observe

    def _stop_check(self, run: Run) -> Callable[[], bool]:
        return lambda: self.stop or run.stop_requested()

    def _checkpoint_to_resume(self, run: Run) -> checkpoints.Checkpoint:
        checkpoint, damaged = checkpoints.newest_verified(run.folder)
        for name in damaged:
            log.warning("skipped the damaged checkpoint %s", name)
        if checkpoint is None:
            raise CheckpointNotFound("This run has no intact checkpoint to continue from")
        self.progress(f"resuming from iteration {checkpoint.iteration}")
        return checkpoint

    def _prepare(
        self,
        run: Run,
        record: RunRecord,
        plan: Plan,
        should_stop: Callable[[], bool],
    ) -> PreparedData:
        def on_progress(*_: Any) -> None:
            if should_stop():
                raise _Stopped

        tokenizer = Tokenizer.load(plan.model.path)
        recipe, seq_len = plan.recipe, plan.max_seq_length
        if record.data:
            return reopen_prepared(
                record.data, recipe, run.workspace, tokenizer, seq_len, on_progress
            )
        return prepare_cpt(recipe, run.workspace, tokenizer, seq_len, on_progress)


def _completed(
    record: RunRecord,
    plan: Plan,
    engine: TrainEngine,
    data: PreparedData,
    measured: dict[str, float],
) -> RunRecord:
    """`run.json` as it stays: everything that decided the run."""
    info, model = engine.info, plan.model
    return record.model_copy(
        update={
            "recipe": plan.recipe.model_copy(update={"max_seq_length": plan.max_seq_length}),
            "engine": info.engine,
            "device": info.device,
            "dtype": info.dtype,
            "dtype_reason": info.dtype_reason,
            "model": {
                "name": model.name,
                "kind": model.kind,
                "architecture": model.facts.architecture,
                "num_parameters": info.num_parameters,
                "num_trainable": info.num_trainable,
                "context_length": info.context_length,
            },
            "data": data.summary,
            "memory": measured,
            "versions": {"forgellm": __version__, **info.versions},
            "warnings": [*plan.warnings, *data.warnings],
        }
    )


def _record_failure(run: Run, error: ForgeError) -> None:
    state = run.written_state().model_copy(
        update={
            "phase": "failed",
            "error": error.to_dict(),
            "eta_minutes": None,
            "heartbeat": iso_utc(),
        }
    )
    try:
        run.write_state(state)
    except ForgeError:
        log.exception("the failure could not be written to the run's state")
