"""What this machine is, and the choices that follow from it, each with its reason.

Answers without importing a model library, so that the servers may ask.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil

GB = 1_000_000_000


def is_apple_silicon() -> bool:
    return platform.system() == "Darwin" and platform.machine() == "arm64"


def default_engine() -> tuple[str, str]:
    """Name of the engine that `auto` means here, and why."""
    if is_apple_silicon() and engine_is_installed("mlx"):
        return "mlx", "MLX is the fastest on Apple silicon"
    if engine_is_installed("mlx") and not engine_is_installed("torch"):
        return "mlx", "PyTorch is not installed"
    return "torch", "PyTorch computes on NVIDIA GPUs and on every processor"


def engine_is_installed(name: str) -> bool:
    """Whether an engine's library is there. It is looked for, not imported."""
    return importlib.util.find_spec({"mlx": "mlx_lm"}.get(name, name)) is not None


@functools.cache
def cpu_flags() -> frozenset[str]:
    """Instruction-set flags of the processor, as Linux names them; empty elsewhere."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return frozenset(line.split(":", 1)[1].split())
    except OSError:
        pass
    return frozenset()


def cpu_dtype() -> tuple[str, str]:
    """Compute type for a processor, and why."""
    if "amx_bf16" in cpu_flags():
        return "bfloat16", "this processor multiplies bfloat16 in hardware (AMX)"
    return "float32", "this processor has no AMX, so float32 is as fast as bfloat16 or faster"


@dataclass(frozen=True)
class Gpu:
    name: str
    total_bytes: int
    free_bytes: int
    compute_capability: float


def gpu() -> Gpu | None:
    """The first NVIDIA GPU, as its driver's own tool describes it; None without one."""
    found = _ask_gpu("name,memory.total,memory.free,compute_cap")
    try:
        name, total, free, capability = found
        return Gpu(name, int(total) * 2**20, int(free) * 2**20, float(capability))
    except ValueError:
        return None


def gpu_utilization() -> float | None:
    """Share of the last moment in which the first NVIDIA GPU computed, 0 to 1; None without one."""
    try:
        return int(_ask_gpu("utilization.gpu")[0]) / 100
    except (ValueError, IndexError):
        return None


@functools.cache
def gpu_names() -> tuple[str, ...]:
    """Of all NVIDIA GPUs of this machine. They are asked once: the answer may take seconds."""
    return tuple(name for name, *_ in _ask_gpus("name"))


def num_cores() -> int:
    """Those that this process may use, where the system says it."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _ask_gpu(fields: str) -> list[str]:
    """The first GPU's answer; empty without one."""
    return next(iter(_ask_gpus(fields)), [])


def _ask_gpus(fields: str) -> list[list[str]]:
    """Each GPU's answer to `nvidia-smi --query-gpu`; none without one."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    try:
        result = subprocess.run(
            [tool, f"--query-gpu={fields}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
        return [line.split(", ") for line in result.stdout.splitlines() if line]
    except (OSError, subprocess.SubprocessError):
        return []


def default_dtype(engine: str = "torch") -> tuple[str, str]:
    """Compute type of this machine's fastest device for an engine, and why."""
    if engine == "mlx":
        device = "Metal" if is_apple_silicon() else "MLX on a processor"
        return "bfloat16", f"{device} computes fastest in bfloat16"
    found = gpu()
    if found is None:
        return cpu_dtype()
    if found.compute_capability >= 8:
        return "bfloat16", f"{found.name} computes fastest in bfloat16"
    return "float32", f"{found.name} is too old for bfloat16"


def training_memory_bytes() -> int:
    """Free memory of the device that trains."""
    found = gpu()
    if found:
        return found.free_bytes
    return min(memory_available_bytes(), metal_working_set_bytes() or 2**62)


def metal_working_set_bytes() -> int | None:
    """How much of a Mac's memory its GPU may hold at once; None on other machines.

    What `sysctl iogpu.wired_limit_mb` sets, else macOS's own rule: three quarters, and two thirds
    on machines of up to 36 GB. Not run on a Mac so far.
    """
    if not is_apple_silicon():
        return None
    total = int(psutil.virtual_memory().total)
    return _wired_limit_bytes() or (total * 2 // 3 if total <= 36 * 2**30 else total * 3 // 4)


def _wired_limit_bytes() -> int:
    """0 where the user of the machine has set none."""
    try:
        result = subprocess.run(
            ["/usr/sbin/sysctl", "-n", "iogpu.wired_limit_mb"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
        return int(result.stdout) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError):
        return 0


def memory_total_bytes() -> int:
    return min(psutil.virtual_memory().total, _cgroup_limit() or 2**62)


def memory_available_bytes() -> int:
    """Memory a new process may take without swapping; respects a container's limit."""
    available = int(psutil.virtual_memory().available)
    limit = _cgroup_limit()
    if limit is None:
        return available
    used = _read_int("/sys/fs/cgroup/memory.current") or 0
    return max(0, min(available, limit - used))


def disk_free_bytes(folder: Path) -> int:
    """Free bytes where `folder` is, or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def package_version(name: str) -> str | None:
    """Version of an installed package without importing it, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cgroup_limit() -> int | None:
    return _read_int("/sys/fs/cgroup/memory.max")


def _read_int(path: str) -> int | None:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return None
