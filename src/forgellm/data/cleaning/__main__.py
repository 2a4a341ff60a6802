"""A task in a process of its own: `python -m forgellm.data.cleaning ORDER`, the order as JSON."""

from __future__ import annotations

import sys
from typing import Any

import orjson

from forgellm.child import OnProgress, serve
from forgellm.data.cleaning.orders import Order
from forgellm.data.cleaning.tasks import perform, shortened

_MAX_LISTED = 100  # jobs are told to everyone who listens


def main() -> int:
    return serve(_perform)


def _perform(on_progress: OnProgress) -> dict[str, Any]:
    """Raises ForgeError."""
    order = Order(**orjson.loads(sys.argv[1]))
    report: dict[str, Any] = shortened(perform(order, on_progress), _MAX_LISTED)
    return report


if __name__ == "__main__":
    sys.exit(main())
