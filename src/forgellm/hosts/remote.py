"""Modules of ours, run on another machine over plain ssh: with the user's own keys and settings."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO

from forgellm.errors import Unavailable
from forgellm.schema.hosts import Host

LEASH = "forgellm.hosts.leash"
SSH_FAILED = 255  # ssh's own exit status; any other is that of the command there

_OPTIONS = {
    "BatchMode": "yes",  # nobody is there to be asked for a password
    "ConnectTimeout": "10",
    # A link that is cut without a word ends after about 30 seconds.
    "ServerAliveInterval": "10",
    "ServerAliveCountMax": "3",
    # A connection of its own: one that the user's other windows share would outlive ours.
    "ControlMaster": "no",
    "ControlPath": "none",
    "ForwardAgent": "no",
    "ForwardX11": "no",
}

# The first of these that stands in what ssh said decides what to do about it.
_ADVICE = {
    "Host key verification failed": "Connect once by hand and accept its key: {ssh}",
    "Permission denied": "Let this machine's key in there, or load it into ssh-agent; this must ask for no password: {ssh}",
    "Could not resolve": "Correct address in [hosts.{name}] of hosts.toml.",
    "refused": "Start sshd there, or give its port in [hosts.{name}] of hosts.toml.",
}


def start_on(
    host: Host, module_arguments: Sequence[str], log: IO[bytes] | int
) -> subprocess.Popen[bytes]:
    """Starts `python -P -m MODULE ARGUMENT...` in the workspace on `host`; its output goes to `log`.

    The process returned is ssh, in a session of its own, so that Ctrl-C here does not cut it off.
    Its exit status is the module's, or SSH_FAILED where ssh itself failed. Its stdin is a leash:
    when that closes, because it is closed or because this process or ssh is gone, the module gets
    SIGTERM there, and soon after SIGKILL. So the object must be kept; a `with` block or
    `communicate()` would end the module.

    A terminal (`ssh -tt`) would tell the other side too, but by SIGHUP, to some of the processes
    there; it would mix "\\r" and progress bars into the log; and servers may refuse one.

    Raises Unavailable where this machine has no ssh.
    """
    command = remote_command(host, [LEASH, *module_arguments])
    with _without_ssh_said():
        return subprocess.Popen(
            [*ssh_arguments(host), command],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def ask(host: Host, script: str, complaints: IO[bytes]) -> subprocess.Popen[bytes]:
    """Runs a script of sh there that ends by itself; what it prints can be read.

    Raises Unavailable where this machine has no ssh.
    """
    with _without_ssh_said():
        return subprocess.Popen(
            [*ssh_arguments(host), f"exec sh -c {shlex.quote(script)}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=complaints,
        )


def remote_command(host: Host, module_arguments: Sequence[str]) -> str:
    """For the login shell there, whichever it is: hence `env`, and -P as a file in the workspace
    must not pass for a module."""
    assignment = f"FORGELLM_WORKSPACE={host.workspace}"
    words = ["env", assignment, host.python, "-P", "-m", *module_arguments]
    return f"cd {shlex.quote(host.workspace)} && exec {shlex.join(words)}"


def ssh_arguments(host: Host) -> list[str]:
    """`ssh` and its options, up to and with the machine."""
    arguments = ["ssh", "-T"]
    for name, value in _OPTIONS.items():
        arguments += ["-o", f"{name}={value}"]
    if host.port is not None:
        arguments += ["-p", str(host.port)]
    if host.user is not None:
        arguments += ["-l", host.user]
    return [*arguments, "--", host.address]


def shown_ssh(host: Host) -> str:
    """The command with which a person gets there."""
    port = f"-p {host.port} " if host.port is not None else ""
    user = f"{host.user}@" if host.user else ""
    return f"ssh {port}{user}{host.address}"


def why_unreachable(host: Host, said: str) -> tuple[str, str]:
    """From what ssh printed before it failed: what is wrong, and what to do."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    reason = lines[-1] if lines else "ssh ended without a word"
    advice = next((text for words, text in _ADVICE.items() if words in said), None)
    advice = advice or "See that it is on and that a firewall lets ssh through: {ssh}"
    return reason, advice.format(ssh=shown_ssh(host), name=host.name)


@contextmanager
def _without_ssh_said() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise Unavailable(
            "This machine has no ssh", suggestion="Install OpenSSH's client."
        ) from None
