"""`forgellm server --upstream` and `--backend vllm`: answers that are made outside this process."""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from forgellm.endpoint import key_in, plain_address
from forgellm.errors import InvalidRequest
from forgellm.paths import Workspace

if TYPE_CHECKING:
    from forgellm.model_server.upstream.backend import Upstream

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
# No news of its use is sent, and the model is on the disk.
_QUIET = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}


def add_upstream_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--upstream",
        metavar="URL",
        help="let the OpenAI-compatible server at this address answer, e.g. http://gpu:8000/v1;"
        " its key stands in FORGELLM_UPSTREAM_KEY",
    )


def add_backend_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--backend",
        choices=("engine", "vllm"),
        default="engine",
        help="what computes: ForgeLLM's own engine, or vLLM as a child process on an NVIDIA GPU"
        " (default %(default)s)",
    )


def check_flags(args: argparse.Namespace) -> None:
    """Raises InvalidRequest."""
    if args.upstream:
        check_upstream(args.upstream, args.port)
        if args.model or args.backend != "engine":
            raise InvalidRequest(
                "--upstream goes without --model and --backend: its models are elsewhere"
            )
    if args.backend == "vllm" and not args.model:
        raise InvalidRequest("--backend vllm needs --model, the model to serve")
    if args.backend == "vllm" and args.kv_bits:
        raise InvalidRequest("--kv-bits is for ForgeLLM's own engine")
    if args.backend != "vllm" and len(args.adapter) > 1:
        raise InvalidRequest("Several --adapter go with --backend vllm")


def check_upstream(url: str, own_port: int) -> None:
    """And the key for it, before anything is started. Raises InvalidRequest."""
    from forgellm.model_server.upstream.failures import KEY_VARIABLE

    key_in(KEY_VARIABLE)
    parts = urlsplit(plain_address(url, "--upstream"))
    if parts.hostname in _LOOPBACK and parts.port == own_port:
        raise InvalidRequest("--upstream is this server's own address")


@contextmanager
def answering_elsewhere(args: argparse.Namespace, workspace: Workspace) -> Iterator[Upstream]:
    """What stands behind the routes, as long as it is needed. Raises ForgeError."""
    from forgellm.model_server.upstream.backend import Upstream
    from forgellm.model_server.upstream.client import UpstreamClient
    from forgellm.model_server.upstream.failures import KEY_VARIABLE

    if args.upstream:
        yield Upstream(UpstreamClient(args.upstream, key_in(KEY_VARIABLE)))
        return
    from forgellm.engines.machines import free_port
    from forgellm.model_server.vllm.command import build_command, find_vllm, find_wanted
    from forgellm.model_server.vllm.process import running

    program, port, key = find_vllm(), free_port("127.0.0.1"), secrets.token_urlsafe(32)
    wanted = find_wanted(args.model, args.adapter, workspace, args.allow_changed_base)
    url = f"http://127.0.0.1:{port}/v1"
    environment = {**os.environ, **_QUIET, "VLLM_API_KEY": key}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # through what ends the child
    with TemporaryDirectory(prefix="forgellm-vllm-") as scratch:
        command = build_command(program, wanted, port, Path(scratch))
        with running(command, environment, "vLLM", lambda: _answers(url, key)):
            yield Upstream(UpstreamClient(url, key), wanted.known)


def _answers(url: str, key: str) -> bool:
    import httpx2

    headers: Mapping[str, str] = {"authorization": f"Bearer {key}"}
    try:
        reply = httpx2.get(f"{url}/models", headers=headers, timeout=2.0, trust_env=False)
    except httpx2.HTTPError:
        return False
    return bool(reply.status_code == 200)
