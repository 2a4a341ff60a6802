"""Peak memory, as the device counts it."""

from __future__ import annotations

import contextlib
import re
import resource
import sys
from pathlib import Path

import torch


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
