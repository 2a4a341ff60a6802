"""Paths and names that lead elsewhere: nothing outside the workspace is opened, listed or told of."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson
import pytest

import forgellm
from forgellm.guard import GuardSettings
from forgellm.paths import Workspace, hub_cache
from forgellm.web.app import create_app
from security.attack import INSIDE, SECRET, Answer, Ask, Server
from security.conftest import Servers
from security.corpus import usual_request
from serving import served
from socket_listener import listening

JSON = (("content-type", "application/json"),)
_WATCHED = {"open", "os.listdir", "os.scandir", "os.remove", "os.rename", "os.rmdir", "os.mkdir",
            "os.link", "os.symlink", "os.chmod", "shutil.copyfile", "shutil.rmtree", "shutil.move",
            "glob.glob", "os.utime", "os.truncate", "os.chdir", "os.fwalk", "os.walk"}  # fmt: skip
_seen: set[str] | None = None


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _seen is not None and event in _WATCHED:
        names = arguments[:1] if event == "open" else arguments[:2]
        _seen.update(os.fsdecode(name) for name in names if isinstance(name, str | bytes))


sys.addaudithook(_watch)


@contextmanager
def watched() -> Iterator[set[str]]:
    """The names of all files that this process opens, lists, moves or removes in the block."""
    global _seen
    _seen = found = set()
    try:
        yield found
    finally:
        _seen = None


def is_allowed(name: str, workspace: Workspace) -> bool:
    """What the workspace, the hub cache, Python and the operating system's figures hold."""
    own = [workspace.root, hub_cache().parent, Path(forgellm.__file__).parent]
    python = [Path(sys.prefix), Path(sys.base_prefix), Path(sysconfig.get_paths()["stdlib"])]
    system = [Path("/proc"), Path("/sys"), Path("/dev/null"), Path("/dev/urandom")]
    real = Path(os.path.realpath(name))
    return any(real.is_relative_to(folder.resolve()) for folder in (*own, *python, *system))


def payloads(outside: Path) -> list[str]:
    """Ways of writing the path of a folder or file outside, and names that systems take amiss."""
    targets = [
        "etc/passwd",
        "outside",
        "outside/secret.txt",
        "workspace-evil",
        "workspace-evil/secret.txt",
    ]
    ups = ["../", "../../", "../" * 12, "..\\", "..//", ".././", "....//", "..;/", "%2e%2e/", "%2e%2e%2f",
           "%252e%252e%252f", "..%2f", "..%252f", "..%5c", "..%c0%af", "..%ef%bc%8f", "..%00/", "..\x00/", "．．/",
           "‥/", "../\u2215", "..\u2044", "..\u29f8", ".%2e/", "%u002e%u002e/", "..%u2215", "\\..\\", "/../", "./../",
           "x/../../", "notes/../../", "models/../../", "base/../../../", "dataset/../../", "tiny/../../../../",
           "link/../", "notes/link.txt/../", "\t../", " ../", "../ ", "\u200b../", "..\u200b/", "..\n/", "..\r\n/"]  # fmt: skip
    found = [up + target for up in ups for target in targets]
    for folder in (
        outside,
        outside.with_name("workspace-evil"),
        Path("/etc"),
        Path("/root"),
        Path("/"),
    ):
        name = str(folder)
        found += [name, name + "/", "/" + name, "file://" + name, name.replace("/", "\\"), quote(name, safe=""),
                  name + "/secret.txt", name + "/passwd", name + "\x00", name + "/.", name + "%00.txt", "C:" + name,
                  "//localhost" + name, "\\\\?\\" + name, "~/../.." + name, name.upper()]  # fmt: skip
    found += ["link", "link/", "link/secret.txt", "link/config.json", "dataset/link", "models/base/link", "base/link",
              "cpt/link", "models/cpt/link", "notes/link.txt", "dataset/notes/link.txt", "./link/.", "link/../link",
              "~", "~root", "~/.ssh/id_rsa", "$HOME", "${HOME}/x", "%USERPROFILE%", "`id`", "$(id)", ";id", "|id",
              "-rf", "--help", "*", "?", "[a-z]*", "{a,b}", "..", "...", "/", "//", "\\", "\x00", "\x01", "\x7f",
              "CON", "NUL", "aux.txt", "COM1", "LPT1:", "notes::$DATA", "notes.", "/dev/zero", "/dev/stdin",
              "/dev/fd/0", "/proc/self/environ", "/proc/self/root/etc/passwd", "/proc/self/cwd/x",
              "a" * 300, "a/" * 190 + "b", "../" * 130, "\u202e/etc", "ＮＯＴＥＳ", "ｅｔｃ", "no\u0301tes", "\ufeffnotes",
              "http://169.254.169.254/", "a@b", "../..", "hf://x/y", "x/../..", "models--x--y", "a--b/c",
              ".forgellm/../../outside", "notes#", "notes?x=1", "notes;x", "tiny/../link"]  # fmt: skip
    return list(dict.fromkeys(found))


