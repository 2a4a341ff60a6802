"""The OpenAPI documents leave nothing open: typed replies, an example of every body."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from forgellm.guard import GuardSettings
from forgellm.model_server.app import create_app as create_model_server
from forgellm.model_server.shelf import Shelf
from forgellm.paths import Workspace
from forgellm.web.app import create_app as create_web_server
from security.attack import Server, running_loop


@pytest.fixture(params=["web", "model"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    workspace, settings = Workspace(tmp_path), GuardSettings()
    with running_loop() as loop:
        if request.param == "web":
            app = create_web_server(workspace, settings, "http://127.0.0.1:1")
        else:
            app = create_model_server(Shelf(workspace), settings)
        yield Server(app, loop, tmp_path)


def test_every_success_has_named_fields(server: Server) -> None:
    for method, path, operation in server.operations():
        for kind, content in operation["responses"]["200"]["content"].items():
            schema = content.get("schema") or content["itemSchema"]
            found = server.resolve(schema)
            assert found.get("properties") or found.get("anyOf"), (method, path, kind)


def test_every_body_has_an_example_that_fits(server: Server) -> None:
    components = server.document.get("components", {})
    for _, _, operation in server.operations():
        body = operation.get("requestBody", {}).get("content", {})
        if body.keys() <= {"application/octet-stream"}:  # a file is its own example
            continue
        content = body["application/json"]["schema"]
        schema = server.resolve(content.get("anyOf", [content])[0])
        examples = schema.get("examples") or [
            {name: field["examples"][0] for name, field in schema["properties"].items()}
        ]
        for example in examples:
            jsonschema_rs.validate({**schema, "components": components}, example)


def test_answers_are_documented_whole_and_streamed(server: Server) -> None:
    streaming = {"/api/model/generate": {"text/event-stream", "application/x-ndjson"}}
    streaming |= dict.fromkeys(("/v1/completions", "/v1/chat/completions"), {"text/event-stream"})
    for _, path, operation in server.operations("POST"):
        kinds = set(operation["responses"]["200"]["content"])
        assert kinds == {"application/json"} | streaming.get(path, set()), path


def test_bounds_are_named_in_the_words_of_json_schema(server: Server) -> None:
    """Pydantic writes its own `ge` and `lt` where a bound and its type stand apart."""

    def names(value: Any) -> set[str]:
        if isinstance(value, list):
            return set().union(*map(names, value))
        if not isinstance(value, dict):
            return set()
        return set(value).union(*map(names, value.values()))

    assert not names(server.document) & {"ge", "gt", "le", "lt"}
