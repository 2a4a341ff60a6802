"""Whether another machine can connect to this one, which training together needs."""

from __future__ import annotations

import secrets
import socket
import subprocess
import threading
from contextlib import suppress

from forgellm.hosts.remote import ssh_arguments
from forgellm.schema.hosts import Host

_SECONDS = 10.0


class Door:
    """A port of this machine, open while the `with` block lasts, on all its addresses.

    Whoever connects is told `word`, and so knows that it was this machine that answered: an address
    of a private network may be another machine's elsewhere.
    """

    def __init__(self) -> None:
        self.word = secrets.token_hex(8)
        if socket.has_dualstack_ipv6():
            family, both = socket.AF_INET6, True
        else:
            family, both = socket.AF_INET, False
        self._socket = socket.create_server(("", 0), family=family, dualstack_ipv6=both)
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._answer, daemon=True)

    def __enter__(self) -> Door:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # wakes the thread; a Mac says that nothing is connected
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(_SECONDS)

    def _answer(self) -> None:
        while True:
            try:
                caller, _ = self._socket.accept()
            except OSError:
                return
            with suppress(OSError), caller:
                caller.settimeout(_SECONDS)
                caller.sendall(self.word.encode())


def word_at(address: str, port: int) -> str:
    """What the door there says. Raises OSError."""
    with socket.create_connection((address, port), timeout=_SECONDS) as connection:
        with connection.makefile("rb") as stream:
            return stream.read(64).decode("ascii", "replace")


def own_address_towards(host: Host) -> str | None:
    """As `address_towards`, for a machine as the user's ssh settings know it."""
    return address_towards(_resolved(host))


def address_towards(name: str) -> str | None:
    """The address of this machine from which packets to another leave; None where none is found, as
    for one that only a third can reach."""
    try:
        found = socket.getaddrinfo(name, 9, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError):
        return None
    for family, kind, protocol, _, there in found:
        with suppress(OSError), socket.socket(family, kind, protocol) as probe:
            probe.connect(there)  # of a datagram socket: chooses a route, sends nothing
            return str(probe.getsockname()[0])
    return None


def _resolved(host: Host) -> str:
    """`host.address` may be a name that only the user's ssh settings know."""
    program, *arguments = ssh_arguments(host)
    with suppress(OSError, subprocess.SubprocessError):
        settings = subprocess.run(
            [program, "-G", *arguments], capture_output=True, text=True, timeout=10, check=True
        )
        for line in settings.stdout.splitlines():
            key, _, value = line.partition(" ")
            if key == "hostname":
                return value
    return host.address
