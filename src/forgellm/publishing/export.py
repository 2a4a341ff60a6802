"""What the publishing process does to export: one function for each format."""

from __future__ import annotations

from typing import Any

from forgellm.child import OnProgress
from forgellm.paths import Workspace
from forgellm.publishing.build_adapter import build_adapter
from forgellm.publishing.gguf_export import build_gguf
from forgellm.schema.exports import ExportRequest


def export_task(
    request: dict[str, Any], workspace: Workspace, on_progress: OnProgress
) -> dict[str, Any]:
    """See `exports.export_model`, which asks for it. Raises ForgeError."""
    wanted = ExportRequest.model_validate(request)
    if wanted.format == "gguf":
        return build_gguf(wanted, workspace, on_progress)
    return build_adapter(wanted, workspace, on_progress)
