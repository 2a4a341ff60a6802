"""Text of models, files and names that tries to be more than text: nothing runs, nothing is asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from browser.conftest import Servers, Watched, tiny

# Each sets window.owned when it runs, or asks evil.test for something.
MARKUP = [
    "<script>window.owned=1</script>", "<img src=x onerror=window.owned=1>", "<svg onload=window.owned=1>",
    "<svg><script>window.owned=1</script></svg>", "<body onload=window.owned=1>", "<iframe srcdoc='<script>parent.owned=1</script>'>",
    "<iframe src=javascript:parent.owned=1>", "<object data=javascript:window.owned=1>", "<embed src=javascript:window.owned=1>",
    "<a href=javascript:window.owned=1>x</a>", "<a href=' javascript:window.owned=1'>x</a>", "<a href='java\tscript:window.owned=1'>x</a>",
    "<math><mi xlink:href=javascript:window.owned=1>x</mi></math>", "<form action=javascript:window.owned=1><button>x</button></form>",
    "<input onfocus=window.owned=1 autofocus>", "<details open ontoggle=window.owned=1>x</details>", "<video><source onerror=window.owned=1></video>",
    "<audio src onerror=window.owned=1>", "<marquee onstart=window.owned=1>x</marquee>", "<select autofocus onfocus=window.owned=1>",
    "<textarea autofocus onfocus=window.owned=1>", "<keygen autofocus onfocus=window.owned=1>", "<style>@import url(http://evil.test/a.css)</style>",
    "<link rel=stylesheet href=http://evil.test/b.css>", "<img src=http://evil.test/c.png>", "<img srcset='http://evil.test/d.png 1x'>",
    "<video poster=http://evil.test/e.png></video>", "<base href=http://evil.test/>", "<meta http-equiv=refresh content='0;url=http://evil.test/'>",
    "<div style='background:url(http://evil.test/f.png)'>x</div>", "<table background=http://evil.test/g.png><tr><td>x</table>",
    "<svg><image href=http://evil.test/h.png></svg>", "<svg><use href=http://evil.test/i.svg#x></svg>", "<svg><animate onbegin=window.owned=1 attributeName=x dur=1s>",
    "<noscript><p title='</noscript><img src=x onerror=window.owned=1>'>", "<template><script>window.owned=1</script></template>",
    "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror=window.owned=1&gt;'>",
    "<svg></p><style><a id='</style><img src=1 onerror=window.owned=1>'>", "<x onclick=window.owned=1 tabindex=1 id=x>x</x>",
    "<button popovertarget=p onclick=window.owned=1>x</button>", "<img src=x onerror=&#119;indow.owned=1>", "<scr<script>ipt>window.owned=1</script>",
    "\"><script>window.owned=1</script>", "'><img src=x onerror=window.owned=1>", "</textarea><script>window.owned=1</script>", "</title><script>window.owned=1</script>",
    "<!--><script>window.owned=1</script>", "<![CDATA[<script>window.owned=1</script>]]>",
]  # fmt: skip
MARKDOWN = [
    "[x](javascript:window.owned=1)", "[x](JaVaScRiPt:window.owned=1)", "[x](java&#115;cript:window.owned=1)", "[x](data:text/html,<script>window.owned=1</script>)",
    "[x](vbscript:window.owned=1)", "![x](http://evil.test/j.png)", "![x](javascript:window.owned=1)", "![x](data:image/svg+xml,<svg onload=window.owned=1>)",
    "[![x](http://evil.test/k.png)](http://evil.test/l)", "<javascript:window.owned=1>", "<http://evil.test/m>", "[x]: http://evil.test/n.png\n![x]",
    "[x](<javascript:window.owned=1>)", "```html\n<script>window.owned=1</script>\n```", "```\" onmouseover=window.owned=1 x=\"\ncode\n```", "`<img src=x onerror=window.owned=1>`",
    "# <img src=x onerror=window.owned=1>", "| <img src=x onerror=window.owned=1> |\n|---|\n| x |", "> <script>window.owned=1</script>", "- <svg onload=window.owned=1>",
    "[x](http://a\" onmouseover=\"window.owned=1)", "[x](http://ok.test 'onmouseover=window.owned=1')", "<think><img src=x onerror=window.owned=1></think>after",
]  # fmt: skip
PAYLOADS = MARKUP + MARKDOWN
# Points at, focuses and presses everything in an element, then says what came of it.
TOUCH = """
async (selector) => {
  for (const node of document.querySelectorAll(selector + ' *')) {
    for (const kind of ['mouseover', 'mouseenter', 'focus', 'toggle']) node.dispatchEvent(new Event(kind));
    if (!node.closest('a, button, label')) node.dispatchEvent(new MouseEvent('click', {bubbles: false}));
  }
  await new Promise((done) => setTimeout(done, 300));
  return [window.owned ?? null, [...document.querySelectorAll(selector + ' a')].map((link) => link.protocol)];
}
"""


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Of their own: what is left in them would be in the other tests' way."""
    started = Servers(tiny(tmp_path_factory.mktemp("hostile")))
    started.train()
    yield started
    started.end()


