"""Talking: a real tiny model answers; edits and second tries are branches; the keyboard suffices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from playwright.sync_api import expect

from browser.conftest import Servers, Watched
from forgellm.paths import Workspace
from odd_server import odd_server, stream_reply


def ask(tab: Watched, text: str, num_answers: int) -> None:
    tab.page.locator(".composer textarea").focus()
    tab.page.keyboard.type(text)
    tab.page.keyboard.press("Enter")
    answered(tab, num_answers)


def answered(tab: Watched, num_answers: int) -> None:
    expect(tab.page.locator(".answer .message-tools")).to_have_count(num_answers, timeout=60_000)


def begin(tab: Watched, address: str) -> None:
    tab.go(address)
    tab.page.wait_for_selector(".composer textarea")
    tab.page.click("text=Settings")
    tab.page.get_by_label("Longest answer").fill("24")


def test_an_edit_and_another_try_are_branches_and_a_reload_keeps_them(tab: Watched) -> None:
    begin(tab, "/chat?model=base/tiny")
    ask(tab, "After tide?", 1)
    tab.page.get_by_label("Answer again").click()
    tab.page.wait_for_selector(".answer >> text=2 of 2")
    tab.page.get_by_label("Edit the question").click()
    tab.page.get_by_label("Edit the question", exact=True).last.fill("After lamp?")
    tab.page.click("text=Ask this")
    tab.page.wait_for_selector(".question >> text=2 of 2")
    answered(tab, 1)
    assert tab.page.locator(".question .said").inner_text() == "After lamp?"
    tab.page.locator(".question").get_by_label("Earlier version").click()
    tab.page.wait_for_selector(".question >> text=After tide?")
    tab.page.reload()
    tab.page.wait_for_selector(".question >> text=After tide?")
    tab.page.wait_for_selector(".answer >> text=of 2")


def test_panes_answer_side_by_side_each_from_its_own_model(tab: Watched, servers: Servers) -> None:
    name = servers.get("/api/runs")["runs"][0]["name"]
    begin(tab, f"/chat?run={name}")
    tab.page.click("text=Likeliest")
    ask(tab, "After tide?", 2)
    ask(tab, "And lamp?", 4)
    answers = tab.page.locator(".answer .markdown").all_inner_texts()
    assert answers[0] != answers[1]
    held = servers.get("/api/model/status")["models"]
    assert [item["adapter_path"] is None for item in held] == [True, False]


def test_tokens_are_shown_with_what_else_was_likely(tab: Watched) -> None:
    begin(tab, "/chat?model=base/tiny")
    tab.page.get_by_label("Show how sure it is").check()
    ask(tab, "After tide?", 1)
    tab.page.locator(".token-text span").nth(1).hover()
    tab.page.wait_for_selector(".alternatives li")
    assert tab.page.locator(".alternatives li").count() == 5


def test_a_conversation_is_found_exported_and_deleted(tab: Watched) -> None:
    begin(tab, "/chat?model=base/tiny")
    ask(tab, "Where is the zanzibar lamp?", 1)
    tab.page.get_by_label("Search conversations").fill("zanzibar")
    item = tab.page.locator(".chat-list li", has_text="zanzibar")
    item.wait_for()
    with tab.page.expect_download() as download:
        tab.page.click("text=Export")
    assert "zanzibar" in Path(download.value.path()).read_text()
    item.hover()
    item.get_by_role("button").click()
    tab.page.click("text=Delete for good")
    item.wait_for(state="detached")


def test_an_upstreams_model_answers_where_there_is_none_here(browser: Any, tmp_path: Path) -> None:
    chunk = b'data: {"choices": [{"delta": {"content": "Yes"}, "finish_reason": "stop"}]}\n\n'
    with odd_server() as upstream:
        upstream.say = lambda handler: stream_reply(handler, chunk, b"data: [DONE]\n\n")
        servers = Servers(Workspace(tmp_path.resolve()), "--upstream", upstream.url)
        tab = Watched(browser, servers.url)
        begin(tab, "/chat")
        assert tab.page.locator(".pane-head option").all_inner_texts() == ["odd"]
        ask(tab, "Turns it?", 1)
        assert tab.page.locator(".answer .markdown").inner_text() == "Yes"
        tab.page.wait_for_selector(".pane-head >> text=ready")
        tab.context.close()
        servers.end()
    assert tab.errors == [] and tab.foreign == []
