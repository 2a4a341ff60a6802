"""The two pages of the web server: what runs now, and what can be called."""

from __future__ import annotations

from html import escape
from typing import Any

_PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>ForgeLLM</title>{head}</head>
<body>
<h1>ForgeLLM</h1>
{body}
</body>
</html>
"""
_SWAGGER = (
    '<link rel="stylesheet" href="/static/vendor/swagger-ui.css">'
    '<script defer src="/static/vendor/swagger-ui-bundle.js"></script>'
    '<script defer src="/static/docs.js"></script>'
)
_SHOWN = (
    "training_id",
    "phase",
    "current_iteration",
    "max_iterations",
    "current_loss",
    "validation_loss",
    "tokens_per_second",
    "eta_minutes",
    "output_dir",
)


def home_page(status: dict[str, Any]) -> str:
    """What trains, or trained last."""
    if status["training_id"] is None:
        run = "<p>Nothing has been trained in this workspace yet.</p>"
    else:
        title = "Training now" if status["is_training"] else "Last training"
        rows = [(name, status[name]) for name in _SHOWN if status[name] is not None]
        run = f"<h2>{title}</h2>\n{_table(rows)}"
    links = (
        '<p><a href="/docs">What this server can be asked</a>,'
        ' <a href="/api/health">its health</a></p>'
    )
    return _PAGE.format(head="", body=f"{run}\n{links}")


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
    return _PAGE.format(head=_SWAGGER, body=f'<div id="api"></div>\n{listed}')


def _table(rows: list[tuple[str, Any]]) -> str:
    cells = (
        f"<tr><th align='left'>{escape(name)}</th><td>{escape(str(value))}</td></tr>"
        for name, value in rows
    )
    return "<table>\n" + "\n".join(cells) + "\n</table>"
