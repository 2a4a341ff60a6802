"""Learning and forgetting on the way: measured in the run, kept, and without a trace in it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy

from forgellm import supervisor
from forgellm.data.tokenizer import Tokenizer
from forgellm.engines.registry import load_generate_engine
from forgellm.errors import DataError, PathNotFound
from forgellm.evaluation.measure import Measurer
from forgellm.evaluation.suite import suite_of
from forgellm.paths import Workspace
from forgellm.runs import checkpoints
from forgellm.runs.evaluations import EVALUATIONS_NAME, read_evaluations, read_samples
from forgellm.runs.store import Run, list_runs
from forgellm.schema.run import MetricsLine, RunState
from forgellm.training.plan import plan_run
from forgellm.training.session import Session
from tiny_workspace import build_tiny_workspace, tiny_recipe

engines = pytest.mark.parametrize("engine", ["torch", "mlx"])
_CHOICES = [
    {
        "question": "Who counts?",
        "stem": "and in the evening the",
        "answer": answer,
        "distractors": [other for other in ("miller", "keeper", "river") if other != answer],
    }
    for answer in ("miller", "keeper", "river")
]
_ASKED = {"question": "Which boats?", "answer": ["green", "blue"], "match": "contains"}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = build_tiny_workspace(tmp_path / "w")
    file = workspace.datasets / "questions.json"
    file.write_text(json.dumps({"probes": [*_CHOICES, _ASKED]}))
    general = workspace.datasets / "general"
    general.mkdir()
    for number, text in enumerate(["The mill turns.", "In spring the ice breaks.", "It grinds."]):
        (general / f"{number}.txt").write_text(text * 9)
    return workspace


MEASURED = {
    "probe_files": ["dataset/questions.json"],
    "general_files": ["dataset/general"],
    "sample_prompts": ["What is the mill for?"],
}


def train(workspace: Workspace, session: Session | None = None, **fields: Any) -> Run:
    recipe = tiny_recipe(**fields)
    run, lock = supervisor.claim_new_run(workspace, recipe, max_seq_length=64)
    with lock:
        (session or Session()).train(run)
    return run


def files_of(checkpoint: checkpoints.Checkpoint) -> dict[str, bytes]:
    """Weights, moments and random state."""
    weights = checkpoint.weights
    paths = [weights / "model.safetensors" if weights.is_dir() else weights]
    paths += sorted(checkpoint.folder.glob("*.safetensors"))
    return {
        f"{path.name}/{name}": value.tobytes()
        for path in paths
        for name, value in safetensors.numpy.load_file(path).items()
    }


@engines
@pytest.mark.parametrize(
    "fields",
    [
        {"lora_dropout": 0.3},
        {"fine_tune_type": "full", "grad_checkpoint": True},
    ],
    ids=["dropout", "full"],
)
def test_a_run_that_is_measured_has_the_same_bits_as_one_that_is_not(
    workspace: Workspace, engine: str, fields: dict[str, Any]
) -> None:
    fields = {"engine": engine, "max_iterations": 4, "save_every": 2, **fields}
    measured = train(workspace, **MEASURED, **fields)
    plain = train(workspace, **fields)
    assert not (plain.folder / EVALUATIONS_NAME).exists()
    for one, other in zip(
        checkpoints.list_checkpoints(measured.folder),
        checkpoints.list_checkpoints(plain.folder),
        strict=True,
    ):
        assert files_of(one) == files_of(other)


@engines
def test_learning_and_forgetting_are_measured_from_the_start_to_the_end(
    workspace: Workspace, engine: str
) -> None:
    learned = "dataset/notes/000.txt"
    fields = {**MEASURED, "general_files": ["dataset/general", learned]}
    run = train(
        workspace, engine=engine, learning_rate=0.03, max_iterations=8, allow_overlap=True, **fields
    )
    lines = read_evaluations(run.folder)
    assert [line.iteration for line in lines] == [0, 4, 8]
    for line in lines:
        (probes,) = line.probes
        assert (probes.num_probes, len(probes.right)) == (4, 4)
        assert probes.accuracy == probes.right.count("1") / 4
        assert probes.right[:3].count("1") == 1  # one of the three endings is the likeliest
        assert 0 <= probes.accuracy_low <= probes.accuracy <= probes.accuracy_high <= 1
        assert probes.noise_floor == 0
        general, one = line.general
        assert one.standard_error is None
        assert general.num_documents == len(general.losses) == 3
        assert general.standard_error is not None and general.standard_error > 0
        assert general.noise_floor is not None and general.noise_floor < 1e-3
    first, last = lines[0].general, lines[-1].general
    assert first[0].change is None
    for before, after in zip(first, last, strict=True):
        assert before.loss is not None and after.loss is not None
        assert after.change == pytest.approx(after.loss - before.loss)
    assert last[0].change_standard_error is not None and last[0].change_standard_error > 0
    assert last[1].file == learned
    assert last[1].change is not None and last[1].change < -0.3  # it was trained on
    samples = read_samples(run.folder)
    assert [sample.iteration for sample in samples] == [0, 4, 8]
    assert {sample.prompt for sample in samples} == set(MEASURED["sample_prompts"])
    assert samples[0].answer != samples[-1].answer


@engines
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_weights_in_training_measure_as_their_checkpoint_does(
    workspace: Workspace, engine: str, kind: str
) -> None:
    run = train(workspace, engine=engine, max_iterations=2, fine_tune_type=kind, **MEASURED)
    inside = read_evaluations(run.folder)[-1]
    folder = workspace.base_models / "tiny"
    best = checkpoints.find_checkpoint(run.folder, 2)
    loaded = load_generate_engine(folder, best.weights, engine=engine, dtype="float32")
    measurer = Measurer(Tokenizer.load(folder), suite_of(run.record().recipe, workspace))
    outside = measurer.line(loaded, 2)
    assert outside.probes[0].right == inside.probes[0].right
    assert outside.general[0].losses == pytest.approx(inside.general[0].losses, abs=1e-4)
    answers = [sample.answer for sample in measurer.samples(loaded, 2)]
    assert answers == [sample.answer for sample in read_samples(run.folder)[-1:]]


def test_a_resume_measures_what_is_missing_and_replaces_what_is_done_again(
    workspace: Workspace,
) -> None:
    session = Session()

    def observe(line: MetricsLine, state: RunState) -> None:
        session.stop = line.iteration >= 6

    session.observer = observe
    run = train(workspace, session, engine="torch", **MEASURED)
    log = run.folder / EVALUATIONS_NAME
    zero, four = log.read_text().splitlines()  # the one at 6 was not measured: a stop is a stop
    beyond = json.loads(four) | {"iteration": 12, "seconds": 99.0}
    log.write_text(f"{zero}\n{four}\n{json.dumps(beyond)}\n" + '{"iteration": 1')
    with supervisor.claim_resume(workspace, run):
        Session().train(run, resume=True)
    lines = read_evaluations(run.folder)
    assert [line.iteration for line in lines] == [0, 4, 6, 8, 12]
    assert lines[-1].seconds < 99
    assert all(line.general[0].change is not None for line in lines[1:])


def test_probes_bring_the_shipped_general_text_unless_told_otherwise(workspace: Workspace) -> None:
    files = MEASURED["probe_files"]
    assert suite_of(tiny_recipe(), workspace).is_empty
    (general,) = suite_of(tiny_recipe(probe_files=files), workspace).general
    assert general.name == "shipped" and len(general.documents) >= 15
    assert not suite_of(tiny_recipe(probe_files=files, general_files=[]), workspace).general


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"probe_files": ["dataset/absent.json"]}, PathNotFound),
        ({"probe_files": ["dataset"]}, PathNotFound),
        ({"probe_files": ["../w/dataset/questions.json/../../../secret"]}, PathNotFound),
        ({"general_files": ["/etc/hostname"]}, PathNotFound),
        ({"probe_files": ["dataset/notes/000.txt"]}, DataError),
        ({"probe_files": ["dataset/none.json"]}, DataError),
        ({"general_files": ["dataset/empty"]}, DataError),
    ],
)
def test_what_cannot_be_measured_is_refused_before_there_is_a_run(
    workspace: Workspace, fields: dict[str, Any], problem: type[Exception]
) -> None:
    (workspace.datasets / "empty").mkdir()
    (workspace.datasets / "none.json").write_text('{"probes": []}')
    with pytest.raises(problem):
        plan_run(tiny_recipe(**fields), workspace)
    assert list_runs(workspace) == []


def test_a_diverged_model_has_no_figures_but_a_line(workspace: Workspace) -> None:
    class Broken:
        """A model whose every log-probability is not a number."""

        def token_log_probs(self, batch: Any) -> Any:
            return batch.loss_mask * math.nan

    suite = suite_of(tiny_recipe(general_files=["dataset/general"]), workspace)
    tokenizer = Tokenizer.load(workspace.base_models / "tiny")
    line = Measurer(tokenizer, suite).line(Broken(), 3)  # type: ignore[arg-type]
    assert line.general[0].loss is None and line.general[0].losses == [None] * 3
