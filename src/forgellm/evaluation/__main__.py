"""The measuring process: `python -m forgellm.evaluation REQUEST [--allow-absolute]`; JSON."""

from __future__ import annotations

import sys
from typing import Any

from forgellm.child import OnProgress, serve
from forgellm.evaluation.any_model import ALLOW_ABSOLUTE, evaluate_model
from forgellm.paths import find_workspace
from forgellm.schema.evaluation import EvaluateRequest


def main() -> int:
    request = EvaluateRequest.model_validate_json(sys.argv[1])

    allow_absolute = ALLOW_ABSOLUTE in sys.argv[2:]

    def work(on_progress: OnProgress) -> dict[str, Any]:
        found = evaluate_model(
            request, find_workspace(), on_progress, allow_absolute=allow_absolute
        )
        return found.model_dump(mode="json")

    return serve(work)


if __name__ == "__main__":
    sys.exit(main())
