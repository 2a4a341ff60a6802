"""The web page: bytes of the first load, time until it is usable, and how long it is ever blocked.

    PYTHONPATH=tests:scripts python benchmarks/page.py

Measured in Chromium against the real server: a cold load of the start view, then a monitor with a
long curve while new lines of metrics come in as fast as the server hands them on.
"""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright
from rounds import machine
from screenshots import served

from forgellm.paths import iso_utc
from forgellm.runs.lock import RunLock
from forgellm.runs.metrics import MetricsWriter
from forgellm.runs.store import Run, create_run
from forgellm.schema.recipe import parse_recipe
from forgellm.schema.run import RunState
from tiny_workspace import build_tiny_workspace

LOADS = 7
LINES_BEFORE = 100_000
SECONDS = 30.0
LINES_PER_SECOND = 200

LONG_TASKS = """
() => {
  window.longest = 0; window.tasks = 0;
  new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) { window.tasks += 1; window.longest = Math.max(window.longest, entry.duration); }
  }).observe({type: 'longtask', buffered: false});
}
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        workspace = build_tiny_workspace(Path(folder))
        recipe = parse_recipe(
            {"model_name": "base/tiny", "dataset": "notes", "max_iterations": 2 * LINES_BEFORE}
        )
        run = create_run(workspace, recipe.resolved(), 64)
        write_lines(run, 1, LINES_BEFORE)
        with served(workspace.root) as url, sync_playwright() as playwright:
            chromium = shutil.which("chromium") or shutil.which("chromium-browser")
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            loads = [load(browser, url) for _ in range(LOADS)]
            blocked = stream(browser, url, run)
            version = browser.version
            browser.close()
    bytes_loaded = loads[0]["bytes"]
    times = [item["milliseconds"] for item in loads]
    print(f"{machine()}; Chromium {version}")
    print(
        f"first load: {bytes_loaded / 1000:.0f} kB over the wire in {loads[0]['requests']} requests"
    )
    print(
        f"usable after: median {statistics.median(times):.0f} ms, {min(times):.0f} to {max(times):.0f} over {LOADS} cold loads"
    )
    print(
        f"curve of {LINES_BEFORE:,} lines, {blocked['lines']:,} more in {SECONDS:.0f} s: {json.dumps(blocked)}"
    )


def load(browser: Any, url: str) -> dict[str, Any]:
    """A cold load: bytes over the wire as the browser counts them, and time to the first real content."""
    context = browser.new_context()
    page = context.new_page()
    session = context.new_cdp_session(page)
    session.send("Network.enable")
    sizes: list[float] = []
    session.on("Network.loadingFinished", lambda event: sizes.append(event["encodedDataLength"]))
    started = time.perf_counter()
    page.goto(url)
    page.wait_for_selector(".next .button, .next button")
    milliseconds = 1000 * (time.perf_counter() - started)
    page.wait_for_load_state("networkidle")
    context.close()
    return {"bytes": sum(sizes), "requests": len(sizes), "milliseconds": milliseconds}


def stream(browser: Any, url: str, run: Run) -> dict[str, Any]:
    """The longest task of the main thread while a fast run streams into an open monitor."""
    page = browser.new_page(viewport={"width": 1360, "height": 900})
    with RunLock(run.folder).acquire():
        run.write_state(RunState(phase="training", iteration=LINES_BEFORE, heartbeat=iso_utc()))
        page.goto(f"{url}/runs/{run.name}")
        page.wait_for_selector(".chart-canvas canvas")
        page.wait_for_timeout(3000)
        page.evaluate(LONG_TASKS)
        writer = threading.Thread(target=write_slowly, args=(run,))
        writer.start()
        page.wait_for_timeout(1000 * SECONDS)
        writer.join()
        found = page.evaluate(
            "({longest_task_ms: Math.round(window.longest), tasks_over_50_ms: window.tasks})"
        )
    page.close()
    return {**found, "lines": int(SECONDS * LINES_PER_SECOND)}


def write_slowly(run: Run) -> None:
    first = LINES_BEFORE + 1
    for _ in range(int(SECONDS * 10)):
        write_lines(run, first, LINES_PER_SECOND // 10)
        first += LINES_PER_SECOND // 10
        time.sleep(0.1)


def write_lines(run: Run, first: int, count: int) -> None:
    writer = MetricsWriter(run.folder)
    for iteration in range(first, first + count):
        loss = 4 / (1 + iteration / 5000) + (iteration * 7919 % 1000) / 5000
        writer.append(
            iteration=iteration, training_loss=loss, learning_rate=1e-4, tokens_per_second=900.0,
            memory_usage_gb=3.0, grad_norm=0.3, trained_tokens=1024 * iteration,
            validation_loss=loss + 0.1 if iteration % 500 == 0 else None,
        )  # fmt: skip
    writer.close()


if __name__ == "__main__":
    main()
