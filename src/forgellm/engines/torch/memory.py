"""Memory: its peak as the device counts it, running out of it, an allocator that keeps what it has."""

from __future__ import annotations

import contextlib
import ctypes
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from forgellm.errors import OutOfMemory

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MADV_DONTNEED = 4
# Of a mapping in /proc/self/smaps: where it begins and ends, and its kB that differ from the file.
_WEIGHT_MAPPINGS = re.compile(
    r"^([0-9a-f]+)-([0-9a-f]+) .*\.safetensors\n(?:\w+: .*\n)*?Anonymous: +(\d+) kB", re.M
)


@contextlib.contextmanager
def out_of_memory_named(suggestion: str = "") -> Iterator[None]:
    """Torch's two ways of running out of memory leave as OutOfMemory."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory("The GPU ran out of memory.", suggestion=suggestion) from error
    except RuntimeError as error:
        if "DefaultCPUAllocator" in str(error) or "can't allocate memory" in str(error):
            raise OutOfMemory("The machine ran out of memory.", suggestion=suggestion) from error
        raise
    except MemoryError as error:
        raise OutOfMemory("The machine ran out of memory.", suggestion=suggestion) from error


def keep_freed_memory() -> None:
    """Let the C allocator reuse freed memory instead of giving it back to the kernel.

    Each step would otherwise fault the same pages in again: a seventh of a step on two cores.
    Does nothing where the C library is not glibc.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def let_go_of_weight_files() -> None:
    """Give back the pages of weight files that this process has mapped: those of weights that were
    copied would else count as its memory for as long as others of the file are in use, and these are
    found again in the system's cache. Not to be called while another thread may write into weights
    that are mapped. Does nothing where the system is not Linux."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        for mapping in _WEIGHT_MAPPINGS.finditer(Path("/proc/self/smaps").read_text()):
            start, stop, num_changed = (
                int(mapping[i], base) for i, base in ((1, 16), (2, 16), (3, 10))
            )
            if not num_changed:  # what was written into the mapping is nowhere else
                length = ctypes.c_size_t(stop - start)
                libc.madvise(ctypes.c_void_p(start), length, _MADV_DONTNEED)


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):  # Linux alone can forget a process's peak
        Path("/proc/self/clear_refs").write_text("5")


def held_bytes(model: nn.Module) -> int:
    """Bytes of a model's weights, tied ones counted once."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum({t.data_ptr(): t.numel() * t.element_size() for t in tensors}.values())


def release_freed() -> None:
    """Give what the allocator keeps of freed GPU memory back, so that others may have it."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


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