@pytest.fixture
def hostile(browser: Any, servers: Servers) -> Any:
    """A tab on which the policy's own refusals are no error: they are the last line of defence."""
    watched = Watched(browser, servers.url, viewport={"width": 1360, "height": 900})
    yield watched
    watched.context.close()
    assert watched.foreign == []


def unharmed(tab: Watched, selector: str) -> None:
    owned, protocols = tab.page.evaluate(TOUCH, selector)
    assert owned is None and set(protocols) <= {"http:", "https:"}


def test_there_are_enough_payloads() -> None:
    assert len(set(PAYLOADS)) >= 60


def test_answers_and_questions_and_titles(hostile: Watched, servers: Servers) -> None:
    messages: list[dict[str, Any]] = []
    for number, payload in enumerate(PAYLOADS):
        parent = messages[-1]["id"] if messages else None
        messages += [
            {"id": f"q{number}", "parent": parent, "role": "user", "content": payload},
            {
                "id": f"a{number}",
                "parent": f"q{number}",
                "role": "assistant",
                "content": payload,
                "pane": 0,
            },
        ]
    content = {
        "title": MARKUP[1],
        "system": MARKUP[0],
        "panes": [{"model_name": "base/tiny"}],
        "messages": messages,
        "leaf": messages[-1]["id"],
    }
    kept = servers.post("/api/conversations", content)
    hostile.go(f"/chat/{kept['id']}")
    hostile.page.locator(".answer").nth(len(PAYLOADS) - 1).wait_for()
    unharmed(hostile, ".chat")
    hostile.page.click("text=Settings")
    unharmed(hostile, ".chat-settings")


def test_markdown_that_grows_token_by_token(hostile: Watched) -> None:
    """Each state that a stream passes through, two characters at a time, by the page's own component."""
    hostile.go("/chat?model=base/tiny")
    hostile.page.wait_for_selector(".composer")
    grow = """
    async (payloads) => {
      const {html, render} = await import('/static/core/html.js');
      const {Markdown} = await import('/static/components/markdown.js');
      const place = document.createElement('div');
      place.id = 'growing';
      document.body.append(place);
      for (const payload of payloads) {
        for (let end = 1; end <= payload.length; end += 2) {
          render(html`<${Markdown} text=${payload.slice(0, end)} isComplete=${false} />`, place);
          await new Promise((done) => setTimeout(done, 0));
        }
        render(html`<${Markdown} text=${payload} />`, place);
        await new Promise((done) => setTimeout(done, 5));
      }
    }
    """
    hostile.page.evaluate(grow, PAYLOADS)
    unharmed(hostile, "#growing")


def test_logs_samples_warnings_and_names_of_files(hostile: Watched, servers: Servers) -> None:
    name = servers.get("/api/runs")["runs"][0]["name"]
    folder = servers.workspace.runs("cpt") / name
    with (folder / "trainer.log").open("a") as log:
        for payload in PAYLOADS:
            log.write(
                json.dumps(
                    {"timestamp": "2026-01-01T00:00:00Z", "level": "WARNING", "message": payload}
                )
                + "\n"
            )
    with (folder / "samples.jsonl").open("a") as samples:
        for payload in PAYLOADS:
            line = {
                "iteration": 99,
                "prompt": payload,
                "answer": payload,
                "finish_reason": "stop",
                "timestamp": "2026-01-01T00:00:00Z",
            }
            samples.write(json.dumps(line) + "\n")
    record = json.loads((folder / "run.json").read_text())
    record["warnings"] = PAYLOADS
    (folder / "run.json").write_text(json.dumps(record))
    files = servers.workspace.datasets / "named"
    files.mkdir(exist_ok=True)
    for number, payload in enumerate(PAYLOADS):
        shown = payload.replace("/", "∕").replace("\n", " ").replace("\t", " ")[:180]
        (files / f"{number} {shown}.txt").write_text(payload)
    exported = servers.workspace.exported_models / "hostile"
    exported.mkdir(parents=True, exist_ok=True)
    told = {"kind": PAYLOADS[0], "made_from": PAYLOADS, "command": PAYLOADS[1], "created_at": "x"}
    (exported / "lineage.json").write_text(json.dumps(told))
    for address, selector in [
        ("/models?tab=exports", "table"), ("/models?tab=tree", ".tree"), (f"/runs/{name}?tab=log", ".log"), (f"/runs/{name}?tab=samples", ".samples"), (f"/runs/{name}", ".notice"),
        ("/data/named", "table"), ("/data/named?tab=preview", ".tokens"), ("/data/named?tab=inside", ".bars"),
    ]:  # fmt: skip
        hostile.go(address)
        hostile.page.locator(selector).first.wait_for()
        unharmed(hostile, "main")


def test_errors_that_repeat_what_was_sent(hostile: Watched) -> None:
    for payload in MARKUP[:12]:
        part = (
            payload.replace("/", "%2F").replace("?", "%3F").replace("#", "%23").replace("<", "%3C")
        )
        for view in ("runs", "data", "chat"):
            hostile.go(f"/{view}/{part}")
            hostile.page.locator(".notice.bad, .page-head").first.wait_for()
            unharmed(hostile, "main")
