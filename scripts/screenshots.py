"""Pictures of every view, light and dark, wide and narrow, to be looked at one by one.

    make demo && make screenshots          # of the demo's workspace, into screenshots/

The pages are real: real servers on the workspace, a real question to the demo's models. It needs
Chromium. `--readme` also puts the four pictures of the README into docs/images/.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
from playwright.sync_api import Page, expect, sync_playwright

QUESTION = "Who lights the lamps of the village?"
README = {"runs-curves": "monitor", "chat": "chat", "train": "train", "start-dark": "start"}
IMAGES = Path(__file__).parents[1] / "docs" / "images"
WIDE, NARROW = {"width": 1360, "height": 860}, {"width": 390, "height": 844}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workspace", type=Path, default=Path("workspace"))
    parser.add_argument("--out", type=Path, default=Path("screenshots"))
    parser.add_argument("--readme", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(exist_ok=True)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with served(args.workspace) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        views = views_of(url)
        views["chat"] = (talked(browser, url, views["chat"][0]), ".answer .message-tools")
        for scheme in ("light", "dark"):
            for size, name in ((WIDE, ""), (NARROW, "-narrow")):
                context = browser.new_context(viewport=size, color_scheme=scheme)
                page = context.new_page()
                for view, (address, sign) in views.items():
                    suffix = "-dark" if scheme == "dark" else ""
                    take(page, url + address, sign, args.out / f"{view}{suffix}{name}.png")
                context.close()
        browser.close()
    if args.readme:
        IMAGES.mkdir(parents=True, exist_ok=True)
        for picture, name in README.items():
            shutil.copyfile(args.out / f"{picture}.png", IMAGES / f"{name}.png")


def views_of(url: str) -> dict[str, tuple[str, str]]:
    """Address and sign of completeness of each view."""
    runs = httpx2.get(f"{url}/api/runs", timeout=60).json()["runs"]
    best, others = runs[0], ",".join(run["name"] for run in runs[:4])
    run, dataset = f"/runs/{best['name']}", f"/data/{best['dataset']}"
    return {
        "start": ("/", "h2:text('This machine')"),
        "train": (f"/train?clone={best['name']}", ".memory-bar"),
        "runs": ("/runs", "table"),
        "runs-curves": (run, ".chart-canvas canvas"),
        "runs-checkpoints": (f"{run}?tab=checkpoints", "table"),
        "runs-answers": (f"{run}?tab=samples", "main h1"),
        "runs-recipe": (f"{run}?tab=recipe", ".facts"),
        "runs-log": (f"{run}?tab=log", "main h1"),
        "compare": (f"/compare?runs={others}", ".chart-canvas canvas"),
        "chat": (f"/chat?run={best['name']}", ".composer"),
        "models": ("/models", "table"),
        "models-exports": ("/models?tab=exports", "table, .empty"),
        "models-tree": ("/models?tab=tree", ".tree"),
        "data": ("/data", ".link-card"),
        "data-files": (dataset, "table"),
        "data-inside": (f"{dataset}?tab=inside", ".bars"),
        "data-preview": (f"{dataset}?tab=preview", ".tokens"),
        "data-clean": (f"{dataset}?tab=prepare", "main h1"),
    }


def talked(browser: Any, url: str, address: str) -> str:
    """Ask the base and the taught model side by side; the address of the conversation."""
    page = browser.new_page(viewport=WIDE)
    page.set_default_timeout(600_000)
    page.goto(url + address)
    page.fill(".composer textarea", QUESTION)
    page.keyboard.press("Enter")
    expect(page.locator(".answer .message-tools")).to_have_count(2, timeout=600_000)
    page.wait_for_timeout(1000)
    found = str(page.evaluate("location.pathname"))
    page.close()
    return found


def take(page: Page, address: str, sign: str, picture: Path) -> None:
    page.goto(address)
    page.locator(sign).first.wait_for(timeout=120_000)
    page.wait_for_timeout(800)
    is_chat = "/chat" in address
    page.screenshot(path=picture, full_page=not is_chat)
    print(picture)


@contextlib.contextmanager
def served(workspace: Path) -> Iterator[str]:
    web_port, server_port = free_port(), free_port()
    ports = ["--web-port", str(web_port), "--server-port", str(server_port)]
    command = [sys.executable, "-m", "forgellm", "start", "--workspace", str(workspace)]
    process = subprocess.Popen([*command, *ports], stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{web_port}"
    try:
        while not is_up(url):
            if process.poll() is not None:
                sys.exit("the servers ended")
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait()


def is_up(url: str) -> bool:
    with contextlib.suppress(httpx2.HTTPError):
        reply = httpx2.get(f"{url}/api/health").json()
        return bool(reply["components"]["model_server"] == "running")
    return False


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


if __name__ == "__main__":
    main()
