"""Every failure leaves as the spec's envelope, and nothing of the inside with it."""

from __future__ import annotations

import math
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from pydantic import BaseModel, ConfigDict, Field
from starlette.testclient import TestClient

from forgellm import envelope
from forgellm.errors import ForgeError, ModelNotFound, OutOfMemory, Unavailable

JSON = {"content-type": "application/json"}
SECRET = "do-not-echo-4711"


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    count: int = Field(1, ge=0, le=10)
    share: float = 0.5
    name: str = ""
    parts: list[dict[str, int]] = []


def make_client() -> TestClient:
    app = FastAPI(default_response_class=envelope.ForgeJSONResponse)
    envelope.install(app)
    router = APIRouter(route_class=envelope.JsonRoute)

    @router.post("/body")
    def body(body: Body) -> dict[str, Any]:
        return {"success": True, "name": body.name}

    @router.get("/number")
    def number(at: int = 0) -> dict[str, Any]:
        return {"nan": math.nan, "infinite": [math.inf, 1.5], "at": at}

    @router.get("/fail/{kind}")
    def fail(kind: str) -> None:
        if kind == "bug":
            raise RuntimeError(f"{SECRET} in /home/someone")
        errors: dict[str, ForgeError] = {
            "missing": ModelNotFound("a/b", ["models/base/"]),
            "busy": Unavailable("busy"),
            "memory": OutOfMemory("out of memory"),
        }
        raise errors[kind]

    app.include_router(router)
    return TestClient(app, raise_server_exceptions=False)


def check(reply: Any, status: int, code: str) -> dict[str, Any]:
    found: dict[str, Any] = reply.json()
    assert set(found) == {"success", "error", "error_code", "details", "suggestion"}
    assert found["success"] is False and found["error"]
    assert (reply.status_code, found["error_code"]) == (status, code)
    assert SECRET not in reply.text and "Traceback" not in reply.text
    return found


def test_forge_error_leaves_with_its_status_and_suggestion() -> None:
    found = check(make_client().get("/fail/missing"), 404, "MODEL_NOT_FOUND")
    assert found["details"]["searched_paths"] == ["models/base/"]
    assert "a/b" in found["suggestion"]
    check(make_client().get("/fail/memory"), 500, "OUT_OF_MEMORY")


def test_unavailable_says_when_to_try_again() -> None:
    reply = make_client().get("/fail/busy")
    check(reply, 503, "UNAVAILABLE")
    assert int(reply.headers["retry-after"]) > 0


def test_unexpected_error_reveals_nothing() -> None:
    check(make_client().get("/fail/bug"), 500, "INTERNAL_ERROR")


def test_unknown_route_and_wrong_method() -> None:
    check(make_client().get("/nothing"), 404, "NOT_FOUND")
    reply = make_client().put("/body")
    check(reply, 405, "METHOD_NOT_ALLOWED")
    assert reply.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("sent", "field"),
    [
        ({"count": SECRET}, "count"),
        ({"count": 11}, "count"),
        ({"other": SECRET}, "other"),
        ({"parts": [{"a": SECRET}]}, "parts.a"),
    ],
)
def test_wrong_field_is_named_and_not_echoed(sent: dict[str, Any], field: str) -> None:
    found = check(make_client().post("/body", json=sent), 400, "INVALID_REQUEST")
    assert [problem["field"] for problem in found["details"]["problems"]] == [field]
    assert field in found["error"]


def test_wrong_query_parameter_is_named() -> None:
    found = check(make_client().get("/number?at=x"), 400, "INVALID_REQUEST")
    assert found["details"]["problems"][0]["field"] == "at"


@pytest.mark.parametrize(
    "text",
    [b'{"share": NaN}', b'{"share": Infinity}', b'{"share": -Infinity}', b'{"share": 1e999}',
     b'{"name": "\\ud800"}', b'{"name": "\xff"}', b"{", b"\x00", b"{'name': 1}", b"[" * 200_000,
     b'{"a":' * 50_000, b"\xef\xbb\xbf{}", b'{"name": "a\nb"}', b"[]", b"null", b"1", b'"a"', b""],
)  # fmt: skip
def test_body_that_is_no_json_object_is_a_bad_request(text: bytes) -> None:
    found = check(make_client().post("/body", content=text, headers=JSON), 400, "INVALID_REQUEST")
    assert "JSON" in found["error"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", None])
def test_only_json_is_read_as_json(kind: str | None) -> None:
    headers = {"content-type": kind} if kind else {}
    check(make_client().post("/body", content=b"{}", headers=headers), 400, "INVALID_REQUEST")


def test_good_body_passes() -> None:
    reply = make_client().post("/body", json={"name": "漢字 🐢", "share": 0.25})
    assert reply.json() == {"success": True, "name": "漢字 🐢"}


def test_numbers_that_are_not_finite_leave_as_null() -> None:
    assert make_client().get("/number").json() == {"nan": None, "infinite": [None, 1.5], "at": 0}
