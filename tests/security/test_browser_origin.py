"""A real browser with pages of other origins, DNS rebinding included: they read and change nothing."""

from __future__ import annotations

import http.server
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette

from forgellm.guard import GuardSettings
from forgellm.model_server.app import create_app as create_model_server
from forgellm.model_server.shelf import Shelf
from forgellm.paths import Workspace
from forgellm.runs.store import list_runs
from forgellm.schema.generation import LoadRequest
from forgellm.web.app import create_app as create_web_server
from security.attack import Server, fill
from security.conftest import Servers, set_hub
from serving import eventually, served

pytestmark = pytest.mark.browser
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

# Every way a page has to send a request; resolves to what it could read.
ATTACK = """
async ([target, paths]) => {
  const read = [];
  const within = (work) => Promise.race([work, new Promise(end => setTimeout(end, 3000))]);
  const ask = async (path, options) => {
    try {
      const reply = await fetch(target + path, options);
      const text = await reply.text();
      if (reply.ok && text) read.push([path, JSON.stringify(options), text.slice(0, 80)]);
    } catch (error) { /* refused, as it should be */ }
  };
  const json = {"content-type": "application/json"};
  const body = JSON.stringify({model_name: "tiny", dataset: "notes", max_iterations: 1});
  for (const path of paths) {
    await within(Promise.all([
      ask(path, {}), ask(path, {mode: "no-cors"}), ask(path, {credentials: "include"}),
      ask(path, {method: "POST", mode: "no-cors", body}),
      ask(path, {method: "POST", headers: json, body}),
      ask(path, {method: "POST", body: new URLSearchParams({model_name: "tiny", dataset: "notes"})}),
      ask(path, {method: "DELETE"}), ask(path, {method: "POST", keepalive: true, body}),
    ]));
    navigator.sendBeacon(target + path, new Blob([body], {type: "text/plain"}));
    for (const [tag, key] of [["img", "src"], ["script", "src"], ["iframe", "src"], ["link", "href"]]) {
      const element = document.createElement(tag);
      if (tag === "link") element.rel = "stylesheet";
      element[key] = target + path;
      await within(new Promise(end => {
        element.onload = () => { if (tag !== "iframe") read.push([path, tag, ""]); end(); };
        element.onerror = end;
        document.body.append(element);
      }));
      try {
        const text = tag === "iframe" ? element.contentDocument?.body?.innerText : "";
        if (text) read.push([path, tag, text.slice(0, 80)]);
      } catch (error) { /* another origin */ }
      element.remove();
    }
  }
  const socket = new WebSocket(target.replace("http", "ws") + "/socket.io/?EIO=4&transport=websocket");
  await within(new Promise(end => {
    socket.onopen = () => { read.push(["websocket", "", ""]); end(); };
    socket.onerror = end;
  }));
  await ask("/socket.io/?EIO=4&transport=polling", {});
  return read;
}
"""
FORM = """
([target, kind]) => {
  const form = document.createElement("form");
  form.action = target; form.method = "POST"; form.enctype = kind;
  const field = document.createElement("input");
  field.name = '{"model_name":"tiny","dataset":"notes","a":"'; field.value = '"}';
  form.append(field); document.body.append(form); form.submit();
}
"""


class _BlankPage(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><body>another site</body>")

    def log_message(self, *arguments: Any) -> None:
        pass


@contextmanager
def other_site() -> Iterator[int]:
    site = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _BlankPage)
    thread = threading.Thread(target=site.serve_forever)
    thread.start()
    try:
        yield site.server_address[1]
    finally:
        site.shutdown()
        thread.join()
        site.server_close()


@pytest.fixture(scope="module")
def ports(workspace: Workspace) -> Iterator[dict[str, int]]:
    with pytest.MonkeyPatch.context() as patch, served(Starlette()) as hub:
        set_hub(patch, str(hub.base_url), workspace)
        shelf = Shelf(workspace)
        shelf.load(LoadRequest(model_name="tiny"))
        model_app = create_model_server(shelf, GuardSettings())
        with served(model_app) as model:
            web_app = create_web_server(workspace, GuardSettings(), str(model.base_url))
            with served(web_app) as web:
                yield {"web": web.base_url.port or 0, "model": model.base_url.port or 0}


@pytest.fixture(scope="module")
def browser(playwright: Any) -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    rules = "--host-resolver-rules=MAP evil.test 127.0.0.1, MAP other.test 127.0.0.1"
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", rules])
    yield browser
    browser.close()


def page_at(browser: Any, url: str) -> Any:
    page = browser.new_page()
    page.goto(url)
    return page


def paths_of(server: Server) -> list[str]:
    """Every route, those of a run with the name of one that is there."""
    [run] = list_runs(Workspace(server.workspace))
    return [fill(path, run.name) for path in server.paths() if "socket.io" not in path]


def state_of(server: Server, ports: dict[str, int]) -> tuple[dict[str, str], Any]:
    """The workspace, byte by byte, and what the model server holds."""
    status = httpx2.get(f"http://localhost:{ports['model']}/api/model/status").json()
    return server.state(), status["loaded"]


@pytest.mark.parametrize("page_host", ["evil.test", "localhost", "127.0.0.1"])
@pytest.mark.parametrize("name", ["web", "model"])
def test_page_of_another_origin_reads_and_changes_nothing(
    browser: Any, servers: Servers, ports: dict[str, int], page_host: str, name: str
) -> None:
    server: Server = getattr(servers, name)
    eventually(lambda: state_of(server, ports)[1])
    before = state_of(server, ports)
    with other_site() as site_port:
        page = page_at(browser, f"http://{page_host}:{site_port}/")
        target = f"http://localhost:{ports[name]}"
        assert page.evaluate(ATTACK, [target, paths_of(server)]) == []
        for path in ("/api/training/start", "/api/training/stop", "/api/model/unload"):
            for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
                form_page = page_at(browser, f"http://{page_host}:{site_port}/")
                with form_page.expect_navigation():
                    form_page.evaluate(FORM, [target + path, kind])
                assert "CROSS_ORIGIN" in form_page.content() or "NOT_FOUND" in form_page.content()
                form_page.close()
        page.close()
    assert state_of(server, ports) == before


@pytest.mark.parametrize("name", ["web", "model"])
def test_rebound_page_reads_and_changes_nothing(
    browser: Any, servers: Servers, ports: dict[str, int], name: str
) -> None:
    """Its name now leads to this server, so to the browser all of it is one origin."""
    server: Server = getattr(servers, name)
    eventually(lambda: state_of(server, ports)[1])
    before = state_of(server, ports)
    target = f"http://evil.test:{ports[name]}"
    page = page_at(browser, target + "/")
    assert "HOST_NOT_ALLOWED" in page.content()
    # Refused replies forbid scripts to connect, so the page is taken from where it was served.
    page.route(
        "**/page", lambda route: route.fulfill(body="<body></body>", content_type="text/html")
    )
    page.goto(target + "/page")
    assert page.evaluate(ATTACK, [target, paths_of(server)]) == []
    page.close()
    assert state_of(server, ports) == before
