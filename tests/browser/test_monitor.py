"""A run is watched while it trains, from two tabs, over a server that is killed."""

from __future__ import annotations

import argparse
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from playwright.sync_api import expect

from browser.conftest import TINY_RECIPE, Servers, Watched, tiny
from forgellm.cli.train import add_parser, recipe_from
from forgellm.schema.recipe import Recipe, parse_recipe
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
    expect(tab.page.locator(".processes")).to_have_count(0)
    tab.page.click("button:has-text('Stop')")
    tab.page.locator(".page-head .badge:has-text('stopped')").wait_for()
    tab.page.click("button:has-text('Resume')")
    tab.page.locator(".page-head .badge:has-text('training')").wait_for()
    tab.page.click("button:has-text('Stop')")
    tab.page.locator(".page-head .badge:has-text('stopped')").wait_for()
    tab.context.close()
    assert tab.errors == []


def test_a_run_of_two_processes_is_begun_and_watched_on_the_page(
    browser: Any, own: Servers, tmp_path: Path
) -> None:
    (own.workspace.root / "hosts.toml").write_text('[hosts.gpu1]\naddress = "192.0.2.1"\n')
    recipe = TINY_RECIPE | {"max_iterations": 3000, "save_every": 1000, "engine": "torch"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(recipe))
    tab = Watched(browser, own.url, viewport={"width": 1360, "height": 900})
    page = tab.page
    tab.go("/train")
    page.set_input_files("input[type=file]", tmp_path / "run.yaml")
    page.click("text=All fields")
    number = page.get_by_label("nproc_per_node")
    number.fill("2")
    page.get_by_label("gpu1").check()
    page.wait_for_selector(".field.wrong >> text=Must be a multiple of the 4 processes")
    page.get_by_label("gpu1").uncheck()
    page.wait_for_selector("text=2 processes share each batch of 2: 1 sequence for each.")
    page.reload()
    expect(number).to_have_value("2")
    said = recipe_of(page.locator("pre.code").inner_text())
    assert said == parse_recipe(recipe | {"nproc_per_node": 2})

    page.click("button:has-text('Start training')")
    rows = page.locator(".processes tbody tr")
    rows.nth(1).wait_for()
    before = rows.all_inner_texts()
    eventually(lambda: rows.all_inner_texts() != before)
    page.click("button:has-text('Stop')")
    page.locator(".page-head .badge:has-text('stopped')").wait_for()
    page.reload()
    rows.nth(1).wait_for()
    tab.context.close()
    assert tab.errors == []


def recipe_of(command: str) -> Recipe:
    """What a command of the page means to the terminal."""
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    words = shlex.split(command.replace("\\\n", " "))
    given = vars(parser.parse_args(words[1:]))
    fields = {name: given[name] for name in Recipe.model_fields if given[name] is not None}
    return recipe_from(None, fields)
