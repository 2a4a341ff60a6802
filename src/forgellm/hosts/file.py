"""`hosts.toml` in the workspace: which other machines there are."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from forgellm.errors import ConfigError
from forgellm.paths import Workspace
from forgellm.schema.hosts import Host
from forgellm.schema.recipe import problems_of

HOSTS_NAME = "hosts.toml"
EXAMPLE = '[hosts.gpu1]\naddress = "192.168.1.20"'

_WHERE = f"Correct it in {HOSTS_NAME}, in the workspace."


def read_hosts(workspace: Workspace) -> list[Host]:
    """All machines of the file, in its order; none without a file.

    Raises ConfigError naming every field that is wrong.
    """
    try:
        text = (workspace.root / HOSTS_NAME).read_text("utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError.one(HOSTS_NAME, f"cannot be read: {reason}") from None
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError.one(HOSTS_NAME, f"is not TOML: {error}", suggestion=_WHERE) from None
    hosts, problems = [], _misplaced(content)
    for name, table in _tables(content).items():
        try:
            hosts.append(_host(name, table, workspace))
        except ConfigError as error:
            problems += error.details["problems"]
    if problems:
        raise ConfigError(problems, suggestion=_WHERE)
    return hosts


def find_hosts(workspace: Workspace, names: Sequence[str]) -> list[Host]:
    """The machines with these names, in this order.

    Raises ConfigError for a name that the file does not have or that comes twice, and for a file
    that is missing or wrong.
    """
    known = {host.name: host for host in require_hosts(workspace)}
    problems = []
    for name in dict.fromkeys(names):
        if name not in known:
            problems.append({"field": "hosts", "message": f"{HOSTS_NAME} has no [hosts.{name}]"})
        elif list(names).count(name) > 1:
            problems.append({"field": "hosts", "message": f"{name} is named twice"})
    if problems:
        raise ConfigError(problems, suggestion=f"It has: {', '.join(known)}.")
    return [known[name] for name in names]


def require_hosts(workspace: Workspace) -> list[Host]:
    """As `read_hosts`, but never none. Raises ConfigError that shows what to write."""
    hosts = read_hosts(workspace)
    if not hosts:
        error = ConfigError.one(
            "hosts",
            f"no machine is named in {HOSTS_NAME}, in the workspace's root",
            suggestion="Write it there, for each machine:\n" + EXAMPLE,
        )
        error.details["searched_paths"] = [HOSTS_NAME]
        raise error
    return hosts


def _misplaced(content: dict[str, Any]) -> list[dict[str, str]]:
    """What stands beside the tables of machines."""
    strays = [key for key in content if key != "hosts"]
    if not isinstance(content.get("hosts", {}), dict):
        strays.append("hosts")
    message = f"is no machine; write each as a table [hosts.NAME] in {HOSTS_NAME}"
    return [{"field": key, "message": message} for key in strays]


def _tables(content: dict[str, Any]) -> dict[str, Any]:
    tables = content.get("hosts", {})
    return tables if isinstance(tables, dict) else {}


def _host(name: str, table: Any, workspace: Workspace) -> Host:
    field = f"hosts.{name}"
    if not isinstance(table, dict):
        raise ConfigError.one(field, f"must be a table [{field}] with an address")
    if "name" in table:
        raise ConfigError.one(f"{field}.name", f"unknown field; the name is that of [{field}]")
    try:
        return Host.model_validate({"workspace": str(workspace.root), **table, "name": name})
    except ValidationError as error:
        raise ConfigError(
            [
                {"field": field if p["field"] == "name" else f"{field}.{p['field']}",
                 "message": p["message"]}
                for p in problems_of(error)
            ]
        ) from None  # fmt: skip
