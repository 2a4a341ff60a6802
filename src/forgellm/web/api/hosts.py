"""The machines that `hosts.toml` names, for choosing from. They are not contacted."""

from __future__ import annotations

from fastapi import APIRouter

from forgellm.hosts.file import read_hosts
from forgellm.paths import Workspace
from forgellm.schema.hosts import HostItem, HostsReply


def make_router(workspace: Workspace) -> APIRouter:
    router = APIRouter(prefix="/api/hosts")

    @router.get("")
    def list_hosts() -> HostsReply:
        """Names and addresses; none without a file."""
        hosts = read_hosts(workspace)
        return HostsReply(hosts=[HostItem(name=h.name, address=h.address) for h in hosts])

    return router
