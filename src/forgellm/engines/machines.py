"""Where processes of several machines meet, and which of this machine's addresses leads there."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from pathlib import Path

import psutil

from forgellm.errors import ConfigError
from forgellm.hosts.network import address_towards

_LOOPBACK = "127.0.0.1"
_ANYWHERE = "192.0.2.1"  # set apart for documents (RFC 5737): the way there is the way out


@dataclass(frozen=True)
class Meeting:
    """Attributes:
    endpoint: HOST:PORT of the first machine; of one alone a file's path, so that no port is open.
    is_first: whether this is that machine.
    own_address, own_interface: of this machine, as the others see it.
    """

    endpoint: str
    is_first: bool
    own_address: str
    own_interface: str | None
    nproc_per_node: int
    nnodes: int = 1
    max_restarts: int = 0


def meeting_here(store: Path, nproc_per_node: int, max_restarts: int) -> Meeting:
    """Of the processes of this machine alone, who tell each other things in the file `store`."""
    interface = _own_addresses().get(_LOOPBACK)
    return Meeting(str(store), True, _LOOPBACK, interface, nproc_per_node, 1, max_restarts)


def meeting_at(
    endpoint: str,
    nproc_per_node: int,
    nnodes: int,
    max_restarts: int,
    *,
    is_first: bool | None = None,
) -> Meeting:
    """Of the processes of several machines; the first is the one that the endpoint names.

    Raises ConfigError.
    """
    host, port = _host_and_port(endpoint)
    own = _own_addresses()
    try:
        named = {str(info[4][0]) for info in socket.getaddrinfo(host, port)} & own.keys()
    except OSError as error:
        raise ConfigError.one("rdzv_endpoint", f"{host} is not known here: {error}") from error
    address = next(iter(named), None)
    if address is None or ipaddress.ip_address(address).is_loopback:
        address = address_towards(host if address is None else _ANYWHERE) or address or _LOOPBACK
    return Meeting(
        endpoint,
        bool(named) if is_first is None else is_first,
        address,
        own.get(address),
        nproc_per_node,
        nnodes,
        max_restarts,
    )


def free_port(address: str) -> int:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as listener:
        return int(listener.getsockname()[1])


def _host_and_port(endpoint: str) -> tuple[str, int]:
    host, _, port = endpoint.rpartition(":")
    if not 0 < int(port) < 65536:
        raise ConfigError.one("rdzv_endpoint", "the port must be between 1 and 65535")
    return host.strip("[]"), int(port)


def _own_addresses() -> dict[str, str]:
    """The interface of each address of this machine."""
    return {
        entry.address.partition("%")[0]: name
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if entry.family in (socket.AF_INET, socket.AF_INET6)
    }
