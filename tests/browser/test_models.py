"""From a checkpoint to what others can use, on the page alone: published, exported, quantised,
combined; each is there after a reload, and what it came from is shown."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import expect

from browser.conftest import Servers, Watched

LONG = 300_000  # each piece of work is a process that steps back behind everything else


@pytest.fixture(autouse=True)
def patient(tab: Watched) -> None:
    tab.page.set_default_timeout(LONG)


def test_an_adapter_is_exported_from_its_checkpoint_and_deleted(
    tab: Watched, servers: Servers
) -> None:
    page, run = tab.page, servers.get("/api/runs")["runs"][0]["name"]
    tab.go(f"/runs/{run}?tab=checkpoints")
    page.locator("tr.best").get_by_role("button", name="Export").click()
    press(page, "Export")
    page.click(".notice.good a")
    row = page.locator("tr", has_text="adapter_model.safetensors")
    expect(row).to_contain_text(f"{run}@12")
    row.get_by_role("button", name="Delete").click()
    press(page, "Delete for good")
    expect(row).to_have_count(0)
    exports = servers.get("/api/models/exports")["exports"]
    assert not any("adapter_model.safetensors" in export["files"] for export in exports)


def test_a_checkpoint_is_published_and_more_is_made_of_it(tab: Watched, servers: Servers) -> None:
    page, run = tab.page, servers.get("/api/runs")["runs"][0]["name"]
    tab.go(f"/runs/{run}?tab=checkpoints")
    page.locator("tr.best").get_by_role("button", name="Publish").click()
    page.get_by_role("dialog").get_by_text("float32", exact=True).click()
    press(page, "Publish")
    page.locator(".notice.good", has_text="Published as").wait_for()
    published = page.locator(".notice.good a").inner_text()

    tab.go("/models")
    page.locator(".notice.good", has_text="Published as").wait_for()
    make(page, published)
    press(page, "Quantise")
    page.locator(".notice.good", has_text="Quantised to").wait_for()
    make(page, published, "Export as GGUF")
    press(page, "Export")
    page.locator(".notice.good", has_text="Exported to").wait_for()
    make(page, published, "Push to the hub")
    page.get_by_label("Repository").fill("me/tiny")
    press(page, "Only list what would be sent")
    expect(page.locator(".notice.good", has_text="Nothing was sent")).to_contain_text("config.json")

    page.click("text=What came from what")
    page.reload()
    made = page.locator(f".tree li:has(> .row:has-text('{run}@12')) > .tree .member")
    expect(made.filter(has_text="published/")).to_have_count(2)
    expect(made.filter(has_text="exported/")).to_have_count(1)
    row = page.locator(".tree .row", has_text="exported/")
    row.get_by_role("button", name="Copy command").click()
    assert "forgellm models export" in page.evaluate("navigator.clipboard.readText()")


def test_two_runs_are_combined(tab: Watched) -> None:
    page = tab.page
    tab.go("/models")
    page.click("text=Combine adapters")
    boxes = page.get_by_role("dialog").get_by_role("checkbox")
    boxes.nth(0).check()
    boxes.nth(1).check()
    page.get_by_label("Weight").first.fill("0.75")
    page.get_by_label("Name").fill("both")
    press(page, "Combine")
    page.locator(".notice.good", has_text="Combined to published/both: 0.75 of").wait_for()
    page.locator("tr", has_text="published/both").wait_for()


def test_a_refusal_is_said_in_the_form_and_nothing_is_lost(tab: Watched) -> None:
    page = tab.page
    tab.go("/models")
    make(page, "base/tiny", "Export as GGUF")
    page.get_by_label("Weights are stored as").select_option("Q4_K_M")
    press(page, "Export")
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("alert")).to_contain_text("llama-quantize")
    expect(dialog.get_by_label("Weights are stored as")).to_have_value("Q4_K_M")


def make(page: Any, model: str, way: str | None = None) -> None:
    row = page.locator("tr", has=page.get_by_text(model, exact=True))
    row.get_by_role("button", name="Export").click()
    if way is not None:
        page.get_by_role("dialog").get_by_text(way, exact=True).click()


def press(page: Any, name: str) -> None:
    page.get_by_role("dialog").get_by_role("button", name=name, exact=True).click()