def body_asks(server: Server, value: str) -> Iterator[Ask]:
    """`value` in each text field of each request body, the other fields being possible."""
    for method, path, operation in server.operations("POST", "PUT", "PATCH", "DELETE"):
        schema = server.schema(operation)
        usual = usual_request(server, schema)
        for name, field in schema.get("properties", {}).items():
            if _is_free_text(server, field):
                fits = {"model_name": "tiny"} if name != "model_name" else {}
                # With a dataset that is there, only a hostile name keeps a run from starting.
                fits |= {"dataset": "notes"} if name == "replay_dataset" else {}
                body = (
                    usual | {key: fits[key] for key in fits.keys() & usual.keys()} | {name: value}
                )
                yield Ask(method, path.replace("{", "").replace("}", ""), JSON, (_dumps(body),))


def url_asks(server: Server, value: str) -> Iterator[Ask]:
    """`value` in each parameter of each route's path and query, as it is and percent-encoded."""
    for method, path, operation in server.operations():
        for parameter in operation.get("parameters", []):
            if not _is_free_text(server, parameter.get("schema", {})):
                continue
            name = parameter["name"]
            for text in dict.fromkeys((value, quote(value, safe=""))):
                if parameter["in"] == "query":
                    yield Ask(method, _rest(path), query=f"{name}={quote(text)}")
                elif parameter["in"] == "path":
                    yield Ask(method, _rest(path.replace(_place(path, name), text)), JSON, (b"{}",))


def reveals(answer: Answer) -> bool:
    """Whether it broke the server, or tells what is outside (a refusal may repeat what was asked)."""
    if answer.status >= 500 or SECRET.encode() in answer.body:
        return True
    return (
        answer.status < 400 and answer.ask.query == "" and bool(INSIDE.search(answer.body.decode()))
    )


@pytest.mark.parametrize("step", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_no_path_leads_out_of_the_workspace(
    servers: Servers, workspace: Workspace, step: int
) -> None:
    tried = payloads(workspace.root.with_name("outside"))
    before = _hashes(workspace.root.parent)
    num_asks = 0
    wrong: list[str] = []
    with watched() as opened:
        for server in servers:
            for index, value in enumerate(tried):
                asks = [*body_asks(server, value), *url_asks(server, value)][index % step :: step]
                num_asks += len(asks)
                wrong += [str(answer) for answer in server.ask(*asks) if reveals(answer)]
    assert wrong == []
    assert num_asks >= 5000, num_asks
    assert [name for name in sorted(opened) if not is_allowed(name, workspace)] == []
    assert before.items() <= _hashes(workspace.root.parent).items()


def test_no_subscription_leads_out_of_the_workspace(workspace: Workspace) -> None:
    tried = [value for value in payloads(workspace.root.with_name("outside")) if value]

    async def answers(url: str) -> list[dict[str, Any]]:
        async with await listening(url) as listener:
            return [await listener.subscribe(training_id=value) for value in tried]

    app = create_app(workspace, GuardSettings(), "http://127.0.0.1:1")
    with served(app) as web, watched() as opened:
        found = asyncio.run(answers(str(web.base_url)))
    assert {answer["error_code"] for answer in found} == {"RUN_NOT_FOUND"}
    assert SECRET not in str(found)
    assert [name for name in sorted(opened) if not is_allowed(name, workspace)] == []


def test_the_watch_sees_an_open_outside(workspace: Workspace) -> None:
    secret = workspace.root / "link" / "secret.txt"
    with watched() as opened:
        secret.read_text()
        os.listdir(workspace.root.with_name("outside"))
        (workspace.root / "dataset" / "notes" / "000.txt").read_text()
    assert [name for name in opened if not is_allowed(name, workspace)] != []
    assert len([name for name in opened if is_allowed(name, workspace)]) == 1


@pytest.mark.parametrize("form", ["../outside{}", "{}", "dataset/../../outside{}", "link{}"])
def test_absent_and_forbidden_look_the_same(
    servers: Servers, workspace: Workspace, form: str
) -> None:
    def answers(name: str) -> list[tuple[int, bytes]]:
        outside = str(workspace.root.with_name("outside")) if form == "{}" else ""
        value = form.format(f"{outside}/{name}")
        found = []
        for server in servers:
            for answer in server.ask(*body_asks(server, value), *url_asks(server, value)):
                body = answer.body.replace(name.encode(), b"NAME")
                found.append((answer.status, re.sub(rb"job_[0-9a-f]+", b"JOB", body)))
        return found

    answers("first.txt")  # uploads make the datasets that are named
    for there, absent in zip(answers("secret.txt"), answers("absent.txt"), strict=True):
        assert there == absent


def _is_free_text(server: Server, field: dict[str, Any]) -> bool:
    field = server.resolve(field)
    options = field.get("anyOf", [field])
    return any(
        option.get("type") == "string" and "enum" not in option and "const" not in option
        for option in map(server.resolve, options)
    )


def _place(path: str, name: str) -> str:
    return next(part for part in (f"{{{name}}}", f"{{{name}:path}}") if part in path)


def _rest(path: str) -> str:
    return path.replace("{", "").replace("}", "")


def _dumps(value: dict[str, Any]) -> bytes:
    return orjson.dumps(value)


def _hashes(folder: Path) -> dict[str, bytes]:
    """What lies in the folder, the workspace's own files included."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
