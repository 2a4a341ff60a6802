"""What a machine's answer means, line by line: in order, and what to do about what is missing."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from forgellm import __version__
from forgellm.hosts.asking import NO_PYTHON, NO_WORKSPACE, Answer
from forgellm.hosts.remote import why_unreachable
from forgellm.schema.hosts import CheckName, Finding, Held, Host, ProbeReport

_GB = 1_000_000_000
_OLDEST_PYTHON = (3, 11)
_OLD_FORGELLM = re.compile(r"No module named '?forgellm\.")
_NO_FORGELLM = re.compile(r"No module named '?forgellm\b")


@dataclass(frozen=True)
class Expected:
    """What this machine has, and what it was asked about.

    Attributes:
        here: the same report about this machine.
        model: its name; model_folder is its place in the workspace, None where `models pull`
            brings it.
        address: of this machine, for the host to connect to; None where it is not known.
        word: what the door at that address and `port` says.
    """

    here: ProbeReport
    model: str | None
    model_folder: str | None
    dataset_folder: str | None
    address: str | None
    port: int
    word: str


def findings_of(host: Host, answer: Answer, expected: Expected) -> Iterator[Finding]:
    """In the order in which one thing needs the other; ends where the rest cannot be known."""
    if answer.seconds is None:
        yield _unreached(host, answer)
        return
    yield Finding(check="ssh", ok=True, found=f"answers in {answer.seconds:.2f} s")
    if answer.status == NO_WORKSPACE:
        yield _missing(
            "workspace",
            f"{host.workspace} is not a folder there",
            f"Make it there, or set workspace in [hosts.{host.name}].",
        )
        return
    if found := _python(host, answer):
        yield found
        if not found.ok:
            return
    report = answer.report
    if report is None or report.forgellm_version != __version__:
        yield _forgellm(host, answer)
        return
    yield Finding(check="forgellm", ok=True, found=report.forgellm_version)
    yield _engine(host, report, expected.here)
    yield from _means(host, report)
    yield from _held_things(host, report, expected)
    yield _network(report, expected)


def _missing(check: CheckName, found: str, advice: str) -> Finding:
    return Finding(check=check, ok=False, found=found, advice=advice)


def _unreached(host: Host, answer: Answer) -> Finding:
    if answer.status < 0:
        return _missing("ssh", "no answer in time", f"Look what holds {host.address} up.")
    return _missing("ssh", *why_unreachable(host, answer.said))


def _python(host: Host, answer: Answer) -> Finding | None:
    where = f"set python in [hosts.{host.name}] to one of Python 3.11 or newer there."
    if answer.status == NO_PYTHON or answer.python_version is None:
        return _missing("python", f"{host.python} does not run there", f"Install it, or {where}")
    version = tuple(map(int, re.findall(r"\d+", answer.python_version)[:2]))
    if version < _OLDEST_PYTHON:
        return _missing(
            "python", f"{answer.python_version} is too old", f"Install 3.11, or {where}"
        )
    return Finding(check="python", ok=True, found=answer.python_version)


def _forgellm(host: Host, answer: Answer) -> Finding:
    advice = f"Install ForgeLLM {__version__} for {host.python} there, as on this machine."
    if answer.report is not None:
        found = f"{answer.report.forgellm_version} there, {__version__} here"
    elif answer.status < 0:
        found, advice = "the check did not end in time", f"Look what holds {host.address} up."
    elif _OLD_FORGELLM.search(answer.said):
        found = f"older than {__version__}: it cannot be checked"
    elif _NO_FORGELLM.search(answer.said):
        found = f"not installed for {host.python}"
    else:
        lines = answer.said.strip().splitlines() or ["it ended without a result"]
        found = f"does not run: {lines[-1].strip()[:300]}"
    return _missing("forgellm", found, advice)


def _engine(host: Host, report: ProbeReport, here: ProbeReport) -> Finding:
    name, version = report.engine, report.engine_version
    install = f"There: {host.python} -m pip install "
    if version is None:
        return _missing("engine", f"{name} is not installed", f"{install}'forgellm[{name}]'")
    public = version.partition("+")[0]  # builds for CPU and CUDA go together
    wanted = (here.engine_version or public).partition("+")[0]
    if public != wanted:
        found = f"{name} {version} there, {here.engine_version} here"
        return _missing("engine", found, f"{install}{name}=={wanted}")
    return Finding(check="engine", ok=True, found=f"{name} {version}")


def _means(host: Host, report: ProbeReport) -> Iterator[Finding]:
    gpus = [f"{report.gpus.count(name)} x {name}" for name in dict.fromkeys(report.gpus)]
    found = ", ".join([*(gpus or ["no NVIDIA GPU"]), f"{report.num_cores} cores"])
    yield Finding(check="compute", ok=True, found=found)
    memory = f"{report.memory_available_bytes / _GB:.1f} GB free"
    yield Finding(check="memory", ok=True, found=memory)
    disk = f"{report.disk_free_bytes / _GB:.1f} GB free in {host.workspace}"
    yield Finding(check="disk", ok=True, found=disk)


def _held_things(host: Host, report: ProbeReport, expected: Expected) -> Iterator[Finding]:
    here = expected.here
    if report.model and here.model:
        folder, name = expected.model_folder, shlex.quote(expected.model or "")
        pull = f"There: forgellm models pull {name}"
        copy = _copy(host, folder, report.model) if folder else pull
        yield _held("model", report.model, here.model, copy)
    if report.dataset and here.dataset and expected.dataset_folder:
        copy = _copy(host, expected.dataset_folder, report.dataset)
        yield _held("dataset", report.dataset, here.dataset, copy)


def _held(check: CheckName, there: Held, here: Held, advice: str) -> Finding:
    if there.fingerprint is None:
        return _missing(check, there.problem or "not there", advice)
    if there.fingerprint != here.fingerprint:
        return _missing(check, "is there, but differs from the one here", advice)
    return Finding(check=check, ok=True, found="there, the same as here")


def _copy(host: Host, folder: str, there: Held) -> str:
    """What brings a folder of the workspace to the same place there."""
    options = " --delete" if there.fingerprint else ""
    if host.port is not None:
        options += f" -e {shlex.quote(f'ssh -p {host.port}')}"
    machine = f"[{host.address}]" if ":" in host.address else host.address
    user = f"{host.user}@" if host.user else ""
    target = shlex.quote(f"{user}{machine}:{host.workspace}/")
    return f"In the workspace: rsync -aR{options} {shlex.quote(folder)} {target}"


def _network(report: ProbeReport, expected: Expected) -> Finding:
    if expected.address is None:
        found = "which address of this machine leads there is not known"
        return _missing("network", found, "Give one with --address.")
    place = f"{expected.address}, port {expected.port}"
    advice = "Open this machine's firewall to it, or name an address it can reach with --address."
    if report.greeting is None:
        return _missing("network", f"cannot connect to {place}: {report.connect_problem}", advice)
    if report.greeting != expected.word:
        return _missing("network", f"something else answers at {place}", advice)
    return Finding(check="network", ok=True, found=f"connects to {place}")
