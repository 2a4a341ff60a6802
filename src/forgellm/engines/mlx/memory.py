"""Memory: its limits and peak, and running out of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import mlx.core as mx

from forgellm import hardware
from forgellm.errors import OutOfMemory

# Freed buffers that MLX may keep for the next step, as a share of what the GPU may wire down.
_CACHE_SHARE = 0.25
_SIGNS_OF_NO_MEMORY = ("metal::malloc", "Insufficient Memory", "out of memory", "bad_alloc")


@contextlib.contextmanager
def out_of_memory_named(suggestion: str = "") -> Iterator[None]:
    """MLX's ways of running out of memory leave as OutOfMemory."""
    try:
        yield
    except MemoryError as error:
        raise OutOfMemory("The machine ran out of memory.", suggestion=suggestion) from error
    except RuntimeError as error:
        if any(sign in str(error) for sign in _SIGNS_OF_NO_MEMORY):
            raise OutOfMemory("The GPU ran out of memory.", suggestion=suggestion) from error
        raise


def set_limits() -> None:
    """Keep weights wired down, and bound what MLX holds back of freed memory.

    Without the first, macOS may page the weights out between steps; without the second, buffers
    of many sizes pile up until there are more of them than Metal can count (499,000). Only Metal
    has these limits; elsewhere this does nothing. Not run so far.
    """
    if not mx.metal.is_available():
        return
    working_set = int(mx.device_info()["max_recommended_working_set_size"])
    mx.set_wired_limit(working_set)
    mx.set_memory_limit(working_set)
    mx.set_cache_limit(int(working_set * _CACHE_SHARE))


def release_freed() -> None:
    """Give freed buffers back. Called where sizes change, such as after a validation."""
    mx.clear_cache()


def end_thread() -> None:
    """To be called last in a thread that computed.

    Else its streams go after Python has seen the thread end, and a process that ends then aborts.
    """
    release_freed()
    mx.clear_streams()


def reset_peak() -> None:
    mx.reset_peak_memory()


def peak_bytes() -> int:
    """Bytes that MLX's arrays took at most."""
    return int(mx.get_peak_memory())


def available_bytes() -> int | None:
    """What may still be used of the GPU's share of memory; None where the machine's is meant."""
    if not mx.metal.is_available():
        return None
    return max(0, hardware.training_memory_bytes() - int(mx.get_active_memory()))
