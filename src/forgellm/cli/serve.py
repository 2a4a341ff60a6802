"""`forgellm start`, `forgellm web` and `forgellm server`."""

from __future__ import annotations

import argparse
import asyncio
import errno
import gc
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

from forgellm.cli.model_choice import add_changed_base_flag
from forgellm.cli.upstream import (
    add_backend_flag,
    add_upstream_flag,
    answering_elsewhere,
    check_flags,
    check_upstream,
)
from forgellm.errors import InvalidRequest, PortInUse
from forgellm.paths import find_workspace

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from forgellm.guard import GuardSettings

SERVER_PORT = 5001
WEB_PORT = 5002
_SHUTDOWN_SECONDS = 3
_ORPHAN_SECONDS = _SHUTDOWN_SECONDS + 2
_LONGEST_PAUSE_SECONDS = 30.0
_STEADY_SECONDS = 60.0


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    start = subparsers.add_parser("start", help="Start the model server and the web server.")
    start.add_argument(
        "--server-port",
        type=_port,
        default=SERVER_PORT,
        help="model server's port (default %(default)s)",
    )
    start.add_argument(
        "--web-port", type=_port, default=WEB_PORT, help="web server's port (default %(default)s)"
    )
    add_upstream_flag(start)
    _add_network_flags(start)
    start.set_defaults(run=run_start)

    web = subparsers.add_parser("web", help="Start the web server alone.")
    web.add_argument("--port", type=_port, default=WEB_PORT, help="default %(default)s")
    web.add_argument(
        "--model-server-url",
        default=f"http://127.0.0.1:{SERVER_PORT}",
        help="where the model server is (default: %(default)s)",
    )
    _add_network_flags(web)
    web.set_defaults(run=run_web)

    server = subparsers.add_parser("server", help="Start the model server alone.")
    server.add_argument("--port", type=_port, default=SERVER_PORT, help="default %(default)s")
    server.add_argument("--model", help="load this model at once")
    server.add_argument(
        "--adapter",
        action="append",
        default=[],
        help="with the adapter of this run or checkpoint; several with --backend vllm",
    )
    add_changed_base_flag(server)
    server.add_argument(
        "--kv-bits",
        type=int,
        choices=(4, 8),
        help="with its key-value cache quantised (engine mlx)",
    )
    add_backend_flag(server)
    add_upstream_flag(server)
    server.add_argument("--parent", type=int, help=argparse.SUPPRESS)
    _add_network_flags(server)
    server.set_defaults(run=run_server)


def run_web(args: argparse.Namespace) -> int:
    listener = bind(args.host, args.port, "--port")
    _serve_web(args, listener, args.model_server_url, before_stop=lambda: None)
    return 0


def run_server(args: argparse.Namespace) -> int:
    if args.adapter and not args.model:
        raise InvalidRequest("--adapter needs --model, the model it belongs to")
    if args.kv_bits and not args.model:
        raise InvalidRequest("--kv-bits needs --model, the model to load")
    check_flags(args)
    listener = bind(args.host, args.port, "--port")
    if args.parent is not None:
        threading.Thread(target=_end_with, args=(args.parent,), daemon=True).start()
    if args.upstream or args.backend == "vllm":
        return _serve_upstream(args, listener)
    from forgellm.model_server.app import create_app
    from forgellm.model_server.shelf import Shelf
    from forgellm.schema.generation import LoadRequest

    shelf = Shelf(find_workspace(args.workspace))
    if args.model:
        request = LoadRequest(
            model_name=args.model,
            adapter_path=next(iter(args.adapter), None),
            kv_bits=args.kv_bits,
            allow_changed_base=args.allow_changed_base,
        )
        shelf.load(request, allow_absolute=True)
    settings = _guard_settings(args)
    app = create_app(shelf, settings)
    name = "Model server"
    _serve(app, listener, name, settings, debug=args.debug, before_stop=shelf.unload)
    return 0


def _serve_upstream(args: argparse.Namespace, listener: socket.socket) -> int:
    from forgellm.model_server.app import create_app_before

    with listener, answering_elsewhere(args, find_workspace(args.workspace)) as upstream:
        settings = _guard_settings(args)
        app = create_app_before(upstream, settings)
        name = "Model server"
        _serve(app, listener, name, settings, debug=args.debug, before_stop=lambda: None)
    return 0


def run_start(args: argparse.Namespace) -> int:
    if args.upstream:
        check_upstream(args.upstream, args.server_port)
    listener = bind(args.host, args.web_port, "--web-port")
    # Only to see whether it is free. The model server stays on this machine: other machines reach
    # it through the web server.
    _bind_soon("localhost", args.server_port, "--server-port").close()
    command = [sys.executable, "-P", "-m", "forgellm", "server", "--parent", str(os.getpid())]
    command += ["--port", str(args.server_port)]
    command += ["--workspace", str(find_workspace(args.workspace).root)]
    command += ["--upstream", args.upstream] if args.upstream else []
    command += ["--debug"] if args.debug else []
    model_server = _KeptProcess(command)
    signal.signal(signal.SIGTERM, _exit)
    model_server.start()
    try:
        url = f"http://127.0.0.1:{args.server_port}"
        _serve_web(args, listener, url, before_stop=model_server.close)
    finally:
        model_server.close()
    return 0


