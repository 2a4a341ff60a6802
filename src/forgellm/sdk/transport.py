"""Requests to a server, and its replies as dicts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Self

import httpx2

from forgellm.sdk.replies import Reply, error_of, no_answer
from forgellm.sdk.streams import read_items

_NDJSON = "application/x-ndjson"
_CONNECT_SECONDS = 10.0


class Transport:
    """A server's address, and the connections to it.

    Args:
        raise_errors: raise a reply that is an error envelope instead of returning it.
        timeout_seconds: for a whole answer. Generating waits for a model that is still loading.
        token: for a server on another machine, as it was printed there.
    """

    def __init__(
        self,
        base_url: str = "http://localhost:5002",
        *,
        raise_errors: bool = False,
        timeout_seconds: float | None = 660.0,
        token: str | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.raise_errors = raise_errors
        self._http = httpx2.Client(
            base_url=self.base_url,
            timeout=httpx2.Timeout(timeout_seconds, connect=_CONNECT_SECONDS),
            headers={"authorization": f"Bearer {token}"} if token else None,
            trust_env=False,  # a proxy for the internet has no business on the way to this server
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def _get(self, route: str, **params: str | int | None) -> Reply:
        return self._send("GET", route, params=given(params))

    def _post(self, route: str, body: Mapping[str, Any] | None = None) -> Reply:
        return self._send("POST", route, **({} if body is None else {"json": body}))

    def _put(self, route: str, body: Mapping[str, Any]) -> Reply:
        return self._send("PUT", route, json=body)

    def _get_rows(self, route: str, **params: str) -> Reply:
        """A reply of one JSON object a line, as `rows` in one reply."""
        reply = self._request("GET", route, params=params)
        if reply.status_code != 200:
            return self._checked(reply)
        return {"success": True, "rows": [json.loads(line) for line in reply.content.splitlines()]}

    def _delete(self, route: str) -> Reply:
        return self._send("DELETE", route)

    def _send(self, method: str, route: str, **content: Any) -> Reply:
        return self._checked(self._request(method, route, **content))

    def _request(self, method: str, route: str, **content: Any) -> httpx2.Response:
        try:
            return self._http.request(method, route, **content)
        except httpx2.HTTPError as problem:
            raise self._no_answer(problem) from problem

    def _checked(self, reply: httpx2.Response) -> Reply:
        found = self._parsed(reply)
        if self.raise_errors and not found["success"]:
            raise error_of(found, reply.status_code)
        return found

    def _stream(self, route: str, body: Mapping[str, Any]) -> Iterator[str]:
        """The texts of a streamed answer. Raises ForgeError."""
        try:
            with self._http.stream("POST", route, json=body, headers={"accept": _NDJSON}) as reply:
                if reply.status_code != 200:
                    reply.read()
                    raise error_of(self._parsed(reply), reply.status_code)
                yield from read_items(reply.iter_lines())
        except httpx2.HTTPError as problem:
            raise self._no_answer(problem) from problem

    def _parsed(self, reply: httpx2.Response) -> Reply:
        try:
            found = json.loads(reply.content)
        except ValueError:
            found = None
        if not isinstance(found, dict) or "success" not in found:
            raise no_answer(self.base_url, f"its reply ({reply.status_code}) is not ForgeLLM's")
        return found

    def _no_answer(self, problem: Exception) -> Exception:
        is_late = isinstance(problem, httpx2.TimeoutException)
        return no_answer(self.base_url, "timed out" if is_late else str(problem))


def given(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are not None."""
    return {name: value for name, value in fields.items() if value is not None}
