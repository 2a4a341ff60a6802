"""The types that a GGUF file's weights can be stored in, and what makes them.

The `gguf` package makes the plain ones and some others. K-quants are made by llama.cpp's program
`llama-quantize` out of a BF16 file.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from gguf import GGMLQuantizationType

from forgellm.catalog.gguf_writer import bits_of, writable_types
from forgellm.errors import ForgeError, InvalidRequest

BINARY_VARIABLE = "FORGELLM_LLAMA_QUANTIZE"
# Bits of a weight, about; those that need an importance matrix are left out.
_K_QUANTS = {
    "Q2_K": 3.4, "Q3_K_S": 3.5, "Q3_K_M": 3.9, "Q3_K_L": 4.3, "Q4_K_S": 4.6, "Q4_K_M": 4.9,
    "Q5_K_S": 5.5, "Q5_K_M": 5.7, "Q6_K": 6.6, "IQ4_NL": 4.5, "IQ4_XS": 4.3,
}  # fmt: skip
# From so many bits on: the least share of equal likeliest tokens, and the most divergence in nats.
# Twice what rounding does to a model of 135M parameters, which suffers more of it than larger ones;
# weights in the wrong order are far beyond.
_BOUNDS = [(16.0, 0.95, 0.02), (8.0, 0.93, 0.02), (5.0, 0.7, 0.3), (4.0, 0.5, 1.0), (0.0, 0.4, 1.5)]
_LAST_WORDS = 1000


@dataclass(frozen=True)
class GgufType:
    """Attributes:
    kind: what the matrices are written in here.
    binary: the program that makes the wanted type of that; None where they are the same.
    bits: of a weight, about.
    """

    name: str
    kind: GGMLQuantizationType
    binary: Path | None
    bits: float

    @property
    def bounds(self) -> tuple[float, float]:
        """The least top-1 agreement with the model, and the most mean divergence in nats."""
        return next((top1, kl) for bits, top1, kl in _BOUNDS if self.bits >= bits)


def gguf_type(name: str) -> GgufType:
    """Raises InvalidRequest for one that is unknown, or whose program is not here."""
    if name in _K_QUANTS:
        return GgufType(name, GGMLQuantizationType.BF16, _binary(name), _K_QUANTS[name])
    known = writable_types()
    if name not in known:
        raise InvalidRequest(
            f"{name[:40]!r} is no type that can be written",
            suggestion=f"Types: {', '.join([*known, *_K_QUANTS])}.",
        )
    kind = GGMLQuantizationType[name]
    return GgufType(name, kind, None, bits_of(kind))


def _binary(name: str) -> Path:
    given = os.environ.get(BINARY_VARIABLE)
    found = shutil.which(given or "llama-quantize")
    if found is None:
        raise InvalidRequest(
            f"{name} is made by llama.cpp's program llama-quantize, which is not "
            + (f"where ${BINARY_VARIABLE} says" if given else "on PATH"),
            suggestion=f"Install llama.cpp (brew install llama.cpp, or a release of ggml-org/llama.cpp) or set "
            f"{BINARY_VARIABLE} to the program; Q8_0, Q5_1 and Q4_0 need nothing else.",
        )
    return Path(found)


def requantise(wanted: GgufType, source: Path, target: Path) -> None:
    """Have llama-quantize make `target` of `source`. It ends when this process is told to end.

    Raises ForgeError with the program's last words.
    """
    command = [str(wanted.binary), str(source), str(target), wanted.name, str(os.cpu_count() or 1)]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        try:
            said, _ = process.communicate()
        except BaseException:
            process.kill()
            raise
    if process.returncode or not target.is_file():
        raise ForgeError(
            f"llama-quantize ended without a file (exit status {process.returncode})",
            suggestion="Read what it said in the details.",
            details={"output": said[-_LAST_WORDS:].decode("utf-8", "replace")},
        )
