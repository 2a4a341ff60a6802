"""The pages of docs/ are true of the code: nothing missing, nothing stale, nothing dangling."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fastapi import FastAPI

from forgellm.guard import Guard, GuardSettings
from forgellm.model_server.app import create_app as create_model_server
from forgellm.model_server.shelf import Shelf
from forgellm.paths import Workspace
from forgellm.schema.combining import CombineRequest
from forgellm.schema.evaluation import EvaluateRequest
from forgellm.schema.exports import ExportRequest
from forgellm.schema.generation import CancelRequest, GenerateRequest, LoadRequest
from forgellm.schema.publishing import DownloadRequest, PublishRequest
from forgellm.schema.push import PushRequest
from forgellm.schema.quantising import QuantiseRequest
from forgellm.schema.questions import QuestionsRequest
from forgellm.schema.recipe import Recipe
from forgellm.schema.run import ResumeRequest
from forgellm.web.app import create_app as create_web_server

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def _load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("write_docs", ROOT / "scripts" / "write_docs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


write_docs = _load_script()


def text_of(name: str) -> str:
    return (DOCS / name).read_text("utf-8")


def routes() -> set[tuple[str, str]]:
    """(method, path) of both servers."""
    workspace = Workspace(ROOT)
    apps = (
        create_web_server(workspace, GuardSettings(), "http://127.0.0.1:1"),
        create_model_server(Shelf(workspace), GuardSettings()),
    )
    found: set[tuple[str, str]] = set()
    for app in apps:
        assert isinstance(app, Guard) and isinstance(app.app, FastAPI)
        for path, operations in app.app.openapi()["paths"].items():
            found |= {(method.upper(), path) for method in operations}
    return found


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_generated_parts_are_fresh(page: Path) -> None:
    if page.name == "cli.md" and sys.version_info >= (3, 13):
        pytest.skip("argparse words its help differently from Python 3.13 on")
    text = page.read_text("utf-8")
    assert write_docs.filled(text) == text, "stale: run make docs"


def test_a_stale_part_is_found_and_filled() -> None:
    page = "before\n<!-- begin generated: error codes -->\nold\n<!-- end generated -->\nafter\n"
    filled = write_docs.filled(page)
    assert "old" not in filled and "`DISK_FULL`" in filled
    assert filled.startswith("before\n<!-- begin") and filled.endswith("<!-- end generated -->\nafter\n")  # fmt: skip
    assert write_docs.filled(filled) == filled


def test_every_generated_part_has_its_page() -> None:
    everything = "".join(page.read_text("utf-8") for page in DOCS.glob("*.md"))
    for name in write_docs._PARTS:
        assert everything.count(f"<!-- begin generated: {name} -->") == 1


def test_every_route_is_described() -> None:
    text = text_of("api.md")
    for method, path in routes():
        assert re.search(rf"`{method}\b.*{re.escape(path)}`", text), f"{method} {path}"


def test_no_route_is_invented() -> None:
    existing = routes()
    for page in PAGES:
        named = re.findall(r"\b(GET|POST|DELETE) (/api/[a-z_/{}]+)", page.read_text("utf-8"))
        assert set(named) <= existing, page.name


def test_every_recipe_field_is_described() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", text_of("training.md"), re.MULTILINE)
    assert set(rows) == set(Recipe.model_fields)


def test_every_command_and_flag_is_described() -> None:
    sections = re.split(r"^## ", text_of("cli.md"), flags=re.MULTILINE)
    described = {section.split("\n", 1)[0]: section for section in sections}
    for parser in write_docs.command_parsers():
        text = described[parser.prog]
        for action in parser._actions:
            if action.help != "==SUPPRESS==":
                for flag in action.option_strings:
                    assert re.search(rf"{re.escape(flag)}\b", text), f"{parser.prog} {flag}"


def test_every_error_code_is_described() -> None:
    codes = {kind.code for kind in write_docs.error_classes()}
    for name in ("guard.py", "envelope.py"):  # a few exist only there
        source = (ROOT / "src" / "forgellm" / name).read_text("utf-8")
        codes |= set(re.findall(r'"([A-Z]+(?:_[A-Z]+)+)"', source))
    described = set(re.findall(r"^\| `([A-Z_]+)` \|", text_of("api.md"), re.MULTILINE))
    assert described == codes


@each_page
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)\s#]*)(#[^)\s]*)?\)", page.read_text("utf-8")):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor and file.suffix == ".md":
            assert anchor[1:] in _anchors(file), f"{page.name}: {target}{anchor}"


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_every_path_of_the_package_exists(page: Path) -> None:
    for path in re.findall(r"src/forgellm(?:/[\w.-]+)*", page.read_text("utf-8")):
        assert (ROOT / path.rstrip(".")).exists(), f"{page.name}: {path}"


@each_page
def test_every_json_example_is_json(page: Path) -> None:
    for block in re.findall(r"^```json\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.M):
        try:
            json.loads(block)
        except ValueError:
            for line in block.splitlines():
                json.loads(line)


REQUESTS: dict[str, Callable[[Any], object]] = {
    "/api/training/start": Recipe.model_validate,
    "/api/training/resume": ResumeRequest.model_validate,
    "/api/training/publish_checkpoint": PublishRequest.model_validate,
    "/api/models/export": ExportRequest.model_validate,
    "/api/models/combine": CombineRequest.model_validate,
    "/api/models/quantize": QuantiseRequest.model_validate,
    "/api/models/download": DownloadRequest.model_validate,
    "/api/models/push": PushRequest.model_validate,
    "/api/dataset/questions": QuestionsRequest.model_validate,
    "/api/evaluate": EvaluateRequest.model_validate,
    "/api/model/load": LoadRequest.model_validate,
    "/api/model/generate": GenerateRequest.model_validate,
    "/api/model/cancel": CancelRequest.model_validate,
}


@each_page
def test_every_curl_example_asks_for_something_that_exists(page: Path) -> None:
    paths = {path for _, path in routes()}
    text = page.read_text("utf-8")
    for path in re.findall(r"curl [^\n]*?://[^\s/]+(/api/[a-z_/]+)", text):
        assert path in paths, f"{page.name}: {path}"
    for path, body in re.findall(r"(/api/[a-z_/]+) --json '([^']*)'", text):
        REQUESTS[path](json.loads(body))


def test_curl_examples_cover_every_request_with_a_body() -> None:
    shown = set(re.findall(r"(/api/[a-z_/]+) --json '", text_of("api.md")))
    assert shown == set(REQUESTS)
