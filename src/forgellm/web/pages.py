"""The pages of the web server: the application at every address of a view, and the API's at /docs."""

from __future__ import annotations

import base64
import hashlib
import re
from html import escape
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from starlette.responses import HTMLResponse

STATIC = Path(__file__).parent / "static"
VIEWS = ("train", "runs", "compare", "chat", "models", "data")

_DOCS_PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>ForgeLLM API</title>
<link rel="stylesheet" href="/static/vendor/swagger-ui.css">
<script defer src="/static/vendor/swagger-ui-bundle.js"></script>
<script defer src="/static/docs.js"></script></head>
<body>
<h1>ForgeLLM API</h1>
{body}
</body>
</html>
"""


def make_router() -> APIRouter:
    """Every view has an address of its own, and what is at it is decided in the browser."""
    router = APIRouter(include_in_schema=False)
    page = (STATIC / "index.html").read_text("utf-8")
    headers = {"content-security-policy": _policy(page), "cache-control": "no-cache"}

    def view(rest: str = "") -> HTMLResponse:
        return HTMLResponse(page, headers=headers)

    router.get("/")(view)
    for name in VIEWS:
        router.get(f"/{name}")(view)
        router.get(f"/{name}/{{rest:path}}")(view)
    return router


def docs_page(openapi: dict[str, Any]) -> str:
    """Swagger UI from our own files, since FastAPI's page takes them from another site.

    Without scripts: every route with what it does.
    """
    rows = [
        (f"{method.upper()} {path}", operation.get("description", ""))
        for path, operations in openapi["paths"].items()
        for method, operation in operations.items()
    ]
    links = '<p>With all fields and their ranges: <a href="/openapi.json">openapi.json</a></p>'
    listed = f"<noscript><h2>Routes</h2>\n{_table(rows)}\n</noscript>{links}"
    return _DOCS_PAGE.format(body=f'<div id="api"></div>\n{listed}')


def _policy(page: str) -> str:
    """Scripts from here alone, the one inline script (the import map) by its hash, and no text
    becomes markup unless DOMPurify has made it (https://w3c.github.io/trusted-types)."""
    import_map = re.search(r'<script type="importmap">(.*?)</script>', page, re.DOTALL)
    assert import_map is not None
    digest = base64.b64encode(hashlib.sha256(import_map[1].encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'self' 'sha256-{digest}'; style-src 'self';"
        " img-src 'self' data: blob:; connect-src 'self'; frame-ancestors 'none';"
        " base-uri 'none'; form-action 'self';"
        " require-trusted-types-for 'script'; trusted-types dompurify"
    )


def _table(rows: list[tuple[str, Any]]) -> str:
    cells = (
        f"<tr><th align='left'>{escape(name)}</th><td>{escape(str(value))}</td></tr>"
        for name, value in rows
    )
    return "<table>\n" + "\n".join(cells) + "\n</table>"
