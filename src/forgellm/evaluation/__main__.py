"""The measuring process: `python -m forgellm.evaluation REQUEST`, which is JSON."""

from __future__ import annotations

import sys
from typing import Any

from forgellm.child import OnProgress, serve
from forgellm.evaluation.any_model import evaluate_model
from forgellm.paths import find_workspace
from forgellm.schema.evaluation import EvaluateRequest


def main() -> int:
    request = EvaluateRequest.model_validate_json(sys.argv[1])

    def work(on_progress: OnProgress) -> dict[str, Any]:
        return evaluate_model(request, find_workspace(), on_progress).model_dump(mode="json")

    return serve(work)


if __name__ == "__main__":
    sys.exit(main())
