"""The conversations that the server keeps: saved, found, branched, brought and taken along."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from forgellm import ForgeLLMClient
from forgellm.data.chat.rows import conversation_of
from forgellm.guard import GuardSettings
from forgellm.paths import Workspace
from forgellm.web.app import create_app
from serving import served

ROUTE = "/api/conversations"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


@pytest.fixture
def server(workspace: Workspace) -> Iterator[httpx2.Client]:
    with served(create_app(workspace, GuardSettings(), "http://127.0.0.1:1")) as client:
        yield client


def message(id: str, parent: str | None, role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"id": id, "parent": parent, "role": role, "content": content, **more}


def branched() -> dict[str, Any]:
    """A question asked twice, and answered by two models the second time."""
    score = {"token": "The", "log_prob": -0.5, "top": [{"token": "A", "log_prob": -1.25}]}
    figures = {"tokens_generated": 3, "tokens_per_second": 9.5, "finish_reason": "stop"}
    return {
        "system": "Be brief.",
        "settings": {"temperature": 0.2, "max_tokens": 64},
        "panes": [{"model_name": "tiny"}, {"model_name": "tiny", "adapter_path": "models/cpt/a"}],
        "messages": [
            message("a", None, "user", "Who turns the wheel?"),
            message("b", "a", "assistant", "Nobody.", pane=0),
            message("c", None, "user", "Who turns the millwheel?\nTell me."),
            message("d", "c", "assistant", "The water.", pane=0, figures=figures, scores=[score]),
            message("e", "c", "assistant", "The Wärter.", pane=1),
            message("f", "d", "user", "And then?"),
        ],
        "leaf": "f",
    }


def create(server: httpx2.Client, conversation: dict[str, Any] | None = None) -> dict[str, Any]:
    reply = server.post(ROUTE, json=branched() if conversation is None else conversation)
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


def titles(server: httpx2.Client, **query: Any) -> list[str]:
    found = server.get(ROUTE, params=query).json()["conversations"]
    return [item["title"] for item in found]


def test_a_conversation_comes_back_as_it_was_sent_also_after_a_restart(
    workspace: Workspace, server: httpx2.Client
) -> None:
    made = create(server)
    assert made["title"] == "Who turns the wheel?" and made["revision"] == 1
    kept = server.get(f"{ROUTE}/{made['id']}").json()["conversation"]
    sent = branched()
    assert kept["messages"][3]["scores"] == sent["messages"][3]["scores"]
    assert kept["messages"][3]["figures"]["tokens_per_second"] == 9.5
    assert [m["content"] for m in kept["messages"]] == [m["content"] for m in sent["messages"]]
    assert (kept["leaf"], kept["system"]) == ("f", "Be brief.")
    assert kept["settings"]["max_tokens"] == 64 and kept["settings"]["top_p"] == 0.9
    with served(create_app(workspace, GuardSettings(), "http://127.0.0.1:1")) as another:
        assert another.get(f"{ROUTE}/{made['id']}").json()["conversation"] == kept
    assert server.delete(f"{ROUTE}/{made['id']}").status_code == 200
    for method in ("GET", "DELETE"):
        assert server.request(method, f"{ROUTE}/{made['id']}").json()["error_code"] == "NOT_FOUND"


def test_a_change_on_top_of_an_old_revision_is_a_conflict(server: httpx2.Client) -> None:
    made = create(server)
    place = f"{ROUTE}/{made['id']}"
    saved = server.put(place, json=branched() | {"title": "Mine", "revision": 1}).json()
    assert (saved["revision"], saved["title"]) == (2, "Mine")
    assert saved["created_at"] == made["created_at"] <= saved["updated_at"]
    late = server.put(place, json=branched() | {"title": "Other tab", "revision": 1})
    assert (late.status_code, late.json()["error_code"]) == (409, "CONFLICT")
    assert late.json()["details"] == {"id": made["id"], "revision": 2}
    assert titles(server) == ["Mine"]


def test_of_many_changes_at_once_one_wins(server: httpx2.Client) -> None:
    place = f"{ROUTE}/{create(server)['id']}"

    def save(number: int) -> int:
        body = branched() | {"title": str(number), "revision": 1}
        return server.put(place, json=body).status_code

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(save, range(8))) == [200] + [409] * 7


def test_found_by_every_word_in_title_or_messages_the_last_changed_first(
    server: httpx2.Client,
) -> None:
    first = create(server, {"title": "Boats", "messages": []})
    create(server)
    create(server, {"title": "Lamps", "messages": [message("1", None, "user", "Boats at night")]})
    assert titles(server) == ["Lamps", "Who turns the wheel?", "Boats"]
    assert titles(server, q="boats") == ["Lamps", "Boats"]
    assert titles(server, q="NIGHT lamps") == ["Lamps"]
    assert titles(server, q="wärter") == ["Who turns the wheel?"]
    assert titles(server, q="boats wheel") == []
    assert titles(server, limit=1, offset=1) == ["Who turns the wheel?"]
    assert server.get(ROUTE, params={"limit": 1}).json()["total"] == 3
    server.put(f"{ROUTE}/{first['id']}", json={"title": "Ships", "revision": 1})
    assert titles(server) == ["Ships", "Lamps", "Who turns the wheel?"]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"messages": [message("a", None, "user", "x")] * 2}, "messages"),
    ({"messages": [message("a", "b", "user", "x"), message("b", "a", "user", "y")]}, "messages"),
    ({"messages": [message("a/b", None, "user", "x")]}, "messages.id"),
    ({"messages": [message("a", None, "wizard", "x")]}, "messages.role"),
    ({"messages": [message("a", None, "user", "x", html="y")]}, "messages.html"),
    ({"leaf": "z"}, "leaf"),
    ({"settings": {"temperature": "hot"}}, "settings.temperature"),
    ({"id": "0123456789abcdef"}, "id"),
]


def test_what_is_no_conversation_is_refused_by_name(server: httpx2.Client) -> None:
    for change, field in REFUSED:
        reply = server.post(ROUTE, json=branched() | change)
        assert (reply.status_code, reply.json()["error_code"]) == (400, "INVALID_REQUEST"), change
        assert [problem["field"] for problem in reply.json()["details"]["problems"]] == [field]
    assert titles(server) == []


def test_one_larger_than_the_body_limit_is_refused(server: httpx2.Client) -> None:
    body = {"messages": [message("a", None, "user", "x" * (1 << 20))]}
    assert server.post(ROUTE, json=body).status_code == 413


def test_an_id_is_no_path(workspace: Workspace, server: httpx2.Client) -> None:
    secret = workspace.root / ".forgellm" / "secret.json"
    made = create(server)
    secret.write_bytes((workspace.conversations / f"{made['id']}.json").read_bytes())
    for wrong in ("..%2fsecret", "..%2F..%2Fsecret", "x", made["id"].upper() + "0", "%2e%2e"):
        for method in ("GET", "PUT", "DELETE"):
            body = {"json": {"revision": 1}} if method == "PUT" else {}
            reply = server.request(method, f"{ROUTE}/{wrong}", **body)
            assert reply.status_code in (400, 404, 405), (wrong, method)
    assert secret.exists() and titles(server) == ["Who turns the wheel?"]


def test_damaged_and_foreign_files_are_passed_over(
    workspace: Workspace, server: httpx2.Client
) -> None:
    made = create(server)
    other = create(server, {"title": "Torn"})
    torn = workspace.conversations / f"{other['id']}.json"
    torn.write_bytes(torn.read_bytes()[:40])
    (workspace.conversations / "notes.json").write_text("{}")
    (workspace.conversations / ".tmp-0123456789abcdef.json").write_text("{")
    assert titles(server) == ["Who turns the wheel?"] == titles(server, q="wheel")
    reply = server.get(f"{ROUTE}/{other['id']}")
    assert (reply.status_code, "damaged" in reply.json()["error"]) == (404, True)
    assert server.get(f"{ROUTE}/{made['id']}").status_code == 200


def test_what_is_exported_can_be_brought_back(server: httpx2.Client) -> None:
    made = create(server)
    kept = server.get(f"{ROUTE}/{made['id']}").json()["conversation"]
    reply = server.get(f"{ROUTE}/export")
    assert "attachment" in reply.headers["content-disposition"]
    rows = [json.loads(line) for line in reply.text.splitlines()]
    assert rows == [kept]
    [new] = server.post(f"{ROUTE}/import", json={"rows": rows}).json()["imported"]
    assert new != made["id"]
    again = server.get(f"{ROUTE}/{new}").json()["conversation"]
    assert again == kept | {"id": new}


def test_the_active_branch_is_a_row_to_train_on(server: httpx2.Client) -> None:
    create(server)
    create(server, {"messages": [message("1", None, "user", "No answer yet")], "leaf": "1"})
    reply = server.get(f"{ROUTE}/export", params={"format": "messages"})
    [row] = [json.loads(line) for line in reply.text.splitlines()]
    assert row["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who turns the millwheel?\nTell me."},
        {"role": "assistant", "content": "The water."},
    ]
    assert [turn["role"] for turn in conversation_of(row).turns] == ["system", "user", "assistant"]
    [new] = server.post(f"{ROUTE}/import", json={"rows": [row]}).json()["imported"]
    again = server.get(f"{ROUTE}/{new}").json()["conversation"]
    assert again["system"] == "Be brief." and again["leaf"] == again["messages"][-1]["id"]
    assert [m["content"] for m in again["messages"]] == ["Who turns the millwheel?\nTell me.", "The water."]  # fmt: skip


def test_a_wrong_row_is_named_and_none_is_brought(server: httpx2.Client) -> None:
    good = {"messages": [{"role": "user", "content": "x"}]}
    for bad, field in (
        ({"messages": [{"role": "user", "content": 5}]}, "messages.content"),
        ({"text": "x"}, "messages"),
        ({"revision": 1, "messages": []}, "id"),
    ):
        reply = server.post(f"{ROUTE}/import", json={"rows": [good, bad]})
        details = reply.json()["details"]
        assert (reply.status_code, details["row"]) == (400, 2)
        assert field in [problem["field"] for problem in details["problems"]]
    assert titles(server) == []


def test_the_python_client_keeps_and_brings_conversations(server: httpx2.Client) -> None:
    with ForgeLLMClient(str(server.base_url), raise_errors=True) as client:
        made = client.create_conversation(branched())
        client.save_conversation(made["id"], branched() | {"title": "New", "revision": 1})
        [item] = client.list_conversations("millwheel")["conversations"]
        assert (item["title"], item["num_messages"]) == ("New", 6)
        rows = client.export_conversations("messages")["rows"]
        [new] = client.import_conversations(rows)["imported"]
        assert client.get_conversation(new)["conversation"]["title"] == "New"
        client.delete_conversation(new)
        assert client.list_conversations()["total"] == 1
