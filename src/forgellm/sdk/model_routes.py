"""The routes that make something of models and checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from forgellm.sdk.replies import Reply
from forgellm.sdk.transport import Transport


class ModelRoutes(Transport):
    """Each starts a job; the reply has its `job_id`, and `get_job` has what it makes."""

    def combine_adapters(self, checkpoints: Sequence[str], name: str, **options: Any) -> Reply:
        """Combine adapters of one model (`RUN` or `RUN@300`) to `published/NAME`.

        Options are `method` (linear, ties, dare_linear, dare_ties), `weights`, `density` and
        `seed`.
        """
        body = {"checkpoints": list(checkpoints), "name": name, **options}
        return self._post("/api/models/combine", body)
