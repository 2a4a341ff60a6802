"""The C compiler of this machine: a source file becomes a library once, and stays in the user's cache."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from forgellm import hardware

_log = logging.getLogger(__name__)
_NAMES = ("cc", "gcc", "clang")
# As fast as floats go without taking NaN and infinity for ordinary numbers.
_FLAGS = (
    "-std=gnu11 -O3 -march=native -fno-math-errno -fno-trapping-math -fno-signed-zeros "
    "-fassociative-math -freciprocal-math -fopenmp -fPIC -shared"
).split()
# Names of torch's types in C.
C_TYPES = {torch.float32: "float", torch.bfloat16: "bf16"}
_WIDE = ["-mprefer-vector-width=512"]  # compilers else halve what AVX-512 can do at once
_LONGEST_SECONDS = 120
_LONGEST_COMPLAINT = 500  # characters


@functools.cache
def compiler() -> str | None:
    """Path of the C compiler: the one that the environment's CC names, else the first there is."""
    named = os.environ.get("CC")
    return next(
        (path for name in ([named] if named else _NAMES) if (path := shutil.which(name))), None
    )


@functools.cache
def compiler_version() -> str | None:
    """The first line of what the compiler says of itself, None without one."""
    try:
        said = subprocess.run(
            [compiler() or "", "--version"], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return said.stdout.split("\n", 1)[0] or None


def set_signatures(compiled: ctypes.CDLL, signatures: Mapping[str, Sequence[Any]]) -> None:
    """What each function takes; none returns anything."""
    for name, signature in signatures.items():
        function = getattr(compiled, name)
        function.argtypes, function.restype = list(signature), None


def library(source: Path, flags: Sequence[str] = ()) -> ctypes.CDLL | None:
    """`source`, which may include headers beside it, compiled for this processor; None, with a line in
    the log, where that cannot be done."""
    tool = compiler()
    if tool is None:
        _log.info("no C compiler was found; training on a processor would be faster with one")
        return None
    wide = _WIDE if "avx512bw" in hardware.cpu_flags() else []
    try:
        return ctypes.CDLL(str(_built(tool, source, [*_FLAGS, *wide, *flags])))
    except subprocess.SubprocessError as error:
        said = getattr(error, "stderr", None) or str(error)
    except (OSError, RuntimeError) as error:  # RuntimeError where there is no home for the cache
        said = str(error)
    said = said.strip()[:_LONGEST_COMPLAINT]
    _log.warning("%s could not compile %s, so slower code is used: %s", tool, source.name, said)
    return None


def _built(tool: str, source: Path, flags: list[str]) -> Path:
    """The library's path. Its name says what it was made of and for, as homes are shared."""
    texts = [file.read_text("utf-8") for file in (source, *sorted(source.parent.glob("*.h")))]
    made_of = [tool, compiler_version() or "", *texts, *flags]
    made_for = [platform.platform(), platform.machine(), *sorted(hardware.cpu_flags())]
    digest = hashlib.sha256("\0".join(made_of + made_for).encode()).hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "forgellm"
    path = cache / f"{source.stem}-{digest[:24]}.so"
    if not path.exists():
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            made = Path(folder) / path.name
            subprocess.run(
                [tool, str(source), *flags, "-o", str(made)],
                capture_output=True,
                text=True,
                timeout=_LONGEST_SECONDS,
                check=True,
            )
            made.replace(path)  # at once, for whoever starts at the same time
    return path
