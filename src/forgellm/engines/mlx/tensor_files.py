"""Safetensors files written so that a full disk is noticed, and read so that damage is."""

from __future__ import annotations

import errno
from pathlib import Path

import mlx.core as mx

from forgellm.catalog.safetensors_header import read_header
from forgellm.errors import CheckpointCorrupt, UnsupportedModel

Tensors = dict[str, mx.array]


def save_tensors(file: Path, tensors: Tensors) -> None:
    """Raises OSError. MLX itself does not look whether all of its bytes were written."""
    try:
        mx.save_safetensors(str(file), tensors, metadata={"format": "mlx"})
        read_header(file)
    except (RuntimeError, UnsupportedModel) as error:
        raise OSError(errno.ENOSPC, f"{file.name} could not be written whole") from error


def read_tensors(file: Path) -> Tensors:
    """All of a file's tensors, in memory. Raises CheckpointCorrupt if it is damaged."""
    try:
        read_header(file)
        tensors: Tensors = mx.load(str(file))
        mx.eval(tensors)
    except (OSError, RuntimeError, UnsupportedModel) as error:
        raise CheckpointCorrupt(f"{file.name} cannot be read: {error}") from error
    return tensors
