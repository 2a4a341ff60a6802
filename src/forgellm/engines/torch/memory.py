"""Peak memory, as the device counts it, and an allocator that keeps what it has."""

from __future__ import annotations

import contextlib
import ctypes
import re
import resource
import sys
from pathlib import Path

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Let the C allocator reuse freed memory instead of giving it back to the kernel.

    Each step would otherwise fault the same pages in again: a seventh of a step on two cores.
    Does nothing where the C library is not glibc.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):  # Linux alone can forget a process's peak
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: torch.device) -> int:
    """CUDA: bytes the allocator held at most. Otherwise: this process's resident peak."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    with contextlib.suppress(OSError):
        if match := re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()):
            return int(match.group(1)) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def available_bytes(device: torch.device) -> int | None:
    """Free memory of the device, or None where the machine's own memory is meant."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return None
