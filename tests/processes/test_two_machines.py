"""Two network namespaces as two machines, each with a workspace of its own and nothing shared: a run is
started on one and trains on both, loses the other, and goes on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from forgellm.paths import Workspace
from forgellm.runs import checkpoints
from forgellm.runs.store import Run, latest_run
from serving import eventually
from several_processes import lines_of, wait, wait_until
from stand_in_ssh import write_program
from tiny_workspace import build_tiny_workspace

SOURCE = Path(__file__).parents[2] / "src"
SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin")
ADDRESSES = {"here": "198.18.77.1", "there": "198.18.77.2"}  # set apart for tests (RFC 2544)
PORT = 2222

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.geteuid() != 0 or not all((SSHD, shutil.which("ip"), shutil.which("ssh-keygen"))),
        reason="needs root, `ip netns` and OpenSSH's server",
    ),
]


@dataclass(frozen=True)
class Network:
    """Two namespaces with a cable between them."""

    names: dict[str, str]

    def command(self, machine: str, *command: object) -> list[str]:
        return ["ip", "netns", "exec", self.names[machine], *map(str, command)]

    def cut(self) -> None:
        """Packets are lost without a word, in both directions."""
        self._in("there", "link", "set", "cable", "down")

    def mend(self) -> None:
        self._in("there", "link", "set", "cable", "up")

    def _in(self, machine: str, *arguments: str) -> None:
        subprocess.run(["ip", "-n", self.names[machine], *arguments], check=True)


@pytest.fixture
def network() -> Iterator[Network]:
    names = {machine: f"forge{os.getpid()}{machine}" for machine in ADDRESSES}
    made = []
    try:
        for name in names.values():
            subprocess.run(["ip", "netns", "add", name], check=True, capture_output=True)
            made.append(name)
    except subprocess.CalledProcessError as error:
        for name in made:
            subprocess.run(["ip", "netns", "del", name], check=True)
        pytest.skip(f"namespaces cannot be made: {error.stderr!r}")
    try:
        here, there = names.values()
        ends = ["cable", "netns", here, "type", "veth", "peer", "name", "cable", "netns", there]
        subprocess.run(["ip", "link", "add", *ends], check=True)
        for machine, name in names.items():
            own = f"{ADDRESSES[machine]}/24"
            subprocess.run(["ip", "-n", name, "address", "add", own, "dev", "cable"], check=True)
            for link in ("lo", "cable"):
                subprocess.run(["ip", "-n", name, "link", "set", link, "up"], check=True)
        yield Network(names)
    finally:
        for name in names.values():
            subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.fixture
def workspace(tmp_path: Path, network: Network) -> Iterator[Workspace]:
    """Here; the one there is beside it, and `hosts.toml` names it."""
    spaces = {name: build_tiny_workspace(tmp_path / name) for name in ADDRESSES}
    python = write_program(
        tmp_path / "python", f'#!/bin/sh\nPYTHONPATH="{SOURCE}" exec {sys.executable} "$@"\n'
    )
    (spaces["here"].root / "hosts.toml").write_text(
        f'[hosts.there]\naddress = "{ADDRESSES["there"]}"\nport = {PORT}\nuser = "root"\n'
        f'workspace = "{spaces["there"].root}"\npython = "{python}"\n'
    )
    sshd = start_sshd(tmp_path, network)
    try:
        yield spaces["here"]
    finally:
        sshd.terminate()
        sshd.wait()


def start_sshd(folder: Path, network: Network) -> subprocess.Popen[bytes]:
    """A server there with keys of its own, and in `folder/bin` an `ssh` that knows them."""
    for key in ("host_key", "user_key"):
        make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key]
        subprocess.run(make, check=True, stdin=subprocess.DEVNULL)
    address = ADDRESSES["there"]
    known = f"[{address}]:{PORT} {(folder / 'host_key.pub').read_text()}"
    (folder / "known_hosts").write_text(known)
    (folder / "ssh_config").write_text(
        f"IdentityFile {folder}/user_key\nIdentitiesOnly yes\n"
        f"UserKnownHostsFile {folder}/known_hosts\n"
    )
    ssh = shutil.which("ssh", path=os.defpath)
    write_program(folder / "bin" / "ssh", f'#!/bin/sh\nexec {ssh} -F {folder}/ssh_config "$@"\n')
    settings = {
        "ListenAddress": f"{address}:{PORT}", "HostKey": folder / "host_key",
        "AuthorizedKeysFile": folder / "user_key.pub", "PidFile": folder / "pid",
        "PasswordAuthentication": "no", "KbdInteractiveAuthentication": "no", "UsePAM": "no",
        "PermitRootLogin": "yes", "StrictModes": "no", "ClientAliveInterval": "3",
        "ClientAliveCountMax": "2",
    }  # fmt: skip
    file = folder / "sshd_config"
    file.write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
    with (folder / "sshd.log").open("wb") as log:
        process = subprocess.Popen(
            network.command("there", SSHD, "-D", "-e", "-f", file), stderr=log
        )
    eventually(lambda: b"listening" in (folder / "sshd.log").read_bytes())
    return process


def forgellm(
    workspace: Workspace, network: Network, *arguments: object, machine: str = "here"
) -> subprocess.Popen[str]:
    folder = workspace.root.parent
    environment = {
        **os.environ,
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(SOURCE),
        "FORGELLM_COLLECTIVE_TIMEOUT": "8",
    }
    command = [sys.executable, "-P", "-m", "forgellm", *arguments]
    return subprocess.Popen(
        network.command(machine, *command),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def train(workspace: Workspace, network: Network, *flags: object) -> subprocess.Popen[str]:
    return forgellm(workspace, network, "train", "--workspace", workspace.root, *flags)


def new_run(iterations: int, **changes: object) -> list[object]:
    flags = {
        "model": "tiny", "dataset": "notes", "engine": "torch", "dtype": "float32",
        "max-iterations": iterations, "save-every": 5, "val-batches": 1, "batch-size": 4,
        "max-seq-length": 64, "lora-rank": 4, **changes,
    }  # fmt: skip
    return [part for name, value in flags.items() for part in (f"--{name}", value)]


def run_of(workspace: Workspace) -> Run:
    eventually(lambda: latest_run(workspace) is not None)
    run = latest_run(workspace)
    assert run is not None
    return run


def status(workspace: Workspace, network: Network) -> dict[str, Any]:
    """As the page of the machine here gets it."""
    server = forgellm(workspace, network, "web", "--workspace", workspace.root, "--port", 5002)
    address = "http://127.0.0.1:5002/api/training/status"
    ask = f"import urllib.request; print(urllib.request.urlopen('{address}').read().decode())"
    try:
        for _ in range(100):
            answer = subprocess.run(
                network.command("here", sys.executable, "-c", ask), capture_output=True, text=True
            )
            if answer.returncode == 0:
                found: dict[str, Any] = json.loads(answer.stdout)
                return found
        raise AssertionError(answer.stderr)
    finally:
        server.terminate()
        server.communicate(timeout=30)


def test_two_machines_train_one_run_and_part(workspace: Workspace, network: Network) -> None:
    terminal = train(workspace, network, *new_run(100_000, hosts="there"))
    run = run_of(workspace)
    wait_until(lambda: len(checkpoints.list_checkpoints(run.folder)) > 1, 90, run)
    shown = status(workspace, network)
    assert [process["rank"] for process in shown["processes"]] == [0, 1]

    network.cut()
    state = wait(run, 90)
    assert state.phase == "interrupted", run.log_file.read_text()
    assert state.error is not None
    assert "lost the others" in state.error["error"]
    said, _ = terminal.communicate(timeout=30)
    assert terminal.returncode == 1 and "lost the others" in said

    network.mend()
    reached = lines_of(run)[-1].iteration
    terminal = train(workspace, network, "--resume", run.name)
    wait_until(lambda: run.is_alive() and lines_of(run)[-1].iteration > reached, 90, run)
    terminal.terminate()
    terminal.communicate(timeout=60)
    state = wait(run, 60)
    assert (state.phase, state.error) == ("stopped", None), run.log_file.read_text()


def test_a_machine_that_cannot_be_reached_ends_the_wait(
    workspace: Workspace, network: Network
) -> None:
    network.cut()
    terminal = train(workspace, network, *new_run(6, hosts="there"))
    said, _ = terminal.communicate(timeout=90)
    assert terminal.returncode == 1
    assert "forgellm hosts check there" in said
    assert run_of(workspace).state().phase == "failed"


def test_the_same_command_on_both_machines_is_one_run(
    workspace: Workspace, network: Network
) -> None:
    """As a batch system starts it; the machine that the endpoint names writes."""
    flags = new_run(6, nnodes=2, **{"rdzv-endpoint": f"{ADDRESSES['here']}:29400"})
    there = Workspace(workspace.root.with_name("there"))
    other = forgellm(there, network, "train", "--workspace", there.root, *flags, machine="there")
    terminal = train(workspace, network, *flags)
    said, _ = terminal.communicate(timeout=120)
    assert terminal.returncode == 0, said
    also_said, _ = other.communicate(timeout=60)
    assert other.returncode == 0, also_said
    state = run_of(workspace).state()
    assert state.phase == "completed" and len(state.processes) == 2
    assert latest_run(there) is None
