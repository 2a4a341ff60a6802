"""What protects a run on a Mac, as far as it can be tried elsewhere."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from forgellm import hardware, supervisor
from forgellm.paths import Workspace
from forgellm.runs.store import create_run
from forgellm.schema.recipe import Recipe
from forgellm.schema.run import RunState
from forgellm.training.awake import kept_awake

GIB = 2**30


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")


@pytest.mark.parametrize(
    ("total", "wired_limit_mb", "expected"),
    [
        (16 * GIB, "0\n", 16 * GIB * 2 // 3),
        (64 * GIB, "0\n", 48 * GIB),
        (64 * GIB, "57344\n", 56 * GIB),
        (64 * GIB, "unknown oid\n", 48 * GIB),
    ],
)
def test_the_budget_is_what_the_gpu_may_wire_down(
    mac: None, monkeypatch: pytest.MonkeyPatch, total: int, wired_limit_mb: str, expected: int
) -> None:
    def sysctl(command: list[str], **_: Any) -> Any:
        assert command[-1] == "iogpu.wired_limit_mb"
        return SimpleNamespace(stdout=wired_limit_mb)

    monkeypatch.setattr(subprocess, "run", sysctl)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=total))
    assert hardware.metal_working_set_bytes() == expected


def test_other_machines_have_no_working_set() -> None:
    if not hardware.is_apple_silicon():
        assert hardware.metal_working_set_bytes() is None


def test_a_mac_trains_with_mlx_in_bfloat16(mac: None) -> None:
    assert hardware.default_engine()[0] == (
        "mlx" if hardware.engine_is_installed("mlx") else "torch"
    )
    assert hardware.default_dtype("mlx")[0] == "bfloat16"


def test_a_mac_is_kept_awake_for_as_long_as_the_run_trains(
    mac: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []
    real = subprocess.Popen

    def caffeinate(command: list[str], **kwargs: Any) -> Any:
        started.append((command, real(["sleep", "60"], **kwargs)))
        return started[-1][1]

    monkeypatch.setattr(subprocess, "Popen", caffeinate)
    with kept_awake():
        ((command, process),) = started
        assert command[0].endswith("caffeinate")
        assert command[-2:] == ["-w", str(os.getpid())]
        assert process.poll() is None
    assert process.poll() is not None


def test_without_caffeinate_the_run_trains_all_the_same(
    mac: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "Popen", missing)
    with kept_awake():
        pass


@pytest.mark.parametrize(
    ("last_words", "error", "suggestion"),
    [
        (
            "libc++abi: terminating due to uncaught exception of type std::runtime_error: [METAL] "
            "Command buffer execution failed: Impacting Interactivity "
            "(0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity)",
            "display",
            "grad_accum_steps",
        ),
        (
            "[METAL] Command buffer execution failed: Insufficient Memory "
            "(00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)",
            "memory",
            "grad_checkpoint",
        ),
        ("Killed", "ended without finishing", "Resume"),
    ],
)
def test_what_metal_ended_is_told_with_what_to_do(
    tmp_path: Path, last_words: str, error: str, suggestion: str
) -> None:
    workspace = Workspace(tmp_path.resolve())
    run = create_run(workspace, Recipe(model_name="m", dataset="d"), 64, phase="queued")
    run.log_file.write_text(f"{last_words}\n")
    run.write_state(RunState(phase="training", iteration=7))
    supervisor.Supervisor(workspace).tick()
    found = run.written_state()
    assert found.phase == "interrupted"
    assert found.error is not None
    assert error in found.error["error"]
    assert suggestion in found.error["suggestion"]
