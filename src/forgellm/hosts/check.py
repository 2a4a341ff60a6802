"""Looks at machines, all at once, before they are to train along."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from forgellm.catalog import find_model
from forgellm.data.datasets import find_dataset
from forgellm.hosts.asking import Answer, ask_host
from forgellm.hosts.findings import Expected, findings_of
from forgellm.hosts.network import Door, own_address_towards
from forgellm.hosts.probe import look
from forgellm.paths import Workspace
from forgellm.schema.hosts import Host, HostCheck

_SECONDS = 60.0
_SECONDS_WITH_DATASET = 600.0  # every byte of it is read
_AT_ONCE = 32


@dataclass(frozen=True)
class Wanted:
    """What the machines are to have. `address` is this machine's, where it is to be another than
    the one from which packets to a host leave."""

    engine: str
    model: str | None = None
    dataset: str | None = None
    address: str | None = None


def check_hosts(workspace: Workspace, hosts: Sequence[Host], wanted: Wanted) -> list[HostCheck]:
    """In the order of `hosts`.

    Raises ModelNotFound, UnsupportedModel and DatasetNotFound for what is not even here, and
    Unavailable where this machine has no ssh.
    """
    model_folder = _model_folder(workspace, wanted.model)
    dataset = find_dataset(workspace, wanted.dataset) if wanted.dataset else None
    with Door() as door, ThreadPoolExecutor(_AT_ONCE) as pool:
        asked = [pool.submit(_ask, host, wanted, door.port) for host in hosts]
        here = look(workspace, wanted.engine, wanted.model, wanted.dataset)
        checks = []
        for host, answer in zip(hosts, asked, strict=True):
            address, said = answer.result()
            expected = Expected(
                here=here,
                model=wanted.model,
                model_folder=model_folder,
                dataset_folder=workspace.relative(dataset) if dataset else None,
                address=address,
                port=door.port,
                word=door.word,
            )
            findings = list(findings_of(host, said, expected))
            is_ready = all(finding.ok for finding in findings)
            checks.append(
                HostCheck(name=host.name, address=host.address, ok=is_ready, findings=findings)
            )
        return checks


def _model_folder(workspace: Workspace, name: str | None) -> str | None:
    """Where a model that no hub has lies in the workspace."""
    if name is None:
        return None
    found = find_model(name, workspace, allow_absolute=True)
    is_inside = found.path.resolve().is_relative_to(workspace.root.resolve())
    return workspace.relative(found.path) if is_inside else None


def _ask(host: Host, wanted: Wanted, port: int) -> tuple[str | None, Answer]:
    """With the address of this machine that the host was told to connect to."""
    arguments = ["--engine", wanted.engine]
    if wanted.model:
        arguments += [f"--model={wanted.model}"]
    if wanted.dataset:
        arguments += [f"--dataset={wanted.dataset}"]
    address = wanted.address or own_address_towards(host)
    if address:
        arguments += ["--connect", address, str(port)]
    limit = _SECONDS_WITH_DATASET if wanted.dataset else _SECONDS
    return address, ask_host(host, arguments, limit)
