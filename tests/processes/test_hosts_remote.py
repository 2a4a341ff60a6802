"""A module started on another machine ends with its starter: over a real sshd of this machine, where
there is one, and over a program `ssh` that runs on this machine what it is given."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from forgellm.hosts.asking import ask_host
from forgellm.hosts.remote import SSH_FAILED, start_on
from forgellm.schema.hosts import Host
from serving import eventually
from stand_in_ssh import write_program, write_ssh

SOURCE = Path(__file__).parents[2] / "src"
SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin")
only_over_sshd = pytest.mark.parametrize("host", ["sshd"], indirect=True)
# Says which processes it is, of which one is in a session of its own, and waits.
SLEEPER = """
import os, subprocess, sys, time
child = subprocess.Popen(["sleep", "600"], start_new_session=True)
print(os.getcwd(), os.environ["FORGELLM_WORKSPACE"], *sys.argv[1:], sep="|", flush=True)
print("pids", os.getpid(), child.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture(params=["stand-in", "sshd"])
def host(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Host]:
    modules = tmp_path / "modules"
    write_program(modules / "sleeper.py", SLEEPER)
    write_program(modules / "leaver.py", "import sys\nprint('out')\nsys.exit(7)\n")
    python = f'#!/bin/sh\nPYTHONPATH="{SOURCE}:{modules}" exec {sys.executable} "$@"\n'
    (tmp_path / "a workspace").mkdir()
    table = {
        "name": "a",
        "address": "127.0.0.1",
        "python": str(write_program(tmp_path / "python", python)),
        "workspace": str(tmp_path / "a workspace"),
    }
    path = tmp_path / "bin"
    monkeypatch.setenv("PATH", f"{path}{os.pathsep}{os.environ['PATH']}")
    if request.param == "stand-in":
        write_ssh(path)
        yield Host.model_validate(table)
        return
    needed = [SSHD, shutil.which("ssh", path=os.defpath), shutil.which("ssh-keygen")]
    if not all(needed) or (os.geteuid() == 0 and not Path("/run/sshd").is_dir()):
        pytest.skip("needs OpenSSH's server; as root also the folder /run/sshd")
    process, port = start_sshd(tmp_path, path)
    try:
        yield Host.model_validate({**table, "user": getpass.getuser(), "port": port})
    finally:
        process.terminate()
        process.wait()


def start_sshd(folder: Path, path: Path) -> tuple[subprocess.Popen[bytes], int]:
    """A server with keys and settings of its own, and in `path` an `ssh` that knows them."""
    for key in ("host_key", "user_key"):
        make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key]
        subprocess.run(make, check=True, stdin=subprocess.DEVNULL)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    public = (folder / "host_key.pub").read_text()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {public}")
    settings = {
        "ListenAddress": f"127.0.0.1:{port}", "HostKey": folder / "host_key",
        "AuthorizedKeysFile": folder / "user_key.pub", "PidFile": folder / "pid",
        "PasswordAuthentication": "no", "KbdInteractiveAuthentication": "no", "UsePAM": "no",
        "PermitRootLogin": "yes", "StrictModes": "no",
    }  # fmt: skip
    file = folder / "sshd_config"
    file.write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
    client = (
        f"IdentityFile {folder}/user_key\nIdentitiesOnly yes\n"
        f"UserKnownHostsFile {folder}/known_hosts\n"
    )
    (folder / "ssh_config").write_text(client)
    ssh = shutil.which("ssh", path=os.defpath)
    write_program(path / "ssh", f'#!/bin/sh\nexec {ssh} -F {folder}/ssh_config "$@"\n')
    assert SSHD is not None
    with (folder / "sshd.log").open("wb") as log:
        process = subprocess.Popen([SSHD, "-D", "-e", "-f", file], stderr=log)
    eventually(lambda: b"listening" in (folder / "sshd.log").read_bytes())
    return process, port


def started(host: Host, log: Path) -> tuple[subprocess.Popen[bytes], list[psutil.Process]]:
    """A sleeper there, as ssh here and its two processes."""
    with log.open("wb") as stream:
        process = start_on(host, ["sleeper", "it's; one"], stream)
    eventually(lambda: b"pids" in log.read_bytes() or process.poll() is not None)
    lines = log.read_text().splitlines()
    assert f"{host.workspace}|{host.workspace}|it's; one" in lines, lines
    line = next(line for line in lines if line.startswith("pids"))
    return process, [psutil.Process(int(pid)) for pid in line.split()[1:]]


def has_ended(process: psutil.Process) -> bool:
    """Also where nobody has asked for its exit status yet."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def let_go(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()


def test_it_ends_when_the_leash_is_let_go(host: Host, tmp_path: Path) -> None:
    process, there = started(host, tmp_path / "log")
    let_go(process)
    assert process.wait() == 128 + signal.SIGTERM
    eventually(lambda: all(map(has_ended, there)))


@only_over_sshd
def test_it_ends_when_ssh_is_killed(host: Host, tmp_path: Path) -> None:
    process, there = started(host, tmp_path / "log")
    process.kill()
    eventually(lambda: all(map(has_ended, there)))
    assert process.wait() == -signal.SIGKILL
    let_go(process)


def test_its_exit_status_and_output_arrive(host: Host, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as stream:
        process = start_on(host, ["leaver"], stream)
    assert process.wait() == 7
    let_go(process)
    assert log.read_text().splitlines()[-1] == "out"


def test_a_machine_answers_what_it_has(host: Host) -> None:
    answer = ask_host(host, ["--engine", "torch"], 60)
    assert answer.status == 0, answer.said
    assert answer.seconds is not None and answer.report is not None


@only_over_sshd
def test_a_machine_that_refuses_is_told_apart(host: Host, tmp_path: Path) -> None:
    (tmp_path / "user_key").unlink()
    answer = ask_host(host, ["--engine", "torch"], 60)
    assert (answer.status, answer.seconds) == (SSH_FAILED, None)
    assert "Permission denied" in answer.said
