"""Bodies no client library would send: each is refused in the right shape, none breaks the server."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from forgellm.paths import Workspace
from forgellm.runs.store import list_runs
from security.attack import (
    SECRET,
    Answer,
    Ask,
    Server,
    check_failure,
    check_reveals_nothing,
    fill,
)
from security.conftest import Servers
from security.corpus import chunked_bodies, raw_bodies, usual_request, wrong_fields

JSON = (("content-type", "application/json"),)
HUGE = 20_000_000
_BOUNDS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")


def posts(server: Server) -> Iterator[tuple[str, dict[str, Any]]]:
    for _, path, operation in server.operations("POST"):
        yield fill(path), server.schema(operation)


def check(answer: Answer, *, may_pass: bool = False) -> None:
    """A refusal that repeats nothing but the name of what is not there, or not loaded; or a
    success, where the body is not needed."""
    if answer.status < 400:
        assert may_pass, answer
        check_reveals_nothing(answer)
        return
    found = check_failure(answer)
    assert answer.status in (404, 409) or SECRET not in answer.body.decode(), answer
    assert answer.status == 404 or len(answer.body) < 20_000, answer
    if answer.status == 400 and "success" in found and "problems" in found["details"]:
        assert all(problem["field"] for problem in found["details"]["problems"]), answer


def is_needless(body: bytes, schema: dict[str, Any]) -> bool:
    """Whether a request may do without what the body lacks."""
    is_empty = body.strip() in (b"", b"null", b"{}")
    return not schema or (is_empty and not schema.get("required"))


def test_broken_json_is_refused_by_every_post(server: Server) -> None:
    bodies = raw_bodies()
    assert len(bodies) >= 300
    for path, schema in posts(server):
        for answer in server.ask(*(Ask("POST", path, JSON, (body,)) for body in bodies)):
            check(answer, may_pass=is_needless(b"".join(answer.ask.chunks), schema))


def test_odd_pieces_are_put_together_and_counted(server: Server) -> None:
    for path, schema in posts(server):
        for answer in server.ask(*(Ask("POST", path, JSON, pieces) for pieces in chunked_bodies())):
            check(answer, may_pass=is_needless(b"".join(answer.ask.chunks), schema))


def test_bodies_of_20_mb_are_refused_before_they_are_read(server: Server) -> None:
    length = (*JSON, ("content-length", str(HUGE)))
    for path, _ in posts(server):
        for headers in (length, (*JSON, ("content-length", "9" * 30))):
            [answer] = server.ask(Ask("POST", path, headers, (b"a" * 1000,)))
            assert answer.status == 413 and check_failure(answer)["error_code"] == "BODY_TOO_LARGE"


@pytest.mark.parametrize(
    "kind",
    [None, "", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data",
     "multipart/form-data; boundary=x", "application/xml", "application/octet-stream", "json", "*/*",
     "text/plain; application/json", "application/jsonx", "\xff", "a" * 2000],
)  # fmt: skip
def test_only_json_is_taken_for_json(server: Server, kind: str | None) -> None:
    headers = () if kind is None else (("content-type", kind),)
    for path, schema in posts(server):
        body = orjson.dumps(usual_request(server, schema))
        [answer] = server.ask(Ask("POST", path, headers, (body,)))
        check(answer, may_pass=not schema.get("required"))


def test_wrong_type_of_any_field_is_refused_without_repeating_it(server: Server) -> None:
    for path, schema in posts(server):
        bodies = list(wrong_fields(server, schema)) if schema else []
        for answer in server.ask(*(Ask("POST", path, JSON, (body,)) for body in bodies)):
            check(answer, may_pass=True)


def numeric_fields(server: Server) -> Iterator[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    """Path, name, schema of the field, and a request that has it."""
    for method, path, operation in server.operations():
        schema = server.schema(operation)
        for name, field in schema.get("properties", {}).items():
            for option in server.resolve(field).get("anyOf", [field]):
                if server.resolve(option).get("type") in ("integer", "number"):
                    request = usual_request(server, schema)
                    yield f"{method} {fill(path)}", name, server.resolve(option), request


def test_every_number_of_a_request_has_bounds(server: Server) -> None:
    unbounded = {
        (place, name)
        for place, name, field, _ in numeric_fields(server)
        if "enum" not in field
        and not (field.keys() & set(_BOUNDS[:2]) and field.keys() & set(_BOUNDS[2:]))
    }
    assert not unbounded


def test_numbers_at_and_beyond_their_bounds(server: Server) -> None:
    for place, name, field, request in numeric_fields(server):
        method, _, path = place.partition(" ")
        bounds = {bound: field[bound] for bound in _BOUNDS if bound in field}
        tried = [0, -0.0, -1, 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 1e308, -1e308, 5e-324]
        tried += [bound + step for bound in bounds.values() for step in (-1, 0, 1)]
        tried += [
            math.nextafter(bound, sign * math.inf) for bound in bounds.values() for sign in (1, -1)
        ]
        asks = [
            Ask(method, path, JSON, (orjson.dumps(request | {name: value}),)) for value in tried
        ]
        for value, answer in zip(tried, server.ask(*asks), strict=True):
            check(answer, may_pass=True)
            if _is_outside(value, bounds) or value not in field.get("enum", [value]):
                assert answer.status == 400 and name.encode() in answer.body, (name, value, answer)


def typed_fields(
    server: Server, schema: dict[str, Any]
) -> Iterator[tuple[str, set[str], dict[str, Any]]]:
    """Field, the types it may have, and a request that has it; also of an object in a request."""
    request = usual_request(server, schema)
    for name, field in server.resolve(schema).get("properties", {}).items():
        field = server.resolve(field)
        options = [server.resolve(option) for option in field.get("anyOf", [field])]
        yield name, {str(option.get("type")) for option in options}, request
        if field.get("type") == "object":
            for inner, kinds, value in typed_fields(server, field):
                yield inner, kinds, request | {name: value, "\0": name}


def with_value(request: dict[str, Any], name: str, value: Any) -> bytes:
    request = dict(request)
    if place := request.pop("\0", None):
        return orjson.dumps(request | {place: request[place] | {name: value}})
    return orjson.dumps(request | {name: value})


def test_no_type_passes_for_another(server: Server, workspace: Workspace) -> None:
    """What a lax reader would take for a number or a truth value is refused by the field's name."""
    likenesses = {"boolean": (0, 1, 1.0, "true", "yes", "0"), "integer": ("1", "1.0", True, 1.5)}
    likenesses["number"] = ("1", "0.5", True)
    num_tried = 0
    [run] = list_runs(workspace)
    for _, path, operation in server.operations("POST"):
        schema = server.schema(operation)
        for name, kinds, request in typed_fields(server, schema):
            if "string" in kinds or not (wanted := kinds & likenesses.keys()):
                continue
            bodies = [with_value(request, name, value) for value in likenesses[wanted.pop()]]
            asks = [Ask("POST", fill(path, run.name), JSON, (body,)) for body in bodies]
            for answer in server.ask(*asks):
                assert answer.status == 400 and name in answer.body.decode(), (name, answer)
                num_tried += 1
    assert num_tried > 50


def test_whole_numbers_may_be_written_with_a_fraction_of_zero(servers: Servers) -> None:
    body = b'{"model_name": "absent", "dataset": "notes", "max_iterations": 5.0, "batch_size": 0.0}'
    [answer] = servers.web.ask(Ask("POST", "/api/training/start", JSON, (body,)))
    assert answer.status == 400
    assert [problem["field"] for problem in answer.json()["details"]["problems"]] == ["batch_size"]
    # Below the bound by one; as a float it would be the bound.
    body = b'{"model": "tiny", "prompt": "a", "seed": -9223372036854775809}'
    [answer] = servers.model.ask(Ask("POST", "/v1/completions", JSON, (body,)))
    assert answer.status == 400 and answer.json()["error"]["param"] == "seed"


def _is_outside(value: float, bounds: dict[str, float]) -> bool:
    return (
        value < bounds.get("minimum", -math.inf)
        or value > bounds.get("maximum", math.inf)
        or value <= bounds.get("exclusiveMinimum", -math.inf)
        or value >= bounds.get("exclusiveMaximum", math.inf)
    )
