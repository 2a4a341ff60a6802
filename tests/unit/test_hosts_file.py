"""`hosts.toml`: what it may say, and what is said where it is wrong."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from forgellm.errors import ConfigError
from forgellm.hosts.file import EXAMPLE, find_hosts, read_hosts
from forgellm.hosts.remote import remote_command, ssh_arguments, why_unreachable
from forgellm.paths import Workspace
from forgellm.schema.hosts import Host


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def write(workspace: Workspace, text: str) -> None:
    (workspace.root / "hosts.toml").write_text(text)


def test_what_is_left_out_is_as_here(workspace: Workspace) -> None:
    write(workspace, f'{EXAMPLE}\n[hosts.b]\naddress = "::1"\nuser = "anna"\nport = 2222\n')
    first, second = read_hosts(workspace)
    assert (first.name, first.address, first.python) == ("gpu1", "192.168.1.20", "python3")
    assert (first.workspace, first.user, first.port) == (str(workspace.root), None, None)
    assert (second.address, second.user, second.port) == ("::1", "anna", 2222)


def test_machines_are_found_by_name_in_the_order_asked_for(workspace: Workspace) -> None:
    write(workspace, '[hosts.a]\naddress = "a"\n[hosts.b]\naddress = "b"\n')
    assert [host.name for host in find_hosts(workspace, ["b", "a"])] == ["b", "a"]
    with pytest.raises(ConfigError, match=r"no \[hosts.c\]") as error:
        find_hosts(workspace, ["a", "c"])
    assert "a, b" in error.value.suggestion
    with pytest.raises(ConfigError, match="a is named twice"):
        find_hosts(workspace, ["a", "a"])


def test_without_a_file_there_are_none_and_an_example_is_shown(workspace: Workspace) -> None:
    assert read_hosts(workspace) == []
    with pytest.raises(ConfigError, match=r"hosts\.toml") as error:
        find_hosts(workspace, ["gpu1"])
    assert error.value.details["searched_paths"] == ["hosts.toml"]
    write(workspace, error.value.suggestion.split("\n", 1)[1])
    assert [host.name for host in find_hosts(workspace, ["gpu1"])] == ["gpu1"]


@pytest.mark.parametrize(
    ("text", "field", "words"),
    [
        ("[hosts.a\n", "hosts.toml", "line 1"),
        ("[hosts.a]\n", "hosts.a.address", "required"),
        ("hosts = 3\n", "hosts", "as a table"),
        ('[a]\naddress = "a"\n', "a", "[hosts.NAME]"),
        ('[hosts]\na = "b"\n', "hosts.a", "must be a table"),
        ('[hosts."-a"]\naddress = "a"\n', "hosts.-a", "must be letters"),
        ('[hosts.a]\naddress = "-oProxyCommand=x"\n', "hosts.a.address", "alone"),
        ('[hosts.a]\naddress = "b c"\n', "hosts.a.address", "alone"),
        ('[hosts.a]\naddress = "a;b"\n', "hosts.a.address", "alone"),
        ('[hosts.a]\naddress = "anna@b"\n', "hosts.a.address", "alone"),
        ('[hosts.a]\naddress = "a"\nuser = "-l"\n', "hosts.a.user", "alone"),
        ('[hosts.a]\naddress = "a"\nport = "22"\n', "hosts.a.port", "integer"),
        ('[hosts.a]\naddress = "a"\nport = 70000\n', "hosts.a.port", "65535"),
        ('[hosts.a]\naddress = "a"\nworkspace = "work"\n', "hosts.a.workspace", "absolute"),
        ('[hosts.a]\naddress = "a"\nworkspace = "/a\\n"\n', "hosts.a.workspace", "line breaks"),
        ('[hosts.a]\naddress = "a"\npython = "~/bin/python"\n', "hosts.a.python", "whole path"),
        ('[hosts.a]\naddress = "a"\nproxy = "b"\n', "hosts.a.proxy", "unknown field"),
        ('[hosts.a]\naddress = "a"\nname = "b"\n', "hosts.a.name", "unknown field"),
    ],
)
def test_what_is_wrong_is_named(workspace: Workspace, text: str, field: str, words: str) -> None:
    write(workspace, text)
    with pytest.raises(ConfigError) as error:
        read_hosts(workspace)
    (problem,) = error.value.details["problems"]
    assert problem["field"] == field
    assert words in problem["message"]
    assert "hosts.toml" in str(error.value) + error.value.suggestion


def test_every_wrong_machine_is_named_at_once(workspace: Workspace) -> None:
    write(workspace, '[hosts.a]\nport = 0\n[hosts.b]\naddress = "-"\n')
    with pytest.raises(ConfigError) as error:
        read_hosts(workspace)
    fields = [problem["field"] for problem in error.value.details["problems"]]
    assert fields == ["hosts.a.address", "hosts.a.port", "hosts.b.address"]


def test_the_command_there_is_quoted() -> None:
    host = Host(
        name="a", address="b", user="anna", port=7, workspace="/the work", python="/my python"
    )
    command = remote_command(host, ["module", "it's; one"])
    assert shlex.split(command) == [
        "cd", "/the work", "&&", "exec", "env", "FORGELLM_WORKSPACE=/the work", "/my python", "-P",
        "-m", "module", "it's; one",
    ]  # fmt: skip
    assert ssh_arguments(host)[-6:] == ["-p", "7", "-l", "anna", "--", "b"]


def test_what_ssh_says_leads_to_advice() -> None:
    host = Host(name="a", address="b", user="anna", workspace="/w")
    said = "a banner\nanna@b: Permission denied (publickey).\n"
    reason, advice = why_unreachable(host, said)
    assert reason == "anna@b: Permission denied (publickey)."
    assert advice.endswith("ssh anna@b")
    assert why_unreachable(host, "")[0]
