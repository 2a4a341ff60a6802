"""Runs on conversations: what is learned, kept with the run, and used when one chats with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from forgellm import supervisor
from forgellm.generation.loading import find_source, open_source
from forgellm.generation.prompt import build_prompt
from forgellm.generation.session import Done, answer
from forgellm.paths import Workspace
from forgellm.publishing import build
from forgellm.runs import checkpoints
from forgellm.runs.metrics import effective, read_lines
from forgellm.runs.store import Run
from forgellm.schema.generation import LoadRequest, Message, Sampling
from forgellm.training.session import Session
from tiny_workspace import build_tiny_workspace, tiny_recipe, write_conversations

GREEDY = Sampling(temperature=0, max_tokens=12, repetition_penalty=1.0)
ENGINES = pytest.mark.parametrize("engine", ["torch", "mlx"])


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = build_tiny_workspace(tmp_path / "w")
    write_conversations(workspace, "chat")
    return workspace


def train(workspace: Workspace, session: Session | None = None, **fields: Any) -> Run:
    values = {"training_type": "ift", "dataset": "chat", "data_mixture_ratio": 1.0, **fields}
    recipe = tiny_recipe(**{"max_seq_length": 128, **values})
    run, lock = supervisor.claim_new_run(workspace, recipe, max_seq_length=128)
    with lock:
        (session or Session()).train(run)
    return run


@ENGINES
def test_a_run_learns_to_answer(workspace: Workspace, engine: str) -> None:
    run = train(
        workspace,
        engine=engine,
        max_iterations=60,
        save_every=60,
        batch_size=4,
        learning_rate=2e-2,
        fine_tune_type="full",
    )
    assert run.folder.parent.name == "ift"
    assert run.record().training_id.startswith("ift_")
    lines = effective(read_lines(run.folder)[0])
    losses = [line.validation_loss for line in lines if line.validation_loss is not None]
    assert losses[-1] < 0.5 * losses[0]
    request = LoadRequest(
        model_name="tiny",
        adapter_path=str(workspace.relative(run.folder)),
        engine=engine,  # type: ignore[arg-type]
        dtype="float32",
    )
    model, tokenizer = open_source(find_source(request, workspace))
    ids = build_prompt(tokenizer, "After stones?", [], is_base_model=None)
    *_, done = answer(model, tokenizer, ids, GREEDY)
    assert isinstance(done, Done)
    assert done.finish_reason == "stop"  # it has learned to end its turn
    assert " and " in done.response


def test_only_learned_tokens_are_counted(workspace: Workspace) -> None:
    runs = [train(workspace, loss_on=loss_on) for loss_on in ("last", "assistant", "all")]
    counts = [effective(read_lines(run.folder)[0])[-1].trained_tokens for run in runs]
    assert counts[0] < counts[1] < counts[2]


def test_a_stopped_and_resumed_run_ends_with_the_same_bits(workspace: Workspace) -> None:
    import safetensors.numpy

    session = Session()
    session.observer = lambda line, state: setattr(session, "stop", line.iteration >= 6)
    whole, parted = train(workspace), train(workspace, session)
    with supervisor.claim_resume(workspace, parted):
        assert Session().train(parted, resume=True).phase == "completed"
    ends = [
        safetensors.numpy.load_file(checkpoints.find_checkpoint(run.folder, 12).weights)
        for run in (whole, parted)
    ]
    assert all((ends[0][key] == ends[1][key]).all() for key in ends[0])


def test_a_base_model_keeps_the_template_it_was_taught_with(workspace: Workspace) -> None:
    """With the run, for whoever chats with it, and in what is published."""
    config = workspace.base_models / "tiny" / "tokenizer_config.json"
    config.write_text(config.read_text().replace("chat_template", "no_template"))
    run = train(workspace, chat_template="turns")
    kept = (run.folder / "chat_template.jinja").read_text()
    assert "### " in kept
    request = LoadRequest(model_name="tiny", adapter_path=str(workspace.relative(run.folder)))
    _, tokenizer = open_source(find_source(request, workspace))
    assert tokenizer.chat_template == kept
    ids = build_prompt(
        tokenizer, "Two?", [Message(role="user", content="One?")], is_base_model=None
    )
    assert tokenizer.decode(ids).endswith("### assistant\n")
    best = checkpoints.best_checkpoint(run.folder)
    assert best is not None
    published = build.build_published(run, best, lambda share, text: None)
    folder = workspace.root / published.published_model_path
    assert (folder / "chat_template.jinja").read_text() == kept


def test_the_record_says_what_became_of_the_rows(workspace: Workspace) -> None:
    file = workspace.datasets / "chat" / "more.jsonl"
    file.write_text('{"messages": []}\n{"prompt": "Why?", "completion": "' + "so " * 300 + '"}\n')
    data = train(workspace).record().data
    assert data["documents"] == 40
    assert {item["reason"].split(",")[0] for item in data["skipped"]} == {
        "no answer of an assistant",
        "its first answer ends beyond 129 tokens",
    }
