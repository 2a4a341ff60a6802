"""What the benchmarks share: contenders in processes of their own, in turn, and tables of the outcome.

Only the standard library, so that it also runs in the peers' environment.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Figures = dict[str, Any]
_PEERS = Path(__file__).parent.parent / ".venv-bench/bin/python"
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def peer_python() -> str:
    """The interpreter of the peers' environment, or this one where `make bench` has not made one."""
    return str(_PEERS) if _PEERS.exists() else sys.executable


def add_rounds(parser: argparse.ArgumentParser) -> None:
    usual = int(os.environ.get("ROUNDS", 3))  # as `make bench ROUNDS=1` has it
    parser.add_argument("--rounds", type=int, default=usual, help="how often each is measured")


def take_turns(
    names: Iterable[str], rounds: int, measure: Callable[[str], Figures]
) -> dict[str, list[Figures]]:
    """Each contender's figures of every round. A machine that changes its pace changes it for all."""
    found: dict[str, list[Figures]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, figures in found.items():
            figures.append(measure(name))
    return found


def run_contender(arguments: Sequence[str], python: str = sys.executable) -> Figures:
    """What this script, called with `arguments`, prints as its last line, a JSON object.

    The child finds the time of its own start in BENCH_STARTED, for the seconds to a first step.
    """
    environment = os.environ | {"BENCH_STARTED": str(time.time()), "HF_HUB_OFFLINE": "1"}
    command = [python, sys.argv[0], *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{done.stderr}\n{' '.join(arguments)} failed")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def seconds_since_start() -> float:
    return time.time() - float(os.environ["BENCH_STARTED"])


def cpu_seconds() -> float:
    """Of this process and the children it has waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def peak_bytes() -> int:
    """The most memory that this process has held at once."""
    try:
        text = Path("/proc/self/status").read_text()
        return 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", text)[0])
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak


@dataclass(frozen=True)
class Column:
    """A figure of the tables.

    Attributes:
        name: its key in the contenders' figures.
        title: the column's heading.
        form: a format of one number, such as "{:.1f} GB".
        spread: show the lowest and the highest round, too.
        ratio: how many times ours is better than the row's: "more" or "less" is better; "" for none.
    """

    name: str
    title: str
    form: str = "{:.1f}"
    spread: bool = False
    ratio: str = ""


def print_table(title: str, columns: list[Column], found: dict[str, list[Figures]]) -> None:
    """Markdown: a row for each contender, the first of which is ours. Medians over the rounds."""
    headings = [title]
    for column in columns:
        headings += [column.title, *(["ratio"] if column.ratio else [])]
    print("\n| " + " | ".join(headings) + " |")
    print("|---" + "|--:" * (len(headings) - 1) + "|")
    ours = next(iter(found.values()))
    for name, rounds in found.items():
        cells = [name]
        for column in columns:
            cells += _cells(column, rounds, ours)
        print("| " + " | ".join(cells) + " |", flush=True)


def _cells(column: Column, rounds: list[Figures], ours: list[Figures]) -> list[str]:
    values = [figures[column.name] for figures in rounds if figures.get(column.name) is not None]
    if not values:
        return ["", *([""] if column.ratio else [])]
    middle = statistics.median(values)
    cell = column.form.format(middle)
    if column.spread and len(values) > 1:
        low, high = column.form.format(min(values)), column.form.format(max(values))
        cell += f" ({low} to {high})"
    if not column.ratio:
        return [cell]
    own = statistics.median([figures[column.name] for figures in ours])
    return [cell, f"{own / middle if column.ratio == 'more' else middle / own:.2f}x"]


def print_heading(title: str, packages: Sequence[str], python: str | None = None) -> None:
    """What was measured, on which machine, with which versions."""
    print(f"\n## {title}\n")
    print(
        f"{machine()}; {versions(packages, python or peer_python())}; {time.strftime('%Y-%m-%d')}"
    )


def machine() -> str:
    """The processor, how many cores this process may use, its vector units, and how busy it is."""
    name, flags = platform.processor() or platform.machine(), set()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        text = cpuinfo.read_text()
        name = "".join(re.findall(r"model name\s*: (.*)", text)[:1]) or name
        flags = set("".join(re.findall(r"flags\s*: (.*)", text)[:1]).split())
    units = ", ".join(flag for flag in _FLAGS if flag in flags) or "no vector units named"
    lacking = "" if "amx_bf16" in flags else ", no AMX"
    return f"{name}, {os.cpu_count()} cores ({units}{lacking}), load {os.getloadavg()[0]:.1f}"


def versions(packages: Sequence[str], python: str) -> str:
    code = (
        "import sys; from importlib.metadata import version\n"
        "print(', '.join(f'{name} {version(name)}' for name in sys.argv[1:]))"
    )
    done = subprocess.run([python, "-c", code, *packages], stdout=subprocess.PIPE, text=True)
    return done.stdout.strip() or "the peers are not installed: make bench"
