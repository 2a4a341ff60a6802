"""Every view: it comes again after a reload, has no fault that axe knows, and fits a small screen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from browser.conftest import Servers, Watched

AXE = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"
# What is seen when a view is complete.
VIEWS = {
    "/": "h2:text('This machine')",
    "/train?model=base/tiny&dataset=notes": ".memory-bar",
    "/runs": "table",
    "/runs/{run}": ".chart-canvas canvas",
    "/runs/{run}?tab=checkpoints": "table",
    "/runs/{run}?tab=samples": ".samples",
    "/runs/{run}?tab=recipe": ".facts",
    "/runs/{run}?tab=log": "text=/trainer.log|says little/",
    "/compare?runs={run},{other}": ".chart-canvas canvas",
    "/chat?model=base/tiny": ".composer",
    "/models": "table",
    "/models?tab=exports": "text=/Nothing exported yet|Copy path/",
    "/models?tab=tree": ".tree",
    "/data": ".link-card",
    "/data/notes": "table",
    "/data/notes?tab=inside": ".bars",
    "/data/chats?tab=preview": ".tokens",
    "/data/notes?tab=prepare": "text=A cleaned copy",
}


def address_of(view: str, servers: Servers) -> str:
    runs = [run["name"] for run in servers.get("/api/runs")["runs"]]
    return view.format(run=runs[0], other=runs[1])


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_is_there_again_after_a_reload(tab: Watched, servers: Servers, view: str) -> None:
    tab.go(address_of(view, servers))
    tab.page.wait_for_selector(VIEWS[view])
    heading = tab.page.locator("h1").first.inner_text()
    tab.page.reload()
    tab.page.wait_for_selector(VIEWS[view])
    assert tab.page.locator("h1").first.inner_text() == heading


@pytest.mark.skipif(not AXE.exists(), reason="axe-core is not installed: make lint-page")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("view", VIEWS)
def test_axe_finds_nothing(browser: Any, servers: Servers, view: str, scheme: str) -> None:
    # axe brings its own script, which the page's policy would refuse.
    watched = Watched(browser, servers.url, color_scheme=scheme, bypass_csp=True)
    watched.go(address_of(view, servers))
    watched.page.wait_for_selector(VIEWS[view])
    watched.page.wait_for_timeout(300)
    watched.page.add_script_tag(path=str(AXE))
    found = watched.page.evaluate(
        "axe.run({resultTypes: ['violations']}).then((result) => result.violations)"
    )
    said = [(item["id"], [node["html"][:160] for node in item["nodes"]][:3]) for item in found]
    watched.context.close()
    assert said == []


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_fits_a_small_screen(browser: Any, servers: Servers, view: str) -> None:
    watched = Watched(browser, servers.url, viewport={"width": 360, "height": 740})
    watched.go(address_of(view, servers))
    watched.page.wait_for_selector(VIEWS[view])
    width = watched.page.evaluate("document.documentElement.scrollWidth")
    watched.context.close()
    assert width == 360 and watched.errors == []
