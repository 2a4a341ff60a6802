"""Files that come in through the page, recipes as text, and the preview of conversations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from forgellm.guard import GuardSettings
from forgellm.paths import Workspace
from forgellm.web.app import create_app
from tiny_workspace import build_tiny_workspace, write_conversations


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return build_tiny_workspace(tmp_path_factory.mktemp("uploads"))


@pytest.fixture(scope="module")
def web(workspace: Workspace) -> TestClient:
    app = create_app(workspace, GuardSettings(), "http://127.0.0.1:1")
    return TestClient(app, base_url="http://localhost", client=("127.0.0.1", 1))


def leftovers(workspace: Workspace) -> list[Path]:
    return list(workspace.datasets.glob("*/.upload-*"))


def test_an_uploaded_file_is_there_byte_for_byte_larger_than_other_bodies_may_be(
    web: TestClient, workspace: Workspace
) -> None:
    content = "Grüße aus Säntis. ".encode() * 100_000
    reply = web.put("/api/datasets/new one/files/Grüße 1.txt", content=content).json()
    assert reply["success"] and reply["size_mb"] == round(len(content) / 1e6, 3)
    assert (workspace.datasets / "new one" / "Grüße 1.txt").read_bytes() == content
    assert leftovers(workspace) == []
    assert web.delete("/api/datasets/new one/files/Grüße 1.txt").json()["success"]
    assert web.delete("/api/datasets/new one/files/Grüße 1.txt").status_code == 404


@pytest.mark.parametrize(
    ("dataset", "file"),
    [
        ("ok", "..txt"), ("ok", ".hidden.txt"), ("..", "a.txt"), ("ok", "a%2Fb.txt"), ("ok", "%2e%2e"),
        ("ok", "a%00.txt"), ("ok", "tool.exe"), ("ok", "noending"), (".hidden", "a.txt"), ("a%2Fb", "a.txt"),
        ("ok", "a%5Cb.txt"), ("ok", "x" * 300 + ".txt"),
    ],
)  # fmt: skip
def test_what_can_be_no_file_of_a_dataset_is_refused_and_leaves_nothing(
    web: TestClient, workspace: Workspace, dataset: str, file: str
) -> None:
    before = sorted(workspace.root.rglob("*"))
    reply = web.put(f"/api/datasets/{dataset}/files/{file}", content=b"text")
    assert 400 <= reply.status_code < 500 and reply.status_code != 401
    assert reply.json()["success"] is False
    assert sorted(workspace.root.rglob("*")) == before


def test_a_dataset_that_is_a_link_takes_no_files(web: TestClient, workspace: Workspace) -> None:
    outside = workspace.root / "outside"
    outside.mkdir()
    (workspace.datasets / "linked").symlink_to(outside)
    assert web.put("/api/datasets/linked/files/a.txt", content=b"text").status_code == 400
    assert list(outside.iterdir()) == []


def test_a_recipes_text_is_its_fields_checked(web: TestClient) -> None:
    text = "model_name: tiny\ndataset: notes\nlearning_rate: 5e-5\n"
    reply = web.post("/api/recipes/parse", json={"text": text}).json()
    assert reply["recipe"] == {"model_name": "tiny", "dataset": "notes", "learning_rate": 5e-5}


@pytest.mark.parametrize(
    "text", ["a: [", "- 1", "model_name: tiny\ndataset: x\nbatch_size: no", "5: 6", "[" * 5000, "&a [*a]"]
)  # fmt: skip
def test_a_text_that_is_no_recipe_says_why(web: TestClient, text: str) -> None:
    reply = web.post("/api/recipes/parse", json={"text": text})
    assert reply.status_code == 400 and reply.json()["details"]["problems"]


def preview(web: TestClient, name: str, **query: Any) -> dict[str, Any]:
    found = web.get(f"/api/datasets/{name}/preview", params={"model": "base/tiny", **query}).json()
    assert found["success"], found
    return dict(found)


def test_conversations_are_shown_as_they_are_packed_with_what_is_learned(
    web: TestClient, workspace: Workspace
) -> None:
    folder = write_conversations(workspace, "chats", 12)
    rows = [json.loads(line) for line in (folder / "chat.jsonl").read_text().splitlines()]
    with (folder / "chat.jsonl").open("a") as lines:
        lines.write('{"messages": [{"role": "user", "content": "no answer"}]}\n')
    found = preview(web, "chats", training_type="ift", max_seq_length=128)
    assert found["document_count"] == 12 and found["complete"] is True
    assert [item.split(":")[1] for item in found["skipped"]] == ["13"]
    block = found["blocks"][0]
    learned = [block["tokens"][at + 1] for at, mask in enumerate(block["loss_mask"][:-1]) if mask]
    answers = {
        turn["content"] for row in rows for turn in row["messages"] if turn["role"] == "assistant"
    }
    questions = {
        turn["content"] for row in rows for turn in row["messages"] if turn["role"] == "user"
    }
    text = "".join(learned)
    assert any(answer in text for answer in answers)
    assert not any(question in text for question in questions)
    everything = preview(web, "chats", training_type="ift", max_seq_length=128, loss_on="all")
    assert sum(everything["blocks"][0]["loss_mask"]) > sum(block["loss_mask"])


def test_a_preview_says_what_of_rows_is_not_used(web: TestClient, workspace: Workspace) -> None:
    folder = workspace.datasets / "noted"
    folder.mkdir()
    rows: list[Any] = [{"prompt": f"{n}?", "response": f"Yes {n}.", "remark": n} for n in range(5)]
    rows.append({"prompt": "Which?", "response": ["this", "that"]})
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = preview(web, "noted", training_type="ift", max_seq_length=128)
    assert found["document_count"] == 5
    assert found["skipped"] == ["a.jsonl:6: the answer is a list of alternatives"]
    assert found["notes"] == ["the column 'remark' is not used: 5 rows"]


def test_an_estimate_draws_the_learning_rate(web: TestClient) -> None:
    recipe = {
        "model_name": "base/tiny", "dataset": "notes", "max_iterations": 1000, "warmup_steps": 100,
        "learning_rate": 0.001, "max_seq_length": 64,
    }  # fmt: skip
    drawn = web.post("/api/estimate", json=recipe).json()["learning_rates"]
    assert drawn[0][0] == 1 and drawn[-1] == [1000, pytest.approx(1e-4)]
    assert max(drawn, key=lambda point: point[1]) == [100, pytest.approx(1e-3)]
