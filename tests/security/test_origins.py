"""Requests as browsers send them for pages of other sites: none gets past the guard, on any route."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator

import pytest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from forgellm.guard import Guard, GuardSettings
from security.attack import (
    Answer,
    Ask,
    Server,
    ask_app,
    check_failure,
    check_reveals_nothing,
    connect,
    fill,
)
from serving import eventually

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
SITES = (None, "same-origin", "none", "same-site", "cross-site")
OWN = "http://localhost:5002"
ORIGINS = (
    None,
    OWN,
    "null",
    "http://evil.test",
    "http://localhost.evil:5002",
    "http://localhost:3000",
)
BODIES = {
    None: b"",
    "application/json": b"{}",
    "text/plain": b'{"model_name":"tiny","dataset":"notes"}',
    "application/x-www-form-urlencoded": b"model_name=tiny",
    "multipart/form-data; boundary=x": b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--x--\r\n',
}


def is_own(ask: Ask) -> bool:
    headers = dict(ask.headers)
    return headers.get("origin", OWN) == OWN and headers.get("sec-fetch-site", "none") in (
        "none",
        "same-origin",
    )


def matrix(path: str) -> Iterator[Ask]:
    for method, site, origin, kind in itertools.product(METHODS, SITES, ORIGINS, BODIES):
        sent = {"sec-fetch-site": site, "origin": origin, "content-type": kind}
        headers = tuple((name, value) for name, value in sent.items() if value is not None)
        yield Ask(method, path, headers, (BODIES[kind],))


def check_refused(answer: Answer) -> None:
    if answer.ask.method == "HEAD":
        assert answer.status == 403, answer
        check_reveals_nothing(answer)
    else:
        assert check_failure(answer)["error_code"] == "CROSS_ORIGIN", answer


def test_what_other_sites_send_is_refused_on_every_route_and_changes_nothing(
    server: Server,
) -> None:
    before = server.state()
    for path in server.paths():
        foreign = [ask for ask in matrix(fill(path)) if not is_own(ask)]
        assert len(foreign) > 700
        for answer in server.ask(*foreign):
            check_refused(answer)
    assert server.state() == before


def test_what_own_pages_and_tools_send_gets_through() -> None:
    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        await Response(status_code=204)(scope, receive, send)

    async def ask_all() -> None:
        guard = Guard(inner, GuardSettings())
        for ask in filter(is_own, matrix("/api/model/load")):
            assert (await ask_app(guard, ask)).status == 204

    asyncio.run(ask_all())


def test_no_reply_invites_other_sites(server: Server) -> None:
    """Not on success, not on 404, 405 or 400, not to a preflight."""
    preflight = (("origin", OWN), ("access-control-request-method", "POST"),
                 ("access-control-request-private-network", "true"))  # fmt: skip
    for path in server.paths():
        asks = [Ask(method, fill(path), preflight) for method in (*METHODS, "TRACE", "ANYTHING")]
        for answer in server.ask(*asks):
            assert answer.status != 500, answer
            check_reveals_nothing(answer)
    wait_for_jobs(server)


def wait_for_jobs(server: Server) -> None:
    """A job that an own page's POST began works in the workspace, at which other tests look."""

    def are_over() -> bool:
        [answer] = server.ask(Ask("GET", "/api/jobs"))
        jobs = answer.json().get("jobs", [])  # the model server has none
        return not any(job["status"] in ("queued", "running") for job in jobs)

    eventually(are_over)


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        *({"origin": origin} for origin in ORIGINS[2:]),
        {"origin": OWN, "sec-fetch-site": "cross-site"},
        {"origin": "http://evil.test", "sec-fetch-site": "same-origin"},
    ],
)
def test_websocket_handshake_of_another_site_is_refused_on_every_route(
    server: Server, headers: dict[str, str]
) -> None:
    for path in server.paths():
        ask = Ask("GET", fill(path), tuple(headers.items()), query="EIO=4&transport=websocket")
        assert asyncio.run(connect(server.app, ask)) == ["websocket.close"], ask


def test_link_from_another_site_opens_a_page_but_embeds_nothing(server: Server) -> None:
    link = (("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate"))
    for dest, is_refused in (("document", False), ("iframe", True), ("embed", True)):
        [answer] = server.ask(Ask("GET", "/api/health", (*link, ("sec-fetch-dest", dest))))
        assert (answer.status == 403) is is_refused, answer


def test_routes_that_change_something_take_no_get(server: Server) -> None:
    """A link or an image is a GET, so none may do what a POST does."""
    before = server.state()
    paths = {fill(path) for method, path, _ in server.operations("GET")}
    for answer in server.ask(*(Ask("GET", path) for path in paths if "download" not in path)):
        assert answer.status != 500, answer
    assert server.state() == before
