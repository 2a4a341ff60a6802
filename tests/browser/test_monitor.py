"""A run is watched while it trains, from two tabs, over a server that is killed."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from browser.conftest import TINY_RECIPE, Servers, Watched, tiny
from serving import eventually

POINTS = """
async () => {
  const charts = document.querySelectorAll('.chart-canvas');
  return charts.length ? Number(charts[0].getAttribute('aria-label').match(/over (\\d+) points/)?.[1] ?? 0) : 0;
}
"""


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Servers]:
    started = Servers(tiny(tmp_path))
    yield started
    started.end()


def open_run(browser: Any, servers: Servers, training_id: str) -> Watched:
    tab = Watched(browser, servers.url, viewport={"width": 1360, "height": 900})
    tab.go(f"/runs/{training_id}")
    tab.page.wait_for_selector(".chart-canvas canvas")
    return tab


def test_two_tabs_see_the_same_curve_to_its_end_across_a_killed_server(
    browser: Any, own: Servers
) -> None:
    begun = own.post("/api/training/start", TINY_RECIPE | {"max_iterations": 400, "save_every": 50})
    tabs = [open_run(browser, own, begun["training_id"]) for _ in range(2)]
    before = tabs[0].page.evaluate(POINTS)
    own.process.send_signal(signal.SIGKILL)
    own.process.wait()
    for tab in tabs:
        tab.page.wait_for_selector("text=The server does not answer")
    own.start()
    for tab in tabs:
        tab.page.locator(".page-head .badge:has-text('completed')").wait_for()
        eventually(lambda tab=tab: tab.page.evaluate(POINTS) >= 401)
        assert before < 401
        tab.context.close()
        assert tab.errors == []


def test_a_stopped_run_is_resumed_from_the_page(browser: Any, own: Servers) -> None:
    begun = own.post(
        "/api/training/start", TINY_RECIPE | {"max_iterations": 3000, "save_every": 1000}
    )
    tab = open_run(browser, own, begun["training_id"])
    tab.page.click("button:has-text('Stop')")
    tab.page.locator(".page-head .badge:has-text('stopped')").wait_for()
    tab.page.click("button:has-text('Resume')")
    tab.page.locator(".page-head .badge:has-text('training')").wait_for()
    tab.page.click("button:has-text('Stop')")
    tab.page.locator(".page-head .badge:has-text('stopped')").wait_for()
    tab.context.close()
    assert tab.errors == []
