"""`forgellm hosts check`, with a program `ssh` that runs on this machine what it is given."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forgellm import __version__
from forgellm.cli.main import main
from stand_in_ssh import build_light_workspace, write_program, write_ssh

Checks = dict[str, dict[str, dict[str, Any]]]
Check = Callable[..., tuple[int, Checks]]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = write_ssh(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "no-cache"))
    return build_light_workspace(tmp_path / "here")


@pytest.fixture
def check(here: Path, capsys: pytest.CaptureFixture[str]) -> Check:
    """Exit code and findings, by host and check."""

    def run(hosts: dict[str, dict[str, str]], *flags: str) -> tuple[int, Checks]:
        lines: list[str] = []
        for name, table in hosts.items():
            values = {"address": "there", "python": sys.executable, **table}
            lines.append(f"[hosts.{name}]")
            lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
        (here / "hosts.toml").write_text("\n".join(lines))
        code = main(["hosts", "--workspace", str(here), "check", "--json", *flags])
        items = json.loads(capsys.readouterr().out)
        return code, {i["name"]: {f["check"]: f for f in i["findings"]} for i in items}

    return run


def test_a_machine_that_has_all_is_ready(here: Path, check: Check) -> None:
    there = shutil.copytree(here, here.parent / "there")
    code, hosts = check({"a": {"workspace": str(there)}}, "--model=small", "--dataset=notes")
    assert code == 0
    assert list(hosts["a"]) == [
        "ssh", "python", "forgellm", "engine", "compute", "memory", "disk", "model", "dataset",
        "network",
    ]  # fmt: skip
    assert all(finding["ok"] for finding in hosts["a"].values())
    assert hosts["a"]["forgellm"]["found"] == __version__
    assert "127.0.0.1" in hosts["a"]["network"]["found"]


def test_what_is_missing_or_differs_is_named_with_what_to_do(here: Path, check: Check) -> None:
    other = shutil.copytree(here, here.parent / "other")
    (other / "dataset" / "notes" / "one.txt").write_text("The lamp keeper counts twelve boats.\n")
    shutil.rmtree(other / "models")
    hosts = {
        "other": {"workspace": str(other)},
        "unmade": {"workspace": str(here.parent / "unmade")},
        "lost": {"address": "nowhere"},
    }
    code, found = check(hosts, "--model", "small", "--dataset", "notes", "--address", "::2")
    assert code == 1
    model, dataset, network = (found["other"][name] for name in ("model", "dataset", "network"))
    assert "Model not found" in model["found"]
    assert f"rsync -aR models/base/small there:{other}/" in model["advice"]
    assert "differs" in dataset["found"]
    assert f"rsync -aR --delete dataset/notes there:{other}/" in dataset["advice"]
    assert "::2" in network["found"] and "--address" in network["advice"]
    assert list(found["unmade"]) == ["ssh", "workspace"]
    assert list(found["lost"]) == ["ssh"]
    assert "resolve" in found["lost"]["ssh"]["found"]
    assert "[hosts.lost]" in found["lost"]["ssh"]["advice"]


def test_a_python_that_cannot_run_the_check_is_told_apart(here: Path, check: Check) -> None:
    programs = here.parent / "programs"
    bare = f'exec env PYTHONPATH="{programs}/$1" {sys.executable} -S'
    for name, text in {
        "old-python": '[ "$1" = -V ] && echo "Python 3.9.2" || exit 2',
        "bare": f'{bare} "$@"',
        "old-forgellm": f'{bare.replace("$1", "older")} "$@"',
    }.items():
        write_program(programs / name, f"#!/bin/sh\n{text}\n")
    write_program(programs / "older" / "forgellm" / "__init__.py", "")
    names = ["no-python", "old-python", "bare", "old-forgellm"]
    code, found = check({name: {"python": str(programs / name)} for name in names})
    assert code == 1
    last = {name: list(findings.values())[-1] for name, findings in found.items()}
    assert {name: finding["check"] for name, finding in last.items()} == {
        "no-python": "python", "old-python": "python", "bare": "forgellm",
        "old-forgellm": "forgellm",
    }  # fmt: skip
    assert "does not run" in last["no-python"]["found"]
    assert "3.9.2" in last["old-python"]["found"]
    assert "not installed" in last["bare"]["found"]
    assert "older" in last["old-forgellm"]["found"]
    assert all(finding["advice"] for finding in last.values())


def test_what_is_not_even_here_is_said_before_any_machine_is_asked(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "hosts.toml").write_text('[hosts.a]\naddress = "nowhere"\n')
    command = ["hosts", "--workspace", str(here), "check"]
    assert main([*command, "--model", "absent"]) == 1
    assert "MODEL_NOT_FOUND" in capsys.readouterr().err
    assert main([*command, "b"]) == 2
    assert "[hosts.b]" in capsys.readouterr().err


def test_the_table_has_a_line_for_each_finding(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "hosts.toml").write_text('[hosts.a]\naddress = "nowhere"\n')
    assert main(["hosts", "--workspace", str(here), "check"]) == 1
    out = capsys.readouterr().out
    assert "MISSING" in out and "Correct address in [hosts.a]" in out
    assert out.rstrip().endswith("0 of 1 ready.")