def bind(host: str, port: int, flag: str) -> socket.socket:
    """A socket on the port, before anything is started. Raises PortInUse or InvalidRequest."""
    address = "127.0.0.1" if host == "localhost" else host
    try:
        family, kind, *_, target = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(target)
        listener.listen(2048)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(
                f"Port {port} is taken by another program; choose another with {flag}",
                details={"port": port},
            ) from None
        raise InvalidRequest(f"Cannot listen on {host}, port {port}: {error.strerror}") from None
    return listener


class _KeptProcess:
    """A child that is started again when it dies, with longer pauses while it keeps dying."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._closing = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._spawn()
        threading.Thread(target=self._watch, daemon=True, name="model server").start()

    def close(self) -> None:
        self._closing.set()
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(_SHUTDOWN_SECONDS + 2)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _spawn(self) -> subprocess.Popen[bytes]:
        # In a session of its own: Ctrl-C reaches this process alone, which then ends the child.
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, start_new_session=True
        )
        return self._process

    def _watch(self) -> None:
        pause = 1.0
        while self._process is not None:
            started = time.monotonic()
            code = self._process.wait()
            if self._closing.is_set():
                return
            pause = 1.0 if time.monotonic() - started > _STEADY_SECONDS else pause
            print(
                f"The model server ended ({code}); starting it again in {pause:.0f} s", flush=True
            )
            if self._closing.wait(pause):
                return
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            self._spawn()


def _serve_web(
    args: argparse.Namespace,
    listener: socket.socket,
    model_server_url: str,
    before_stop: Callable[[], None],
) -> None:
    gc.disable()  # what is imported stays: looking for garbage in it takes a tenth of the start
    from forgellm.web.app import create_app

    workspace = find_workspace(args.workspace)
    settings = _guard_settings(args)
    app = create_app(workspace, settings, model_server_url)
    gc.freeze()
    gc.enable()
    _serve(app, listener, "ForgeLLM", settings, debug=args.debug, before_stop=before_stop)
    from forgellm.runs.store import active_run

    if run := active_run(workspace):
        print(f"Training goes on without the web server: {run.output_dir}", flush=True)


def _serve(
    app: ASGIApp,
    listener: socket.socket,
    name: str,
    settings: GuardSettings,
    *,
    debug: bool,
    before_stop: Callable[[], None],
) -> None:
    """Serve until Ctrl-C or SIGTERM. `before_stop` ends the answers that still run."""
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                print(f"{name}: {_shown_url(listener, settings)}", flush=True)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            if not debug:  # requests that are cut off now are no news
                logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
            await asyncio.to_thread(before_stop)
            await super().shutdown(sockets)

    logging.basicConfig(
        level=logging.INFO if debug else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
    )
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=debug,
        server_header=False,
        proxy_headers=False,
        # On one machine packing costs more than it saves, for every viewer again.
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
    )
    signal.signal(signal.SIGTERM, _exit)
    try:
        Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        pass


def _exit(number: int, frame: FrameType | None) -> None:
    """SIGTERM as an exit that runs the clean-up."""
    raise SystemExit(0)


def _bind_soon(host: str, port: int, flag: str) -> socket.socket:
    """`bind`, with time for the model server of a killed `forgellm start` to see that and end."""
    deadline = time.monotonic() + _ORPHAN_SECONDS
    while True:
        try:
            return bind(host, port, flag)
        except PortInUse:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _end_with(parent: int) -> None:
    """End this process when its parent is gone, also when the parent could not say so."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


def _add_network_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--host",
        default="localhost",
        help="address to listen on; 0.0.0.0 lets other machines in, with a token"
        " (default: this machine only)",
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="also answer to this host name; may be repeated",
    )
    parser.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="let pages of this origin use the API, e.g. https://notes.example:8443",
    )
    parser.add_argument("--workspace", help="folder of models and datasets (default: this one)")
    parser.add_argument("--debug", action="store_true", help="log every request")


def _guard_settings(args: argparse.Namespace) -> GuardSettings:
    from forgellm.guard import GuardSettings

    hosts = {name.lower() for name in args.allow_host}
    if _is_this_machine_only(args.host):
        token = None
    else:
        token = secrets.token_urlsafe(32)
        hosts |= {socket.gethostname().lower(), *_own_addresses()}
    return GuardSettings(frozenset(hosts), frozenset(args.allow_origin), token)


def _is_this_machine_only(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def _own_addresses() -> list[str]:
    import psutil

    return [
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family == socket.AF_INET
    ]


def _shown_url(listener: socket.socket, settings: GuardSettings) -> str:
    host, port = listener.getsockname()[:2]
    if settings.token is None:
        return f"http://localhost:{port}"
    if host in ("0.0.0.0", "::"):
        others = [name for name in _own_addresses() if not name.startswith("127.")]
        host = next(iter(others), socket.gethostname())
    return f"http://{host}:{port}/?token={settings.token}"


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError("must be from 0 to 65535")
    return port
