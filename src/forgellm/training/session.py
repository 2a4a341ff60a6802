"""One training run from its folder to its final state, in the process that calls it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from forgellm.catalog.content import content_of
from forgellm.data.prepare import prepare_data, reopen_prepared
from forgellm.data.prepared import PreparedData
from forgellm.data.progress import OnProgress, Tokenised
from forgellm.data.tokenizer import Tokenizer
from forgellm.engines.merged_model import model_under
from forgellm.engines.pinned_base import require_same_base
from forgellm.engines.process_group import mlx_rank
from forgellm.engines.registry import engine_name, join_group, load_train_engine
from forgellm.errors import (
    CheckpointNotFound,
    ConfigError,
    ForgeError,
    OutOfMemory,
    PeerLost,
    TrainingFailed,
)
from forgellm.evaluation.suite import Suite, suite_of
from forgellm.paths import Workspace, iso_utc
from forgellm.runs import checkpoints
from forgellm.runs.lineage import merged_ancestor
from forgellm.runs.seal import REFERENCE_NAME, companions_of
from forgellm.runs.store import Run
from forgellm.schema.recipe import Recipe
from forgellm.schema.run import MetricsLine, RunRecord, RunState
from forgellm.training.awake import kept_awake
from forgellm.training.evaluations import RunEvaluations
from forgellm.training.followers import Followers
from forgellm.training.leaks import overlap_warnings
from forgellm.training.loop import Observer, TrainingLoop
from forgellm.training.plan import Plan, plan_compute
from forgellm.training.preflight import rehearse
from forgellm.training.preparing import telling_state
from forgellm.training.ready import Ready
from forgellm.training.record import completed, write_companions, write_end
from forgellm.training.recorder import Recorder, RunRecorder, SilentRecorder
from forgellm.training.reference import read_reference, score_pairs
from forgellm.training.replay import ReplayRule
from forgellm.training.start import Start, find_start

log = logging.getLogger(__name__)


class Stopped(ForgeError):
    """A stop request came before the first update."""

    code = "STOPPED"

    def __init__(self) -> None:
        super().__init__("Stopped before the first update")


@dataclass
class Session:
    """What a caller may watch and ask while a run trains in its process.

    Attributes:
        observer: called after each report.
        progress: called with a sentence at each stage before the first update.
        on_warnings: called before the first update with all that the run's record warns of.
        on_tokenised: called with how far the text is, where it is not in the cache.
        stop: set it to end the run gracefully; a stop request in the run's folder does the same.
    """

    observer: Observer = field(default=lambda line, state: None)
    progress: Callable[[str], None] = field(default=lambda text: None)
    on_warnings: Callable[[list[str]], None] = field(default=lambda warnings: None)
    on_tokenised: OnProgress = field(default=lambda figure: None)
    stop: bool = False

    def train(self, run: Run, *, resume: bool = False) -> RunState:
        """Train `run`, whose lock this process holds. The final state is written in every case.

        Raises ForgeError: what went wrong, as it is kept in the state too.
        """
        with kept_awake(), Followers(run) as followers:
            return self._train_or_record(run, resume, followers)

    def _train_or_record(self, run: Run, resume: bool, followers: Followers) -> RunState:
        try:
            with _failures_named():
                return self._train(run, resume, followers)
        except Stopped:
            state = RunState(phase="stopped", heartbeat=iso_utc())
            run.write_state(state)
            return state
        except PeerLost:
            raise  # who started the processes says how the run goes on or ends
        except ForgeError as error:
            write_end(run, "failed", error)
            raise

    def _train(self, run: Run, resume: bool, followers: Followers) -> RunState:
        run.require_as_written()
        if resume:
            run.require_own_files()
        record = run.record()
        checkpoint = self._checkpoint_to_resume(run) if resume else None
        start = _start_of(record, run, resume)
        record = record.model_copy(update={"recipe": start.recipe, "lineage": start.lineage})
        if checkpoint is None:
            run.write_record(record)  # before the model is merged that it now stands on
        summary = record.data if resume else {}
        ready = self._make_ready(
            start, summary, run.workspace, run.stop_requested, telling_state(run)
        )
        ready = self._referred(ready, run if resume else None)
        if checkpoint is None:
            self.progress("writing down what the model holds")
            held = content_of(ready.plan.model.path, run.workspace)
            write_companions(run, start, ready)
            run.write_record(completed(record, ready, held, companions_of(run.folder)))
        for warning in ready.warnings:
            log.warning(warning)
        self.on_warnings(ready.warnings)
        followers.open_trackers(run.written_state())
        return self._loop(ready, RunRecorder(run), self._with(followers)).run(checkpoint)

    def follow(
        self, recipe: Recipe, workspace: Workspace, resume_from: Run | None = None
    ) -> RunState:
        """Compute this process's share of a run that another process, the first, writes.

        Raises what `train` raises.
        """
        record = resume_from.record() if resume_from else None
        summary = record.data if record else {}
        checkpoint = self._checkpoint_to_resume(resume_from) if resume_from else None
        earlier = RunRecorder(resume_from) if resume_from else None
        with kept_awake(), _failures_named():
            if resume_from and record:
                start = _start_of(record, resume_from, resume=True)
            else:
                start = find_start(recipe, workspace)
            ready = self._make_ready(start, summary, workspace, lambda: False, lambda figure: None)
            ready = self._referred(ready, resume_from)
            return self._loop(ready, SilentRecorder(earlier), self.observer).run(checkpoint)

    def _make_ready(
        self,
        start: Start,
        summary: dict[str, Any],
        workspace: Workspace,
        stop_requested: Callable[[], bool],
        tell: OnProgress,
    ) -> Ready:
        """Data (that of `summary` for a resume), model and a rehearsed step.

        Raises ForgeError and Stopped.
        """

        def should_stop() -> bool:
            return self.stop or stop_requested()

        def on_progress(figure: Tokenised) -> None:
            if should_stop():
                raise Stopped
            tell(figure)
            self.on_tokenised(figure)

        recipe = start.recipe
        _require_engine_of_launcher(recipe.engine)
        suite = suite_of(recipe, workspace)
        group = join_group(recipe.engine)
        with group.one_first():
            if merged_ancestor(start.lineage):
                self.progress("finding or merging the model to start from")
            model = model_under(recipe, start.lineage, workspace)
            if start.continues is not None:
                allow = recipe.allow_changed_base and start.weights is not None
                require_same_base(start.continues, model.path, workspace, allow_changed=allow)
            plan = plan_compute(recipe, model, workspace, is_first_here=group.is_first_here)
            self.progress("reading and tokenising the documents")
            tokenizer = Tokenizer.load(model.path, start.template_folder)
            data = _prepare(summary, workspace, plan, tokenizer, on_progress)
        if group.any(plan.recipe.parallelism == "fsdp"):
            plan = replace(plan, recipe=plan.recipe.model_copy(update={"parallelism": "fsdp"}))
        if not summary:
            data = self._without_leaks(data, suite, plan, tokenizer, should_stop)
        self.progress("loading the model")
        engine = load_train_engine(plan.recipe, plan.model.path)
        if start.weights is not None:
            engine.load_weights(start.weights)
        data = data.shared(group.rank, group.size)
        self.progress("rehearsing one step")
        measured = rehearse(engine, data, plan)
        return Ready(
            plan, engine, tokenizer, data, measured, suite, lambda: group.any(should_stop())
        )

    def _without_leaks(
        self,
        data: PreparedData,
        suite: Suite,
        plan: Plan,
        tokenizer: Tokenizer,
        should_stop: Callable[[], bool],
    ) -> PreparedData:
        """With what else there is to warn of. Raises DataError, Stopped."""

        def on_step() -> None:
            if should_stop():
                raise Stopped

        self.progress("looking for what is measured in the training text")
        warnings = overlap_warnings(data, suite, tokenizer, plan.recipe, on_step)
        return replace(data, warnings=[*data.warnings, *warnings])

    def _referred(self, ready: Ready, resumed: Run | None) -> Ready:
        """With what the model said of the pairs at the start, where the loss asks for it.

        Raises CheckpointCorrupt and Stopped.
        """
        if ready.plan.recipe.training_type != "dpo":
            return ready
        if resumed:
            digest = (resumed.record().companions or {}).get(REFERENCE_NAME)
            reference = read_reference(resumed.folder, digest)
            return replace(ready, data=ready.data.with_reference(reference))
        self.progress("scoring the pairs with the model as it is")
        scored = score_pairs(ready.engine, ready.data, ready.should_stop)
        if scored is None:
            raise Stopped
        return replace(ready, data=ready.data.with_reference(scored))

    def _loop(self, ready: Ready, recorder: Recorder, observer: Observer) -> TrainingLoop:
        self.progress("training")
        recipe, engine, should_stop = ready.plan.recipe, ready.engine, ready.should_stop
        evaluations = None
        if not ready.suite.is_empty:
            evaluations = RunEvaluations(
                ready.suite, engine, ready.tokenizer, recorder, should_stop, _replay_rule(ready)
            )
        return TrainingLoop(
            recorder, recipe, engine, ready.data, should_stop, observer, evaluations
        )

    def _with(self, followers: Followers) -> Observer:
        def observe(line: MetricsLine, state: RunState) -> None:
            followers.observe(line, state)
            self.observer(line, state)

        return observe

    def _checkpoint_to_resume(self, run: Run) -> checkpoints.Checkpoint:
        checkpoint, damaged = checkpoints.newest_verified(run.folder)
        for name in damaged:
            log.warning("skipped the damaged checkpoint %s", name)
        if checkpoint is None:
            raise CheckpointNotFound("This run has no intact checkpoint to continue from")
        self.progress(f"resuming from iteration {checkpoint.iteration}")
        return checkpoint


@contextmanager
def _failures_named() -> Iterator[None]:
    """Whatever goes wrong leaves as a ForgeError."""
    try:
        yield
    except ForgeError:
        raise
    except MemoryError as error:
        raise OutOfMemory("The machine ran out of memory") from error
    except Exception as error:
        log.exception("the run failed")
        raise TrainingFailed(
            f"The trainer met an unexpected {type(error).__name__}: {error}",
            suggestion="Look at the run's trainer.log.",
        ) from error


def _prepare(
    summary: dict[str, Any],
    workspace: Workspace,
    plan: Plan,
    tokenizer: Tokenizer,
    on_progress: OnProgress,
) -> PreparedData:
    recipe, seq_len = plan.recipe, plan.max_seq_length
    if summary:
        return reopen_prepared(summary, recipe, workspace, tokenizer, seq_len, on_progress)
    return prepare_data(recipe, workspace, tokenizer, seq_len, on_progress)


def _replay_rule(ready: Ready) -> ReplayRule | None:
    recipe = ready.plan.recipe
    if recipe.replay != "auto":
        return None
    share = 1 - ready.data.summary["achieved_mixture_ratio"]
    return ReplayRule(share, recipe.replay_bound, ready.engine.group.any)


def _require_engine_of_launcher(engine: str) -> None:
    """Raises ConfigError where processes of `mlx.launch` would not know of each other."""
    if mlx_rank() is not None and engine_name(engine) != "mlx":
        raise ConfigError.one("engine", "processes of mlx.launch train together with mlx only")


def _start_of(record: RunRecord, run: Run, resume: bool) -> Start:
    """For a resume as it was then, whatever has become of the base run."""
    if not resume:
        return find_start(record.recipe, run.workspace)
    return Start(record.recipe, record.lineage, template_folder=run.folder, continues=record)
