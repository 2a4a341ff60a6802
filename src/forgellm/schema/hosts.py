"""Other machines that train along: how `hosts.toml` names them, and what a check finds there."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, field_validator

from forgellm.schema.reply import Item, Reply
from forgellm.schema.request import Request

HOST_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"
# What reaches ssh: nothing here can be taken for an option, or begin another command.
_ADDRESS = re.compile(r"[A-Za-z0-9_:][A-Za-z0-9_.:%-]{0,252}")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

CheckName = Literal[
    "ssh", "workspace", "python", "forgellm", "engine", "compute", "memory", "disk", "model",
    "dataset", "network",
]  # fmt: skip


def _without_controls(value: str) -> str:
    if _CONTROL.search(value):
        raise ValueError("must not hold line breaks or control characters")
    return value


_Line = Annotated[str, AfterValidator(_without_controls)]


class Host(Request):
    """A machine as `hosts.toml` describes it, with what that leaves out filled in."""

    model_config = ConfigDict(frozen=True)

    name: str
    address: str = Field(description="Host name, IP address, or a name of the user's ssh settings.")
    user: str | None = Field(None, description="Default: what ssh takes.")
    port: int | None = Field(None, ge=1, le=65_535, description="Of ssh; default: what ssh takes.")
    workspace: _Line = Field(max_length=1000, description="Absolute folder there.")
    python: _Line = Field("python3", max_length=1000, description="Path or command there.")

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        if not re.fullmatch(HOST_NAME, value):
            raise ValueError(
                "must be letters, digits, '.', '_' and '-', and begin with the first two"
            )
        return value

    @field_validator("address")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        if not _ADDRESS.fullmatch(value):
            raise ValueError('must be a host name or an IP address alone, as in "192.168.1.20"')
        return value

    @field_validator("user")
    @classmethod
    def _is_a_user(cls, value: str | None) -> str | None:
        if value is not None and not _USER.fullmatch(value):
            raise ValueError('must be a user name alone, as in "anna"')
        return value

    @field_validator("workspace")
    @classmethod
    def _is_absolute(cls, value: str) -> str:
        if not value.startswith("/"):
            raise ValueError('must be an absolute folder there, as in "/home/anna/work"')
        return value

    @field_validator("python")
    @classmethod
    def _is_a_command(cls, value: str) -> str:
        if not value or value[0] in "-~":
            raise ValueError(
                'must be a command or its whole path, as in "/home/anna/venv/bin/python"'
            )
        return value


class HostItem(Item):
    name: str = Field(examples=["gpu1"])
    address: str = Field(examples=["192.168.1.20"])


class HostsReply(Reply):
    hosts: list[HostItem] = Field(description="In the order of hosts.toml.")


class Held(Item):
    """A model or a dataset as one machine has it."""

    fingerprint: str | None = Field(description="Null where it is not there, or not usable.")
    problem: str | None = Field(description="Why it is not.")


class ProbeReport(Item):
    """What `python -m forgellm.hosts.probe` says of the machine it runs on."""

    forgellm_version: str
    engine: str = Field(description="The one asked about.")
    engine_version: str | None = Field(description="Null where it is not installed.")
    gpus: list[str] = Field(description="Names of the NVIDIA GPUs.")
    num_cores: int
    memory_available_bytes: int
    disk_free_bytes: int
    model: Held | None = Field(description="Null where none was asked about.")
    dataset: Held | None
    greeting: str | None = Field(description="What was read from the address to connect back to.")
    connect_problem: str | None


class Finding(Item):
    """One thing that a check looked at."""

    check: CheckName
    ok: bool
    found: str
    advice: str | None = Field(default=None, description="What to do where it is not ok.")


class HostCheck(Item):
    """All that was looked at on one machine, in order; what failed early ends the list."""

    name: str
    address: str
    ok: bool
    findings: list[Finding]
