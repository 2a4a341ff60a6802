"""The page at `/docs` in a real browser: whole, from this server alone, within its own rules."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from forgellm.guard import GuardSettings
from forgellm.paths import Workspace
from forgellm.web.app import create_app
from serving import PATIENCE_SECONDS, served

pytestmark = pytest.mark.browser
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_docs_show_every_route_with_its_example_and_ask_no_other_site(
    playwright: Any, tmp_path: Path
) -> None:
    asked: list[str] = []
    said: list[str] = []
    app = create_app(Workspace(tmp_path), GuardSettings(), "http://127.0.0.1:1")
    with served(app) as web:
        origin = str(web.base_url).rstrip("/")
        paths = web.get("/openapi.json").json()["paths"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(PATIENCE_SECONDS * 1000)
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.goto(f"{origin}/docs")
        page.wait_for_selector(".opblock")
        assert page.locator(".opblock").count() == sum(map(len, paths.values()))
        block = page.locator(".opblock", has_text="/api/training/start")
        block.locator(".opblock-summary-control").click()
        block.locator(".opblock-body", has_text="my_domain").wait_for()
        browser.close()
    assert [url for url in asked if not url.startswith((f"{origin}/", "data:"))] == []
    assert [text for text in said if "Content Security Policy" in text] == []
