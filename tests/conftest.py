"""What every test process starts with."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

# Tiny models gain nothing from threads, and two test workers would fight over the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A suite started in the background ignores Ctrl-C, and so would every command that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def playwright() -> Iterator[Any]:
    """One for all tests: a second one in the same process is refused."""
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as started:
        yield started
